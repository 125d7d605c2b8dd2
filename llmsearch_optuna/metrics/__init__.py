"""Metrics: built-in scores, adapters for foreign metrics, and checks of answers."""

from llmsearch_optuna.metrics.built_in import rouge
from llmsearch_optuna.metrics.endings import length_within, no_loop, terminates
from llmsearch_optuna.metrics.json_answers import json_fields, json_schema, json_valid
from llmsearch_optuna.metrics.likelihood import mean_logprob
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.patterns import language, regex
from llmsearch_optuna.metrics.tool_calls import tool_call
from llmsearch_optuna.metrics.weighted import weighted

__all__ = [
    "Metric",
    "json_fields",
    "json_schema",
    "json_valid",
    "language",
    "length_within",
    "mean_logprob",
    "no_loop",
    "regex",
    "rouge",
    "terminates",
    "tool_call",
    "weighted",
]
