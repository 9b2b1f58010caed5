"""A training run: session, steps of an iteration, shards, warm-up. Not here: the loop over iterations; Prefect."""
