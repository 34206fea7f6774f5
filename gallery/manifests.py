"""Lists of photos and whom they show, as CSV or JSON Lines. Imports the core and this package's
values.

The columns ``path`` and ``name`` are needed; whatever else there is becomes metadata of the
person. Relative paths start from the list's own folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from facerec.errors import ConfigError, GalleryError
from facerec.types import Failure
from gallery.values import clean_name, metadata_json

SUFFIXES = (".csv", ".jsonl", ".ndjson")
_NEEDED = ("path", "name")
_MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Row:
    """A line of a manifest. path: absolute. name: cleaned. where: "people.csv:17"; line: the 17."""

    path: Path
    name: str
    metadata: Mapping[str, Any]
    where: str
    line: int


def check_manifest(path: Path) -> None:
    """Raises ConfigError unless it can be opened, and has the columns that are needed."""
    for _ in read_manifest(path):
        return


def read_manifest(path: Path) -> Iterator[Row | Failure]:
    """The rows, one at a time; of a row that cannot be used, why: with file, line and column.

    Whether the photo is there is not looked at. Raises ConfigError for a file that cannot be
    read or is not UTF-8, another ending, or a missing column.
    """
    lines = _csv_lines if path.suffix.lower() == ".csv" else _json_lines
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a manifest ends with {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, fields in lines(path, stream):
                yield _row(path, number, fields)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 text ({exc}). Save it as UTF-8.") from exc


def _csv_lines(path: Path, stream: IO[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(line, its fields, or what is wrong with it)."""
    reader = csv.reader(stream)
    try:
        head = [column.strip() for column in next(reader, [])]
        for column in _NEEDED:
            if column not in head:
                raise ConfigError(
                    f"{path}:1: there is no column {column!r}; found {', '.join(head) or 'none'}. "
                    "The first line names the columns: path,name"
                )
        twice = {column for column in head if head.count(column) > 1}
        if twice:
            raise ConfigError(f"{path}:1: the column {min(twice)!r} is there twice")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(head):
                problem = f"has {len(cells)} columns, and the first line {len(head)}"
                yield reader.line_num, problem
            else:
                yield reader.line_num, dict(zip(head, cells, strict=True))
    except csv.Error as exc:
        raise ConfigError(f"{path}:{reader.line_num}: not CSV: {exc}") from exc


def _json_lines(path: Path, stream: IO[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(line, its fields, or what is wrong with it)."""
    for number, line in enumerate(iter(lambda: stream.readline(_MAX_LINE), ""), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as exc:
            yield number, f"is not JSON: {exc}"
            continue
        yield number, fields if isinstance(fields, dict) else "is not a JSON object"


def _row(path: Path, line: int, fields: Mapping[str, Any] | str) -> Row | Failure:
    where = f"{path}:{line}"
    if isinstance(fields, str):
        return Failure(where, "bad_row", f"{where}: {fields}.")
    for column in _NEEDED:
        value = fields.get(column)
        if not isinstance(value, str) or not value.strip():
            reason = f"{where}, column {column!r}: "
            reason += "is missing." if column not in fields else "is empty, or not text."
            return Failure(where, "bad_row", reason)
    rest = {k: v for k, v in fields.items() if k and k not in _NEEDED and v not in ("", None)}
    try:
        name = clean_name(fields["name"])
        metadata_json(rest)
        where_it_lies = path.parent.absolute() / fields["path"]
        where_it_lies.lstat()
    except GalleryError as exc:
        column = "name" if "the name" in str(exc) else "metadata"
        return Failure(where, "bad_row", f"{where}, column {column!r}: {exc}")
    except (FileNotFoundError, NotADirectoryError):
        reason = f"{where}, column 'path': no such file: {where_it_lies}"
        return Failure(where, "no_such_file", reason)
    except (OSError, ValueError) as exc:
        return Failure(where, "bad_row", f"{where}, column 'path': cannot be looked at ({exc})")
    return Row(where_it_lies, name, rest, where, line)
