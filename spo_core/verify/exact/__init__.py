"""Our grader: reads what an answer says, and compares exactly. Not here: tolerances; published graders."""
