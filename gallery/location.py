"""Where a gallery is: a folder, or a URL of the engines that hold it.

Imports the core and SQLAlchemy's URLs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from facerec.config import is_url
from facerec.errors import ConfigError

DEFAULT_TIMEOUT_S = 60.0
"""How long an engine beyond this process may take over one answer."""

_FORM = "postgresql://USER:PASSWORD@HOST/DATABASE"
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Location:
    """A ``folder``, or the ``url`` of a PostgreSQL database and, if any, the address of Milvus.

    ``str()`` of it is for messages and logs, and holds no password. timeout_s: what an
    engine may take over one answer.
    """

    folder: Path | None = None
    url: URL | None = field(default=None, repr=False)
    milvus: str | None = field(default=None, repr=False)
    timeout_s: float = DEFAULT_TIMEOUT_S

    @staticmethod
    def of(place: str | Path | Location) -> Location:
        """Of a folder, or of ``postgresql://USER:PASSWORD@HOST/DATABASE?milvus=...&timeout=...``.

        milvus: ``http://HOST:19530``, or the path of a Milvus Lite file. timeout: seconds.
        Further parameters are libpq's. Raises ConfigError for a URL of another form.
        """
        if isinstance(place, Location):
            return place
        text = os.fspath(place)
        if not is_url(text):
            return Location(folder=Path(text))
        scheme = text.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise ConfigError(f"a gallery is a folder or a URL {_FORM}; {scheme}:// is neither")
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise ConfigError(f"the URL of the gallery is not of the form {_FORM}") from None
        parameters = {key: _last(value) for key, value in url.query.items()}
        milvus = parameters.pop("milvus", None)
        timeout_s = _seconds(parameters.pop("timeout", str(DEFAULT_TIMEOUT_S)))
        url = url.set(drivername="postgresql+psycopg", query=parameters)
        return Location(url=url, milvus=milvus or None, timeout_s=timeout_s)

    def __str__(self) -> str:
        if self.url is None:
            return str(self.folder)
        shown = URL.create(
            "postgresql",
            username=self.url.username,
            host=self.url.host or _last(self.url.query.get("host", "")) or None,
            port=self.url.port,
            database=self.url.database,
        )
        return shown.render_as_string()


def _last(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[-1]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ConfigError(f"timeout in the gallery's URL is a number of seconds, not {text!r}")
    return seconds
