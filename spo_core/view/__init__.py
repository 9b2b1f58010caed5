"""Pages in a browser, and tables on a terminal, over files of runs. Not here: what a run writes, or changes it."""
