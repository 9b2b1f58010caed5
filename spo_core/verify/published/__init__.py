"""Graders as others published them, kept as they are so that published scores can be repeated."""
