"""lighteval in its own environment, where a process forks one for each cell. Not here: statistics, what scores mean."""
