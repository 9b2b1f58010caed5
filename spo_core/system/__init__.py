"""Files, processes, command lines and calls of DVC. Not here: anything that knows of policies, trees or runs."""
