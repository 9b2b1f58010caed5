"""Scores of a policy: suites, statistics, comparisons, published figures. Not here: training, and pages."""
