"""What a new GPU is tried with first: see ``python -m benchmarks.gpu --help``."""
