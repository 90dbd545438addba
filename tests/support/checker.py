"""The type checker of test runs: beartype, with Python's rule that a whole number is a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
