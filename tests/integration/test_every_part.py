"""Every named part can be made, says what it is and where it comes from, and is listed for newcomers."""

import inspect
from pathlib import Path

import pytest

from fl_sim.cli.listing import TABLES, Kind
from fl_sim.options import describe_options

EXTENDING = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
PARTS = [(kind, name) for kind, table in TABLES.items() for name in table]
FROM_THE_LITERATURE = (Kind.ATTACKS, Kind.LABELS, Kind.DEFENSES)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_says_what_it_is(kind, name):
    part = TABLES[kind][name]
    text = inspect.getdoc(part) or ""
    assert text.strip(), f"{kind} {name} has no docstring"
    if kind in FROM_THE_LITERATURE:
        assert "References:" in text, f"{kind} {name} names no source"


@pytest.mark.parametrize("name", TABLES[Kind.ATTACKS])
def test_every_attack_is_made_without_options(name):
    TABLES[Kind.ATTACKS][name]()


def test_options_are_described_with_their_defaults():
    assert describe_options(TABLES[Kind.DEFENSES]["clipping"]) == ["clip_norm (required)"]
    assert "alpha = 0.5" in describe_options(TABLES[Kind.PARTITIONERS]["dirichlet"])
    assert not any("generator" in line for line in describe_options(TABLES[Kind.MODELS]["mlp"]))


@pytest.mark.parametrize("kind", list(Kind))
def test_every_family_is_in_the_page_for_newcomers(kind):
    assert f"`{kind}`" in EXTENDING or f"list {kind}" in EXTENDING
