"""Files, processes, command lines, calls of DVC, a project's own modules. Not here: policies, trees, runs."""
