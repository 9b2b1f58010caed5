"""What a run would need, foretold from params alone. Not here: measurements; loading a policy."""
