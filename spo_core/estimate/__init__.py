"""Estimates of what a run will need, from params alone. Not here: measurements; loading a policy."""
