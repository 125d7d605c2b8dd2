"""What a space is made of: branches, and choices that Optuna cannot store as they are."""
