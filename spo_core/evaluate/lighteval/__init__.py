"""lighteval in its own environment, one child process a cell. Not here: statistics, and what a score means."""
