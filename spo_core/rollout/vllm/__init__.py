"""vLLM as an engine, in the flow's process or as servers. Not here: how trees grow."""
