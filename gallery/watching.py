"""Keep folders indexed: look again at what changes, as it changes.

Imports the core, watchfiles (when asked to watch) and this package.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from facerec.errors import ConfigError

_log = logging.getLogger(__name__)

RESCAN_S = 3600.0
"""A look at everything, because the system may drop news, and file servers send none."""
_QUIET_MS = 500
_WAKE_MS = 1000

Index = Callable[[Collection[Path] | None], bool]
"""Index everything (None), or what lies at some paths, of which some may be gone; whether to go
on."""


def watch(roots: list[Path], index: Index, stop: threading.Event | None = None) -> None:
    """Index the folders ``roots`` now, and what changes below them until Ctrl-C or ``stop``.

    Raises ConfigError where there is nothing to watch, and what ``index`` raises.
    """
    last_s = None
    for paths in _changes(roots, stop or threading.Event()):
        if last_s is None or time.monotonic() - last_s >= RESCAN_S:
            if not index(None):
                return
            last_s = time.monotonic()
        elif paths and not index(paths):
            return


def _changes(roots: list[Path], stop: threading.Event) -> Iterator[frozenset[Path]]:
    """What changed lately, again and again; nothing at first, once the watch is on."""
    import watchfiles

    missing = [root for root in roots if not root.exists()]
    if missing or not roots:
        raise ConfigError(
            f"{missing[0]}: there is nothing to watch" if missing else "name a folder to watch"
        )
    polling = None
    while True:
        try:
            for changes in watchfiles.watch(
                *roots,
                watch_filter=None,
                debounce=_QUIET_MS * 4,
                step=_QUIET_MS,
                stop_event=stop,
                rust_timeout=_WAKE_MS,
                yield_on_timeout=True,
                force_polling=polling,
                ignore_permission_denied=True,
            ):
                # A folder is said to change whenever a file in it does, which is said too.
                yield frozenset(
                    Path(path)
                    for change, path in changes
                    if change != watchfiles.Change.modified or not Path(path).is_dir()
                )
            return
        except OSError as exc:
            if polling:
                raise ConfigError(f"{roots[0]}: cannot be watched: {exc}") from exc
            _log.warning("%s: the system cannot watch all of it (%s); polling", roots[0], exc)
            polling = True
