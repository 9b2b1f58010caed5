"""Measurements of credit at one policy: gradient efficiency, value error, credit found. Not here: updates; pages."""
