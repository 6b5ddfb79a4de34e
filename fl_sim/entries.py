"""What stands in the JSON files of a run: typed entries, marked with the format that they are of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl_sim.errors import RecordingError, brief
from fl_sim.files import read_json, write_json
from fl_sim.options import first_problem


@dataclass(frozen=True, slots=True)
class Format:
    """The mark by which a file is known.

    Attributes:
        name: What kind of file.
        version: A reader takes its own version only.
    """

    name: str
    version: int

    def write(self, path: Path, fields: Mapping[str, Any]) -> None:
        """Write fields, marked.

        Raises:
            StorageError: If it cannot be written.
        """
        write_json(path, {"format": self.name, "version": self.version, **fields})

    def read(self, path: Path) -> dict[str, Any]:
        """Return the fields of a marked file.

        Raises:
            RecordingError: If it is missing, damaged, or of another format or version.
        """
        fields = read_json(path)
        found = fields.pop("format", None), fields.pop("version", None)
        if found != (self.name, self.version):
            raise RecordingError(
                f"{path}: expected format {self.name!r} version {self.version}, got {brief(repr(found[0]))} version "
                f"{brief(repr(found[1]))}"
            )
        return fields


def parse_entry(kind: Any, path: Path, data: Any) -> Any:
    """Return data as a value of a type.

    Args:
        kind: A dataclass, or another type that pydantic knows.
        path: Where the data stands; for the message.
        data: What was read.

    Raises:
        RecordingError: If it does not fit the type.
    """
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise RecordingError(f"{path}: {first_problem(error)}; the file is damaged or foreign") from error
