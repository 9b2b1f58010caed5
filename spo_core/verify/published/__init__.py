"""Graders as others published them, so that published scores can be repeated. Not here: mends of them."""
