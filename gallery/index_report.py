"""What a run of the indexer did, counted, and told photo by photo where something was wrong.

Lists may be long: they wait in a file, not in memory. Imports the core and this package's
outcomes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any

from facerec.types import Failure, Rejection
from gallery.ledger import DUPLICATE, ENROLLED, FAILED, NO_FACE, REJECTED, REMOVED
from gallery.outcomes import MOVED, UNCHANGED, Committed, Outcome

_IN_MEMORY = 1 << 20
_LISTED = 20
"""Of each list, in a report for a terminal."""


class Spool:
    """A list of JSON values that only grows; a long one lies in a temporary file."""

    def __init__(self) -> None:
        # Open for as long as the list lives; it has no name that could be left behind.
        self._file: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            _IN_MEMORY, mode="w+", encoding="utf-8", prefix="facerec-report-"
        )
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def append(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._count += 1

    def __iter__(self) -> Iterator[Any]:
        self._file.seek(0)
        yield from (json.loads(line) for line in self._file)
        self._file.seek(0, 2)


class IndexReport:
    """Add what happened; read it as lines or JSON. Counts are photos unless they say otherwise.

    rejected: photos of which the gate refused a face, the only one or one of several.
    interrupted: it was stopped before the end. A video counts as a photo.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        """How often each reason of the gate was given, faces and photos alike."""
        self.rejected = Spool()
        self.failed = Spool()
        self.notes: list[str] = []
        self.ignored = 0
        self.interrupted = False
        self._started = time.monotonic()
        self._stopped: float | None = None

    @property
    def photos(self) -> int:
        """How many were gone through so far, one way or another."""
        return sum(self.counts[what] for what in _PHOTOS)

    @property
    def looked_at(self) -> int:
        """How many were decoded and searched for faces."""
        return self.counts["looked_at"]

    @property
    def faces(self) -> int:
        """How many were found."""
        return self.counts["faces"]

    @property
    def seconds(self) -> float:
        """Since the run began; until it ended."""
        return (self._stopped or time.monotonic()) - self._started

    def add(self, committed: Committed) -> None:
        """What one transaction did."""
        self.counts["removed_templates"] += committed.removed
        self.counts["new_people"] += committed.people
        for outcome in committed.outcomes:
            self._add(outcome)

    def add_unchanged(self, count: int, failed: int = 0) -> None:
        """Files that are as they were, and how many of them failed then."""
        self.counts[UNCHANGED] += count
        self.counts["failed_before"] += failed

    def add_failure(self, failure: Failure) -> None:
        """Something that did not get as far as being looked at."""
        self.counts[FAILED] += 1
        self._list_failure(failure)

    def add_pruned(self, files: int, templates: int) -> None:
        """Files that are gone, and templates that were removed for it."""
        self.counts["pruned_files"] += files
        self.counts["removed_templates"] += templates

    def close(self) -> None:
        """Nothing is read from it any more."""
        self.rejected.close()
        self.failed.close()

    def stop(self) -> None:
        """The run is over: the clock stops."""
        self._stopped = time.monotonic()

    def _add(self, outcome: Outcome) -> None:
        self.counts[outcome.what] += 1
        self.counts["faces"] += outcome.faces
        self.counts["templates"] += outcome.templates
        self.counts["changed"] += outcome.again
        self.counts["looked_at"] += outcome.looked
        self.codes.update(reason.code for reason in outcome.reasons)
        if outcome.reasons:
            self.rejected.append(
                {
                    "photo": outcome.source,
                    "kept": outcome.templates,
                    "reasons": _as_dicts(outcome.reasons),
                }
            )
        if outcome.failure is not None:
            self._list_failure(outcome.failure)

    def _list_failure(self, failure: Failure) -> None:
        self.failed.append(
            {"photo": failure.source, "code": failure.code, "reason": failure.reason}
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the lists ``rejected`` and ``failed``."""
        seconds = max(self.seconds, 1e-9)
        return {
            "interrupted": self.interrupted,
            "notes": self.notes,
            "photos": self.photos,
            "enrolled": self.counts[ENROLLED],
            "templates": self.counts["templates"],
            "new_people": self.counts["new_people"],
            "skipped": {
                "unchanged": self.counts[UNCHANGED],
                "failed_before": self.counts["failed_before"],
                "removed_before": self.counts[REMOVED],
            },
            "duplicates": self.counts[DUPLICATE],
            "moved": self.counts[MOVED],
            "changed": self.counts["changed"],
            "no_face": self.counts[NO_FACE],
            "rejections": dict(sorted(self.codes.items())),
            "ignored_files": self.ignored,
            "pruned_files": self.counts["pruned_files"],
            "removed_templates": self.counts["removed_templates"],
            "faces": self.faces,
            "seconds": round(seconds, 2),
            "photos_per_s": round(self.looked_at / seconds, 1),
            "faces_per_s": round(self.faces / seconds, 1),
        }

    def write_json(self, stream: IO[str]) -> None:
        """All of it as one JSON object."""
        head = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        stream.write(head.removesuffix("\n}"))
        for name, spool in (("rejected", self.rejected), ("failed", self.failed)):
            stream.write(f',\n  "{name}": [')
            for i, value in enumerate(spool):
                stream.write((",\n    " if i else "\n    ") + json.dumps(value, ensure_ascii=False))
            stream.write("\n  ]" if len(spool) else "]")
        stream.write("\n}\n")

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        refused = (value for value in self.rejected if not value["kept"])
        yield from _listed("refused", refused, self.counts[REJECTED], _refusal_line)
        yield from _listed("failed ", self.failed, len(self.failed), lambda f: f["reason"])
        counts = self.to_dict()
        skipped = counts["skipped"]
        kept = f"{counts['templates']:,} faces, {counts['new_people']:,} new people"
        parts = [
            f"{counts['enrolled']:,} enrolled ({kept})",
            f"{skipped['unchanged']:,} unchanged",
            f"{counts['duplicates']:,} duplicates",
            f"{self.counts[REJECTED]:,} refused",
            f"{len(self.failed):,} failed",
        ]
        for name, words in _RARE.items():
            value = skipped[name] if name in skipped else counts[name]
            if value:
                parts.append(f"{value:,} {words}")
        yield f"{counts['photos']:,} photos: {', '.join(parts)}."
        yield from self.notes
        yield (
            f"{counts['seconds']:.1f} s, {counts['photos_per_s']:.1f} photos/s, "
            f"{counts['faces_per_s']:.1f} faces/s."
        )


_PHOTOS = (ENROLLED, DUPLICATE, REJECTED, NO_FACE, FAILED, REMOVED, UNCHANGED, MOVED)
_RARE = {
    "no_face": "without a face",
    "failed_before": "of the unchanged failed before (--retry looks again)",
    "moved": "moved",
    "changed": "changed",
    "removed_before": "of people who were removed",
    "pruned_files": "files gone",
    "removed_templates": "faces removed",
    "ignored_files": "other files ignored",
}


def _listed(
    word: str, values: Iterable[Any], count: int, line: Callable[[Any], str]
) -> Iterator[str]:
    for value in islice(values, _LISTED):
        yield f"  {word}  {line(value)}"
    if count > _LISTED:
        yield f"  {word}  and {count - _LISTED:,} more; --json lists them all"


def _refusal_line(value: dict[str, Any]) -> str:
    said = " ".join(f"{reason['reason']} [{reason['code']}]" for reason in value["reasons"])
    return f"{value['photo']}: {said}"


def _as_dicts(reasons: tuple[Rejection, ...]) -> list[dict[str, str]]:
    return [{"code": reason.code, "reason": reason.reason} for reason in reasons]
