"""Statements of SQLite that take minutes, and can be watched and stopped nevertheless.

Imports SQLAlchemy only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

_LOOK_S = 0.1


def run_with_ticks(
    connection: Connection, work: Callable[[Any], object], tick: Callable[[], object]
) -> None:
    """Run ``work`` on the driver's connection in a thread, and ``tick`` ten times a second here.

    What is raised here, Ctrl-C too, interrupts SQLite. Otherwise a statement of minutes
    could be neither watched nor stopped.
    """
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, raw)
        try:
            while not wait([done], timeout=_LOOK_S).done:
                tick()
        except BaseException:
            _stop(raw, done)
            raise
        done.result()


def _stop(raw: sqlite3.Connection, done: Future[object]) -> None:
    """Interrupt until it has stopped: an interrupt before a statement begins is forgotten."""
    while not done.done():
        raw.interrupt()
        with suppress(KeyboardInterrupt):
            wait([done], timeout=_LOOK_S)
