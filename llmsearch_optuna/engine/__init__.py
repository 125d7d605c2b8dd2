"""Decoding: requests in, completions out; how tokens are made and what earlier work is used again."""
