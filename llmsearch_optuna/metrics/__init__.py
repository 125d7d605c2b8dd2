"""Metrics: built-in scores, adapters for foreign metrics, and checks of answers."""

from llmsearch_optuna.metrics.metric import Metric

__all__ = ["Metric"]
