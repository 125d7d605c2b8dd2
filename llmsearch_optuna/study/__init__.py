"""A study under way: what is planned, which trial comes next, how its rows are decoded, how the winner is chosen."""
