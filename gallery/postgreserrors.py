"""PostgreSQL's errors in our words, by their code. Imports the core and SQLAlchemy only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from facerec.errors import GalleryError, StoreCorrupt
from gallery.location import Location

UNCHANGED = "The gallery is unchanged."
_PERHAPS = (
    "A change that was being made is undone, unless it had just been committed: look before "
    "you make it again."
)
_SENTENCES = {
    "53100": "the server's disk is full. {unchanged} Make room and retry.",
    "55P03": "another process has been using it for too long. {unchanged}",
    "40P01": "another process was in the way. {unchanged} Retry.",
    "40001": "another process was in the way. {unchanged} Retry.",
    "57014": "no answer within {timeout:g} s, the URL's timeout=. {unchanged}",
    "25006": "the database is read-only here. {unchanged}",
    "25P03": "this process took too long in the middle of a change. {unchanged}",
    "42501": "this user may not do that ({said}). {unchanged}",
    "28P01": "user or password is wrong ({said}).",
    "28000": "this user may not connect ({said}).",
    "3D000": "there is no such database ({said}). Make it first, for instance with createdb.",
    "53300": "the server has no connection left ({said}). Raise its max_connections.",
}
_DAMAGED = ("XX001", "XX002", "42P01", "42703", "22021")


@contextmanager
def translated(location: Location) -> Iterator[None]:
    """Raise what SQLAlchemy and psycopg raise as an error of our tree, in a sentence."""
    try:
        yield
    except SQLAlchemyError as exc:
        raise _explained(location, exc) from exc


def _explained(location: Location, exc: SQLAlchemyError) -> GalleryError:
    original: Any = exc.orig if isinstance(exc, DBAPIError) else exc
    said = str(original).strip().splitlines()[0] if str(original).strip() else "no reason given"
    state = getattr(original, "sqlstate", None) or _state_of_refusal(said)
    if state in _DAMAGED:
        return StoreCorrupt(
            f"{location}: the database is damaged ({said}). Restore it from a backup of the "
            "server, or import an export into another."
        )
    if state in _SENTENCES:
        sentence = _SENTENCES[state].format(
            unchanged=UNCHANGED, said=said, timeout=location.timeout_s
        )
        return GalleryError(f"{location}: {sentence}")
    if state is None or state.startswith(("08", "57P")):
        return _lost(location, said, exc)
    return GalleryError(f"{location}: the database refused: {said}. {UNCHANGED}")


def _state_of_refusal(said: str) -> str | None:
    """Of an error while connecting, which comes without its code: by what libpq says."""
    known = {
        "password authentication failed": "28P01",
        "no password supplied": "28P01",
        "no pg_hba.conf entry": "28000",
        "too many clients": "53300",
        "remaining connection slots": "53300",
    }
    if 'database "' in said and said.endswith("does not exist"):
        return "3D000"
    if 'role "' in said and said.endswith("does not exist"):
        return "28000"
    return next((state for words, state in known.items() if words in said), None)


def _lost(location: Location, said: str, exc: SQLAlchemyError) -> GalleryError:
    if "wait timeout" in said or "timeout expired" in said:
        return GalleryError(f"{location}: the server does not answer. {_PERHAPS}")
    if isinstance(exc, DBAPIError) and exc.connection_invalidated:
        return GalleryError(f"{location}: the connection was lost ({said}). {_PERHAPS}")
    return GalleryError(
        f"{location}: the server cannot be reached ({said}). {UNCHANGED} Does it run, and is "
        "the address right?"
    )
