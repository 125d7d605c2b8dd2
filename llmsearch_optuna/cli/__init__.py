"""The command line: one file a group of commands, each a thin wrapper around what Python users call.

Nothing heavy is imported before a command needs it, and no error reaches the user as a traceback.
"""

from llmsearch_optuna.cli.app import main

__all__ = ["main"]
