"""Loading models and tokenizers, quantized checkpoints included."""

from llmsearch_optuna.models.loader import load

__all__ = ["load"]
