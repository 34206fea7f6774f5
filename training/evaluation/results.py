"""What an evaluation found, as values and as JSON. Imports torch and the core."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from facerec import __version__
from facerec.evaluation import Verification
from facerec.identification import Searches
from facerec.metrics import KFoldAccuracy, OpenSetPoint
from training.logs import git_revision

_BINS = (20, 80)
_DET_PER_DECADE = 20


@dataclass(frozen=True)
class ModelDescription:
    """The model that was measured.

    kind: "pack" or "checkpoint". sha256: of the embedder's or the checkpoint's file; None for a
    network that is in no file. contract_id: of a pack, with the flip averaging that was measured.
    runs_on: runtime and device.
    """

    name: str
    kind: str
    path: str
    sha256: str | None
    contract_id: str | None
    template: str
    input_size: int
    dim: int
    flip: bool
    runs_on: str


@dataclass(frozen=True)
class Histogram:
    """How the similarities of genuine and impostor pairs lie.

    edges: (b + 1,) cosines. genuine, impostor: (b,) share of the pairs of that kind in each bin.
    """

    edges: tuple[float, ...]
    genuine: tuple[float, ...]
    impostor: tuple[float, ...]


def histogram(genuine: ArrayLike, impostor: ArrayLike) -> Histogram:
    """Equal bins from the lowest to the highest similarity of either kind; one may be empty."""
    both = [np.asarray(genuine), np.asarray(impostor)]
    filled = [scores for scores in both if len(scores)]
    low, high = min(float(s.min()) for s in filled), max(float(s.max()) for s in filled)
    bins = int(np.clip(np.sqrt(min(len(scores) for scores in filled)), *_BINS))
    edges = np.linspace(low, max(high, low + 1e-3), bins + 1)
    shares = [np.histogram(scores, edges)[0] / max(1, len(scores)) for scores in both]
    return Histogram(
        tuple(round(float(e), 5) for e in edges),
        *(tuple(round(float(v), 8) for v in share) for share in shares),
    )


@dataclass(frozen=True)
class PairResult:
    """Verification on some pairs of a set. title: which pairs. resampled: by what the intervals
    are, "people" or "pairs"."""

    title: str
    rates: Verification
    histogram: Histogram
    resampled: str


@dataclass(frozen=True)
class ClosedSetResult:
    """Everybody enrolled with one photo, all other photos searched for.

    cmc: share of the searches whose person is among the first 1, 2, ... 20.
    """

    enrolled: int
    searches: int
    cmc: tuple[float, ...]


@dataclass(frozen=True)
class OpenSetResult:
    """Some people enrolled with one photo; strangers search too.

    searches: of enrolled people; strangers: searches of others, strangers_are: who they are.
    points: at FPIR 10 % and 1 %, where the strangers are enough to show it.
    curve: (FPIR, FNIR) from the strictest threshold on.
    """

    enrolled: int
    searches: int
    strangers: int
    strangers_are: str
    points: tuple[OpenSetPoint, ...]
    curve: tuple[tuple[float, float], ...]


def closed_set_result(found: Searches) -> ClosedSetResult:
    """The closed-set side of what searching found."""
    return ClosedSetResult(found.enrolled, len(found.mated), tuple(float(r) for r in found.cmc))


def open_set_result(found: Searches, strangers_are: str) -> OpenSetResult:
    """The open-set side of what searching found."""
    decades = np.log10(max(2, len(found.strangers)))
    steps = np.arange(int(decades * _DET_PER_DECADE), 0, -1) / _DET_PER_DECADE
    points = found.at(tuple(float(f) for f in 10**-steps))
    return OpenSetResult(
        enrolled=found.enrolled,
        searches=len(found.mated),
        strangers=len(found.strangers),
        strangers_are=strangers_are,
        points=found.points,
        curve=tuple((p.fpir, p.fnir) for p in points),
    )


@dataclass(frozen=True)
class SetResult:
    """What was measured on one set.

    name: short, of the path. kind: "pairs", "lfw", "people" or "ijb". sha256: of the file or
    of the list of what was compared; None where nothing short stands for it. how: sentences on
    the protocol. images: how many were compared. people: None where the set does not say.
    left_out: images without a face or that cannot be read. accuracy: over the set's folds.
    pairs: the set's own first. seconds: to decode and embed, and to count.
    """

    name: str
    kind: str
    path: str
    sha256: str | None
    how: tuple[str, ...]
    images: int
    people: int | None
    left_out: tuple[str, ...]
    accuracy: KFoldAccuracy | None
    pairs: tuple[PairResult, ...]
    closed_set: ClosedSetResult | None = None
    open_set: OpenSetResult | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class EvaluationReport:
    """A model on some sets.

    command: as it was started. date: ISO 8601 with the zone. facerec: the version, and git: the
    commit of its sources, None where they are in no repository.
    """

    model: ModelDescription
    sets: tuple[SetResult, ...]
    command: tuple[str, ...]
    date: str
    facerec: str
    git: str | None
    machine: str

    def to_json(self) -> str:
        """Every field as JSON, indented."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def make_report(
    model: ModelDescription, sets: Sequence[SetResult], command: Sequence[str]
) -> EvaluationReport:
    """The report of what was measured just now, here."""
    return EvaluationReport(
        model=model,
        sets=tuple(sets),
        command=tuple(command),
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        facerec=__version__,
        git=git_revision(Path(__file__).parent.parent),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    )
