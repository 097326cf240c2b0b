"""The type checker that the suite puts on every function of the package, see `conftest.py`."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float
