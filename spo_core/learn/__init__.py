"""The update: loss, objective, replay, packed trees, optimizer, ranks. Not here: sampling; names of algorithms."""
