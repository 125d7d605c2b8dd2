"""Search spaces: branches, distributions, and their names in Optuna."""

from llmsearch_optuna.space.space import Space

__all__ = ["Space"]
