"""Hidden folders for what is not finished yet; one that a killed process left is swept away.

Imports the standard library only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

_ENDING = ".part"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A folder of this user alone beside ``target``, on its disk; gone at the end.

    Others for the same target that no process holds any more go at once. Raises OSError.
    """
    sweep(target.absolute().parent, target.name)
    folder, held = _make(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _make(target: Path) -> tuple[Path, int | None]:
    """A new folder, and what holds it."""
    parent = target.absolute().parent
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_ENDING, dir=parent))
        with suppress(FileNotFoundError, BlockingIOError):  # another sweeps it away: again
            held = _hold(folder)
            if held is None or folder.exists():
                return folder, held
            os.close(held)


def sweep(parent: Path, name: str | None = None, *, in_use: bool = False) -> None:
    """Remove the scratch folders in ``parent`` that processes left which were killed.

    name: only those for a target of that name. in_use: also those that are held.
    """
    with suppress(OSError):
        for folder in parent.glob(f".{'*' if name is None else escape(name)}.*{_ENDING}"):
            held = None
            with suppress(FileNotFoundError, BlockingIOError):
                held = _hold(folder)
            # Windows refuses to remove what is in use.
            if held is not None or in_use or os.name == "nt":
                shutil.rmtree(folder, ignore_errors=True)
            if held is not None:
                os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock the folder for as long as this process lives; None where there are no such locks.

    Raises BlockingIOError where another has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(handle)
        if isinstance(exc, BlockingIOError):
            raise
        return None
    return handle
