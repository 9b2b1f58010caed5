"""Engines, and how trees grow from what they sample. Not here: grading, and the update."""
