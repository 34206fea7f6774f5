"""Ctrl-C and SIGTERM as a request that the loop answers. Imports the standard library only."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_ASKED = (signal.SIGINT, signal.SIGTERM)
TERMINATED = 128 + signal.SIGTERM


class Interruption:
    """While it lasts, the first SIGINT or SIGTERM is noted; a second one has its usual effect.

    Signals reach the main thread only: in another this does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """(SIGINT, SIGTERM): 1 for the one that has come."""
        return int(self.signal == signal.SIGINT), int(self.signal == signal.SIGTERM)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _ASKED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave(signals: tuple[int, int]) -> None:
    """Leave as the signals ask: KeyboardInterrupt after SIGINT, exit code 143 after SIGTERM.

    signals: how many processes of the run were sent (SIGINT, SIGTERM).
    """
    if signals[0]:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)
