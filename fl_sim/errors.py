"""Everything that can go wrong and be mended by the person at the keyboard.

    FlSimError
    ├── ConfigError        the experiment or a command's argument is wrong; nothing was written
    ├── MissingDataError   a data set, a weight file or the truth is not where it should be
    ├── RecordingError     a file of a run is damaged, foreign or of another version
    ├── StorageError       a file cannot be written: the disk is full, or not ours
    └── FederationError    the federation itself failed; the message names the log

Messages say what was expected, what was found, under which name, and what to do. Anything else that is raised is a
defect of this project.
"""

_MOST_LETTERS = 300


class FlSimError(Exception):
    """Base of all errors that are shown to a person as one line."""


class ConfigError(FlSimError):
    """The experiment or a command's argument is wrong."""


class MissingDataError(FlSimError):
    """Data that a step needs is not there."""


class RecordingError(FlSimError):
    """A file of a run folder cannot be trusted."""


class StorageError(FlSimError):
    """A file cannot be written."""


class FederationError(FlSimError):
    """The federation did not finish."""


def brief(said: object) -> str:
    """Return what a file, a client or a library has said as one printable line, short enough for a message."""
    text = str(said)[: 4 * _MOST_LETTERS]
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= _MOST_LETTERS else line[:_MOST_LETTERS] + "…"
