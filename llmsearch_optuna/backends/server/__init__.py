"""A server with OpenAI's interface as an engine."""
