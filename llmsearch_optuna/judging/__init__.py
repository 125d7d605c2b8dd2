"""A language model as a metric: how it is asked, read, remembered, and held against human labels."""
