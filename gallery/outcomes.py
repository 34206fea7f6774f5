"""What happens to files on their way into the gallery, and what became of them. Imports the core
and this package's items and photo_work.
"""

from __future__ import annotations

from dataclasses import dataclass

from facerec.types import Failure, Rejection
from gallery.items import ArchiveEnd, ArchiveStart, Item, displayable, path_of_key
from gallery.photo_work import Looked

UNCHANGED, MOVED = "unchanged", "moved"
"""Further things that may become of a photo, beside those of the ledger."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A file whose content is known. looked: None where it was known before it was looked at."""

    item: Item
    sha256: str
    looked: Looked | None = None

    @property
    def source(self) -> str:
        """What people read."""
        return displayable(path_of_key(self.item.key))


@dataclass(frozen=True)
class RunEnd:
    """Everything that there is to index was gone through."""


Event = Seen | ArchiveStart | ArchiveEnd | RunEnd


@dataclass(frozen=True)
class Outcome:
    """What became of one photo. what: one of the ledger's words, UNCHANGED or MOVED.

    faces: how many there are. templates: how many were added. reasons: against faces, or
    against the photo. failure: what could not be read. again: an older content, or name, of the
    same file was replaced. looked: it was decoded and searched for faces in this run.
    """

    source: str
    what: str
    faces: int = 0
    templates: int = 0
    reasons: tuple[Rejection, ...] = ()
    failure: Failure | None = None
    again: bool = False
    looked: bool = False


@dataclass(frozen=True)
class Committed:
    """What one transaction did. removed: templates that were replaced, or have no file left."""

    outcomes: tuple[Outcome, ...] = ()
    removed: int = 0
    people: int = 0
