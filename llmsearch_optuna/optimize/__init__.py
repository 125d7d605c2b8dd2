"""A study under way: the plan, the trials, their rows, and the choice of the winner."""
