"""Where a gallery may be made, and what lies in it. Imports the core and sqlite's names."""

from __future__ import annotations

import os
from pathlib import Path

from facerec.errors import GalleryError
from facerec.types import EmbeddingContract
from gallery.location import Location
from gallery.sqlite import DB_NAME


def is_there(db: Path) -> bool:
    """Whether there is a file ``db``. Raises GalleryError where one may not look."""
    try:
        return db.exists()
    except OSError as exc:
        raise GalleryError(f"{db}: cannot be read ({exc.strerror or exc})") from exc


def permit_creation(
    location: Location, contract: EmbeddingContract | None, create: bool
) -> EmbeddingContract:
    """The contract of a gallery to be made at ``location``, whose folder is there afterwards.

    Raises GalleryError if none may be made.
    """
    folder = location.folder
    if folder is not None and folder.exists() and not folder.is_dir():
        raise GalleryError(f"{folder}: a gallery is a folder, and this is a file")
    if not create or contract is None:
        raise GalleryError(
            f"{location}: there is no gallery here. Enrol someone to make one, or name the "
            f"{'folder' if folder else 'database'} of another."
        )
    if folder is not None:
        require_empty(folder)
        _make_folder(folder)
    return contract


def lies_below(path: Path, folder: Path) -> bool:
    """Whether ``path`` is somewhere in ``folder``, links followed; loops of links are no error."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def require_empty(folder: Path) -> None:
    """Raises GalleryError where a gallery to be made would not be by itself."""
    try:
        others = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as exc:
        raise GalleryError(f"{folder}: cannot be read ({exc.strerror or exc})") from exc
    # A volume may come with hidden files or lost+found; a process that died leaves hidden ones.
    others = [name for name in others if not name.startswith(".") and name != "lost+found"]
    if others and DB_NAME not in others:  # else another process is making it just now
        raise GalleryError(
            f"{folder}: the folder holds {others[0]!r} but no {DB_NAME}. Choose an empty "
            "folder, or restore the database of the gallery that was here."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        raise GalleryError(f"{folder}: cannot be made ({exc})") from exc
