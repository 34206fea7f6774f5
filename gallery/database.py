"""What a store needs of a database engine. Imports SQLAlchemy only.

:mod:`gallery.sqlite` and :mod:`gallery.postgres` have one each; all that is particular
to an engine is there, and everything else speaks through this.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection

COMPACT_BYTES = 256 * 1024 * 1024
"""Galleries up to this size are rewritten by a removal: larger ones would stand still for it."""


class Database(Protocol):
    """An open database. Whatever its methods meet, they raise as an error of our tree."""

    @property
    def name(self) -> str:
        """What messages call the database; never with a password."""

    @property
    def gallery(self) -> str:
        """What messages call the gallery in it."""

    @property
    def read_only(self) -> bool:
        """Whether this process may only look; so it is until :meth:`allow_writing`."""

    def glancing(self) -> AbstractContextManager[Connection]:
        """For single statements, each with a view of its own. The quickest."""

    def glance(self, query: str) -> Sequence[tuple[Any, ...]]:
        """The rows of a query without parameters, as :meth:`glancing`; every search does it."""

    def viewing(self) -> AbstractContextManager[Connection]:
        """One moment's view, whatever others write meanwhile."""

    def changing(self) -> AbstractContextManager[Connection]:
        """The only change under way, of any process; committed at the end, undone if it raises."""

    def migrating(self) -> AbstractContextManager[Connection]:
        """As :meth:`changing`, for a change of the tables themselves: references are checked at
        its end, and it may take as long as it takes."""

    def allow_writing(self) -> None:
        """Open it for changes, once it has proved ours; quietly not where that is forbidden."""

    def check_structure(self, connection: Connection, *, thorough: bool) -> None:
        """Have the engine look for damage. Raises StoreCorrupt with what it found first."""

    @property
    def large(self) -> bool:
        """Whether it takes more than COMPACT_BYTES."""

    def compact(self, *, now: bool) -> None:
        """Leave no byte of removed rows in the database.

        A large one is only rewritten ``now``, which takes as long as it is large; otherwise its
        removed rows are overwritten as far as that goes without. Raises GalleryError with a
        sentence where compaction has to wait, or is not in our power.
        """

    def close(self) -> None:
        """Let go of it."""
