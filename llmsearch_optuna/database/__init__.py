"""What a study keeps beside Optuna's own tables, in the same database, and what can go wrong with it."""
