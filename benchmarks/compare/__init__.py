"""The algorithms at equal budgets of generated tokens, each at a learning rate of its own, paired by seed."""
