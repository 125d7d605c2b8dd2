"""What serves requests beside the Hugging Face engine."""
