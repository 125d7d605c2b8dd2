"""Search spaces: branches, distributions, and their names in Optuna."""
