"""Reads a study: views, comparison, the Pareto front, exports and its status."""
