"""Reading a file by position. Imports the standard library only."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class PositionalFile:
    """A file that many threads and forked processes read without sharing an offset.

    A pickled copy opens the file again where it arrives. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._open()

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
        descriptor = self._open()
        if hasattr(os, "pread"):
            return os.pread(descriptor, length, offset)
        with self._lock:  # Windows: no pread, and no fork either
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, length)

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return self._descriptor

    def __del__(self) -> None:
        with suppress(Exception):
            if self._descriptor is not None:
                os.close(self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._descriptor = None
        self._lock = threading.Lock()
