"""What a retrain found, in numbers and in words. Imports the core only."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from facerec.intervals import Interval

Verdict = Literal["better", "no better", "worse", "cannot tell"]

WORTH_HAVING = 0.005
"""A gain in TAR; one that is surely smaller counts as none."""


@dataclass(frozen=True)
class Part:
    """Some people of the data, and how many photos of them there are."""

    people: int
    photos: int


@dataclass(frozen=True)
class Candidate:
    """A coefficient. selection: TAR on the people kept for choosing; guard: the guard set's
    figure; None where it was not measured."""

    alpha: float
    selection: float | None
    guard: float | None


@dataclass(frozen=True)
class GuardOutcome:
    """What became of the guard set's figure. tolerance: how far it was allowed to fall."""

    origin: str
    measure: str
    base: float
    result: float
    tolerance: float


@dataclass(frozen=True)
class Judgement:
    """Base and result on the test people: TAR at ``far``, every pair of photos compared.

    interval: 95 %, of the difference, people resampled for both at once; probability: the share
    of those samples in which the result is better; both None where there are too few people.
    """

    far: float
    base: float
    result: float
    interval: Interval | None
    probability: float | None

    @property
    def difference(self) -> float:
        """Result minus base."""
        return self.result - self.base


def verdict_of(alpha: float, judgement: Judgement | None) -> Verdict:
    """Better or worse where the whole interval says so; no better where it leaves no gain
    worth having, or nothing of the training is kept (``alpha`` 0)."""
    if alpha == 0:
        return "no better"
    if judgement is None or judgement.interval is None:
        return "cannot tell"
    if judgement.interval.low > 0:
        return "better"
    if judgement.interval.high < 0:
        return "worse"
    return "no better" if judgement.interval.high < WORTH_HAVING else "cannot tell"


@dataclass(frozen=True)
class RetrainReport:
    """What :func:`training.retrain.retrain` did and found.

    pack: where the new pack lies, None if none was written. base: what was trained further.
    train, selection, test: the data's parts, without a common person. alpha: the coefficient,
    and why it was chosen. cosine_to_base: mean over held-out photos of the cosine between the
    base's embedding and the result's. notes: what could not be measured, and what would help.
    """

    verdict: Verdict
    pack: str | None
    run: str
    base: str
    recipe: str
    train: Part
    selection: Part | None
    test: Part | None
    steps: int
    seconds: float
    alpha: float
    reason: str
    selection_far: float | None
    candidates: tuple[Candidate, ...]
    judgement: Judgement | None
    cosine_to_base: float | None
    guard: GuardOutcome | None
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Every field as JSON, indented."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def to_text(self) -> str:
        """For a terminal and for report.txt; no trailing newline."""
        lines = [
            f"base         {self.base}",
            f"people       {_part(self.train)} to learn from",
            f"             {_part(self.selection)} to choose the coefficient",
            f"             {_part(self.test)} to judge by, of whom neither has seen a photo",
            f"training     {self.recipe}, {self.steps:,} steps",
            f"coefficient  {self.alpha:g} of the way from base to result: {self.reason}",
            *_table(self),
            "",
            *_sentence(self),
            *(f"Note: {note}" for note in self.notes),
        ]
        written = f"Pack: {self.pack}" if self.pack else "No pack was written."
        lines.append(f"{written} {self.seconds / 60:.1f} minutes in all.")
        return "\n".join(lines)


def _part(part: Part | None) -> str:
    return f"{part.people:,} ({part.photos:,} photos)" if part else "0"


def _table(report: RetrainReport) -> list[str]:
    rows = [("", "base", "new", "difference", "")]
    found, guard = report.judgement, report.guard
    if found is not None:
        name = f"test people, TAR at FAR {found.far:g}"
        rows.append((name, *_figures(found.base, found.result), _doubt(found)))
    if guard is not None:
        allowed = f"may fall by {round(100 * guard.tolerance, 2):g}"
        rows.append((f"guard set, {guard.measure}", *_figures(guard.base, guard.result), allowed))
    if len(rows) == 1:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if report.cosine_to_base is not None:
        lines.append(f"mean cosine between old and new embeddings: {report.cosine_to_base:.3f}")
    return ["", *lines]


def _figures(base: float, result: float) -> tuple[str, str, str]:
    return f"{100 * base:.2f} %", f"{100 * result:.2f} %", f"{100 * (result - base):+.2f} points"


def _doubt(found: Judgement) -> str:
    if found.interval is None or found.probability is None:
        return "no interval: too few people"
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"95 %: {low:+.2f} to {high:+.2f}; better in {100 * found.probability:.1f} % of samples"


def _sentence(report: RetrainReport) -> list[str]:
    """The verdict, plainly."""
    found, verdict = report.judgement, report.verdict
    if report.alpha == 0:
        return ["NO BETTER: nothing of the training is worth keeping; the base stays as it is."]
    if found is None or found.interval is None:
        return ["CANNOT TELL: there are too few people to measure whether the new pack is better."]
    low, high = 100 * found.interval.low, 100 * found.interval.high
    by = f"{100 * found.difference:+.1f} points of TAR at FAR {found.far:g}"
    sure = f"95 % interval {low:+.1f} to {high:+.1f}"
    if verdict == "better":
        return [f"BETTER: {by} on people whom it has not seen, {sure}."]
    if verdict == "worse":
        return [f"WORSE: {by} on people whom it has not seen, {sure}."]
    if verdict == "no better":
        return [f"NO BETTER: {by}, {sure}: no gain of {100 * WORTH_HAVING:g} points or more."]
    return [f"CANNOT TELL: {by}, {sure}.{_would_do(found, report.test)}"]


def _would_do(found: Judgement, test: Part | None) -> str:
    """How many test people would show a difference of this size, by the square-root law."""
    assert found.interval is not None
    gap = abs(found.difference)
    half = (found.interval.high - found.interval.low) / 2
    if test is None or gap < 1e-3:
        return " More people would narrow it: four times as many halve it."
    wanted = math.ceil(test.people * max(1.0, half / gap) ** 2 * 1.1)
    return f" About {wanted:,} people to judge by, now {test.people:,}, would settle this."
