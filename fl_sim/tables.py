"""Name tables: where the strings of an experiment become functions, and the only place where they do.

Each family of parts (models, data sets, defenses, attacks, label methods, priors) has one `Table`. Wherever a table's
name is accepted, ``"package.module:attribute"`` is accepted too, so that a user's own part needs no fork.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from fl_sim.errors import ConfigError

Part = TypeVar("Part")


class Table(Mapping[str, Part], Generic[Part]):
    """A read-only mapping from name to part that also resolves ``"package.module:attribute"``."""

    def __init__(self, kind: str, entries: Mapping[str, Part]) -> None:
        """Name the family (for error messages) and list its parts."""
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Part:
        """Return the part of that name.

        Raises:
            ConfigError: If there is none; the message lists the known names.
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return load_reference(name, kind=self.kind)
        known = ", ".join(sorted(self._entries))
        raise ConfigError(f"unknown {self.kind} {name!r}; known: {known}, or 'package.module:attribute' of your own")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the table's order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of named parts."""
        return len(self._entries)


def load_reference(reference: str, *, kind: str) -> Any:
    """Import ``"package.module:attribute"``.

    Args:
        reference: What to import.
        kind: What it should be, for error messages.

    Raises:
        ConfigError: If the module or the attribute is not there.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{kind} {reference!r}: cannot import {error.name!r}; install the package or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{kind} {reference!r}: module {module_name!r} has no {attribute!r}") from error
