"""Name tables: where the strings of an experiment become functions, and the only place where they do.

Each family of parts (models, data sets, defenses, attacks, label methods, priors) has one `Table`. Wherever a table's
name is accepted, ``"package.module:attribute"`` is accepted too, so that a user's own part needs no fork.

Such a name may stand in a run folder that comes from a stranger. Its module is imported, if it is installed here; but
nothing is called that was not written as a part of this family, which a table's check sees without calling it.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar, get_type_hints

from fl_sim.errors import ConfigError

Part = TypeVar("Part")

Check: TypeAlias = Callable[[Any], str | None]
"""Says what is expected where an object is no part of a family, and ``None`` where it is one."""


def _accept(part: Any) -> None:
    """Let every object pass: the family's parts are called with nothing that a file decides."""


def function_of(*names: str) -> Check:
    """Return a check for callables that name these parameters; ``**anything`` does not count."""

    def check(part: Any) -> str | None:
        return None if _has_parameters(part, names) else f"a function with the parameters {', '.join(names)}"

    return check


def class_called_with(*names: str, or_method: str | None = None) -> Check:
    """Return a check for classes whose instances are called with these parameters, or that have a method instead."""

    def check(part: Any) -> str | None:
        own: Mapping[str, Any] = _members(part) if isinstance(part, type) else {}
        if or_method is not None and callable(own.get(or_method)):
            return None
        if "__call__" in own and _has_parameters(own["__call__"], names):
            return None
        return f"a class whose instances are called with {', '.join(names)}"

    return check


def function_to(kind: type[Any]) -> Check:
    """Return a check for functions that are annotated to return a type."""

    def check(part: Any) -> str | None:
        try:
            found = get_type_hints(part).get("return")
        except (NameError, TypeError, AttributeError):
            found = None
        is_right = isinstance(found, type) and issubclass(found, kind)
        return None if is_right else f"a function that is annotated to return {kind.__name__}"

    return check


def instance_of(kind: type[Any]) -> Check:
    """Return a check for objects of a type."""
    return lambda part: None if isinstance(part, kind) else f"an object of {kind.__name__}"


def _members(part: type[Any]) -> dict[str, Any]:
    """Return what a class defines or inherits."""
    return {name: value for kind in reversed(part.__mro__) for name, value in vars(kind).items()}


def _has_parameters(part: Any, names: tuple[str, ...]) -> bool:
    try:
        return set(names) <= inspect.signature(part).parameters.keys()
    except (TypeError, ValueError):
        return False


class Table(Mapping[str, Part], Generic[Part]):
    """A read-only mapping from name to part that also resolves ``"package.module:attribute"``."""

    def __init__(self, kind: str, entries: Mapping[str, Part], *, check: Check = _accept) -> None:
        """Name the family (for error messages), list its parts, and say what a part of one's own must look like."""
        self.kind = kind
        self._check = check
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Part:
        """Return the part of that name.

        Raises:
            ConfigError: If there is none; the message lists the known names.
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            part = load_reference(name, kind=self.kind)
            if expected := self._check(part):
                raise ConfigError(
                    f"{name} is no {self.kind}: expected {expected}, got {type(part).__name__}; see docs/extending.md"
                )
            return part
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
    except (TypeError, ValueError) as error:  # of the import itself: an empty or a relative name
        raise ConfigError(f"{kind} {reference!r}: expected 'package.module:attribute'") from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{kind} {reference!r}: cannot import {error.name!r}; install the package or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{kind} {reference!r}: module {module_name!r} has no {attribute!r}") from error
