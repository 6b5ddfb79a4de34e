"""Where a data set lies: a path that was given and exists, or one clear line of error."""

from pathlib import Path

from fl_sim.errors import ConfigError, MissingDataError


def find_source(path: Path | None, *, dataset: str, remedy: str) -> Path:
    """Check the option ``path`` of a data set.

    Args:
        path: A file or folder; relative ones start in the working directory, ``~`` is the home folder.
        dataset: Name of the data set, for messages.
        remedy: How to get the data.

    Raises:
        ConfigError: If no path was given.
        MissingDataError: If there is nothing.
    """
    if path is None:
        raise ConfigError(f"data set {dataset!r} needs the option path; {remedy}")
    source = path.expanduser()
    if not source.exists():
        raise MissingDataError(f"data set {dataset!r}: {source.resolve()} does not exist; {remedy}")
    return source
