"""Name tables."""

import pytest

from fl_sim.errors import ConfigError
from fl_sim.tables import Table

TABLE = Table("fruit", {"apple": 1, "pear": 2})


def test_known_names():
    assert TABLE["pear"] == 2
    assert list(TABLE) == ["apple", "pear"]


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown fruit 'plum'; known: apple, pear"):
        TABLE["plum"]


def test_references_are_imported():
    import math

    assert Table("function", {})["math:sqrt"] is math.sqrt


@pytest.mark.parametrize(("reference", "message"), [("no_such_module:x", "cannot import"), ("math:no", "has no 'no'")])
def test_bad_references_are_explained(reference, message):
    with pytest.raises(ConfigError, match=message):
        TABLE[reference]
