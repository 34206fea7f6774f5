"""Whom the photos of a collection show, where their folders say so. Imports the core and this
package's archives, items and values.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from facerec.errors import ConfigError, GalleryError
from gallery import archives
from gallery.items import displayable, kind_of
from gallery.values import clean_name


@dataclass(frozen=True)
class Naming:
    """Whom photos show.

    by_folder: the person after whom the folder directly below the root is named. person:
    everything shows this one. Neither: nobody says.
    """

    by_folder: bool = False
    person: str | None = None

    def __post_init__(self) -> None:
        if self.by_folder and self.person is not None:
            raise ConfigError("name people by their folders or give one name for all, not both")
        if self.person is not None:
            object.__setattr__(self, "person", clean_name(self.person))

    def of(self, folders: Sequence[str]) -> str | None:
        """The name for a photo in ``folders`` below the root. Raises GalleryError."""
        if not self.by_folder:
            return self.person
        if len(folders) == 1:
            return _clean(folders[0])
        if not folders:
            raise Ambiguous(
                "lies in no folder that says whom it shows. Put it into a folder named after the "
                "person"
            )
        raise Ambiguous(
            f"shows {folders[0]!r} or {folders[-1]!r}? People's folders hold photos, not further "
            "folders. Move the photo up, or index the folder above the people's"
        )


_clean = lru_cache(maxsize=256)(clean_name)
ANONYMOUS = Naming()


class Ambiguous(GalleryError):
    """It is open whom a photo shows."""


def check_layout(root: Path, naming: Naming) -> None:
    """Raises ConfigError where ``naming`` cannot be meant for the folder ``root``."""
    if not root.is_dir() or (naming.person is None and not naming.by_folder):
        return
    try:
        with os.scandir(root) as entries:
            first_photo = None
            for entry in entries:
                if is_folder(entry):
                    if naming.person is None:
                        return
                    raise ConfigError(
                        f"{displayable(root)}: holds the folder {displayable(entry.name)!r}, so it "
                        f"is not clear that all photos show {naming.person!r}. Name the folders "
                        "that do, one by one; or name people by their folders (--by-folder)."
                    )
                if archives.is_archive(entry.name):  # its own folders may say
                    if naming.person is None:
                        return
                    continue
                first_photo = first_photo or (kind_of(entry.name) and entry.name)
    except OSError:
        return  # reported when the folder's turn comes
    if first_photo is not None and naming.by_folder:
        raise ConfigError(
            f"{displayable(root)}: holds photos ({displayable(first_photo)!r}) and no folders, so "
            "no folder says whom they show. Name the folder above, which holds one folder for "
            f"each person; or say that all show one: --person {displayable(root.name)!r}."
        )


def check_roots(roots: Sequence[Path]) -> None:
    """Photos that are found twice would be named by turns."""
    counts = Counter(roots)
    for root in roots:
        around = [root] if counts[root] > 1 else root.parents
        outer = next((folder for folder in around if folder in counts), None)
        if outer is not None:
            raise ConfigError(
                f"{displayable(root)} lies in {displayable(outer)}, and would be indexed "
                "twice. Name one of them."
            )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
