"""From next-token scores to the next token: parameters, logits processors, truncation, noise, beams, stops."""
