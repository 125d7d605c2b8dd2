"""The data of a study: rows, prompts, references, splits."""
