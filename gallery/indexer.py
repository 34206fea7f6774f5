"""Batch indexing: a collection of photos into a gallery, with resume.

Reading, looking and writing overlap: a thread reads ahead, a crew decodes, detects, aligns and
embeds, and the caller's thread commits. Whatever is committed is done for good; a run that was
stopped, however harshly, goes on from there. Imports the core and this package.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from facerec.types import Failure
from gallery.commits import commit
from gallery.crew import Crew
from gallery.gallery import Gallery
from gallery.index_report import IndexReport
from gallery.items import Unchanged
from gallery.outcomes import Event, Seen
from gallery.pruning import prune
from gallery.reading import Ahead, Ledger, Looking, Reader, Step
from gallery.sources import Sources

_COMMIT_PHOTOS = 128
_COMMIT_S = 3.0
_COMMIT_FILES = 1024
"""After so many photos, or so long, what was found is committed: each commit waits for the disk."""

Progress = Callable[[IndexReport], object]


class Indexer:
    """Puts what a crew finds into a gallery. For one thread; several processes may index at once.

    force: take faces that are enrolled as another person; the gate is the crew's. retry: look
    again at photos that were refused or failed, or whose person was removed.
    """

    def __init__(
        self, gallery: Gallery, crew: Crew, *, force: bool = False, retry: bool = False
    ) -> None:
        self._gallery = gallery
        self._crew = crew
        self._force = force
        self._retry = retry

    def ledger(self) -> Ledger:
        """What :class:`gallery.sources.Sources` asks for what was indexed before."""
        return Ledger(self._gallery, retry=self._retry)

    def run(
        self,
        sources: Sources,
        *,
        prune_gone: bool = False,
        progress: Progress | None = None,
        report: IndexReport | None = None,
    ) -> IndexReport:
        """Index everything that ``sources`` finds; every photo has an outcome.

        prune_gone: afterwards remove the templates of files below its roots that are gone.
        progress: called with the report as it grows, which is ``report`` if one is given.
        Ctrl-C ends it: what is finished is committed, and the report says so; and so it is before
        an error is raised. Raises GalleryError, ModelError, ConfigError; what was committed stays.
        """
        report = report or IndexReport()
        try:
            self._go_through(sources, report, progress)
            if prune_gone:
                prune(self._gallery, sources, report)
        except KeyboardInterrupt:
            report.interrupted = True
        finally:
            report.ignored += sources.ignored
            report.stop()
        if report.counts["removed_templates"] and (problem := self._gallery.compact()):
            report.notes.append(f"Removed faces are not compacted away yet: {problem}")
        return report

    def _go_through(self, sources: Sources, report: IndexReport, progress: Progress | None) -> None:
        reader = Reader(self._gallery, sources, self._crew, self.ledger(), retry=self._retry)
        steps: Ahead[Step] = Ahead(reader)
        pending = _Pending(self._gallery, reader, report, force=self._force, retry=self._retry)
        try:
            for step in steps:
                pending.take(step)
                if pending.is_due():
                    pending.commit()
                if progress is not None:
                    progress(report)
            pending.commit()
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt) or not pending.commit_failed:
                pending.commit()
            raise
        finally:
            steps.stop()
            reader.stop()
            steps.join()


class _Pending:
    """What was looked at and is not committed yet."""

    def __init__(
        self, gallery: Gallery, reader: Reader, report: IndexReport, *, force: bool, retry: bool
    ) -> None:
        self._gallery = gallery
        self._reader = reader
        self._report = report
        self._force = force
        self._retry = retry
        self._events: list[Event] = []
        self._looked_at = 0
        self._last_s = time.monotonic()
        self.commit_failed = False

    def take(self, step: Step) -> None:
        """Waits for a look that is not finished. Raises ModelError."""
        if isinstance(step, Looking):
            found = zip(step.seen, step.looked.result(), strict=True)
            self._events += [replace(seen, looked=looked) for seen, looked in found]
            self._looked_at += len(step.seen)
        elif isinstance(step, Unchanged):
            self._report.add_unchanged(step.count, step.failed)
        elif isinstance(step, Failure):
            self._report.add_failure(step)
        else:
            self._events.append(step)

    def is_due(self) -> bool:
        """Whether enough is waiting, or for long enough."""
        return (
            self._looked_at >= _COMMIT_PHOTOS
            or len(self._events) >= _COMMIT_FILES
            or (len(self._events) > 0 and time.monotonic() - self._last_s >= _COMMIT_S)
        )

    def commit(self) -> None:
        """Should Ctrl-C come between commit and count, the next commit finds it done."""
        if self._events:
            self.commit_failed = True  # until it succeeds
            committed = commit(self._gallery, self._events, force=self._force, retry=self._retry)
            self.commit_failed = False
            events, self._events, self._looked_at = self._events, [], 0
            self._report.add(committed)
            self._reader.committed(event for event in events if isinstance(event, Seen))
        self._last_s = time.monotonic()
