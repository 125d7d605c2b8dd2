"""Metrics: built-in scores, adapters for foreign metrics, and checks of answers."""
