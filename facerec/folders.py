"""A folder per person, ROOT/NAME/photo.jpg, listed. Imports the core only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from facerec.errors import ConfigError
from facerec.image import SUFFIXES


@dataclass(frozen=True, eq=False)
class Listing:
    """The images under a root, sorted by identity and then by name.

    paths: relative to the root, with the system's separator. identity: index into ``names``
    of each.
    """

    root: Path
    names: list[str]
    paths: list[str]
    identity: list[int]


def list_identities(root: Path) -> Listing:
    """Walk ROOT/IDENTITY/**; every folder directly under the root is one identity.

    Hidden files and folders and files that no image's suffix marks are passed over, and so
    are images directly under the root, which belong to nobody. Raises ConfigError for a root
    that is missing, not a folder, or holds no identity with an image.
    """
    root = Path(root)
    try:
        with os.scandir(root) as entries:
            top = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except FileNotFoundError as exc:
        raise ConfigError(f"{root}: no such folder") from exc
    except OSError as exc:
        raise ConfigError(f"{root}: cannot be read as a folder: {exc.strerror}") from exc
    names: list[str] = []
    paths: list[str] = []
    identity: list[int] = []
    for entry in top:
        if not entry.is_dir():
            continue
        found = _images_under(root, entry.name)
        if found:
            identity += [len(names)] * len(found)
            names.append(entry.name)
            paths += found
    if not names:
        raise ConfigError(_nothing_found(root, [e for e in top if e.is_file()]))
    return Listing(root, names, paths, identity)


def _images_under(root: Path, identity: str) -> list[str]:
    found = []
    for folder, subfolders, files in os.walk(root / identity):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(folder, root)
        found += [
            os.path.join(relative, file)  # noqa: PTH118 - a million times faster than Path
            for file in sorted(files)
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122
        ]
    return found


def _nothing_found(root: Path, files: list[os.DirEntry[str]]) -> str:
    loose = sum(Path(e.name).suffix.lower() in SUFFIXES for e in files)
    if loose:
        return (
            f"{root}: {loose} images lie in the folder itself; this needs a folder per person "
            "inside it, named as the person, as in ROOT/IDENTITY/photo.jpg"
        )
    return (
        f"{root}: no images. This needs a folder per person, as in ROOT/IDENTITY/photo.jpg "
        f"({' '.join(sorted(SUFFIXES))})"
    )
