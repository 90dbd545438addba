"""The command line of lm-eval with the model `whet`, which importing this package registers."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
