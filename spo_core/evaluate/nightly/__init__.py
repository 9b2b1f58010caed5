"""Nightly evaluation of the newest checkpoint, compared with the last report. Not here: when a night begins."""
