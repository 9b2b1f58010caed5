"""Nightly evaluation: the newest checkpoint, and whether it does worse. Not here: when a night begins."""
