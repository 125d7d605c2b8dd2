"""What identifies functions, weights and data, and how two fingerprints differ."""
