"""Statistics on arrays of scores: paired tests, finalists, power, the verdict."""
