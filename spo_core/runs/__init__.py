"""A run on disk: directory, identity, lineage. Not here: policies, and what an iteration does."""
