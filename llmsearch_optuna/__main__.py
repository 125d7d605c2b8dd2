"""``python -m llmsearch_optuna`` is the command line."""

from llmsearch_optuna.cli import main

if __name__ == "__main__":
    main()
