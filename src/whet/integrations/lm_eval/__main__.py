"""lm-eval's own command line, which knows the model `whet` once this package is imported."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
