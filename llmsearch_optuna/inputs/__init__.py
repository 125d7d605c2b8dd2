"""What a task is made of: rows, prompts, splits, and how functions of the user are told apart."""
