"""Our reader of answers: what an answer says, and whether two say the same, exactly."""
