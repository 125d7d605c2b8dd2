"""Statistics on arrays of scores: finalists, paired tests, and what a number of rows can show."""
