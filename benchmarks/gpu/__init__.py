"""First measurements on a new GPU: see ``python -m benchmarks.gpu --help``."""
