"""Measure a model pack: LFW's protocol, every pair of its photos, and an open-set search.

What the numbers mean, and how far to trust them, is told in docs/evaluation.md; their text
form is ``facerec.reporting``. Imports the core and numpy only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec.embedded import embed_photos
from facerec.errors import ImageError
from facerec.identification import OpenSet, open_set
from facerec.intervals import Interval, ListTooShort, bootstrap_tar, bootstrap_tar_all_pairs
from facerec.lfw import (
    PAIRS_FILE,
    Progress,
    Protocol,
    find_photos,
    read_protocol,
)
from facerec.metrics import (
    DECADES,
    MIN_IMPOSTORS,
    KFoldAccuracy,
    OperatingPoint,
    Scores,
    allowed_count,
    auc,
    eer,
    kfold_accuracy,
    operating_points,
    tar_at_fars,
    threshold_for_fmr,
)
from facerec.pairs import genuine_subjects, pair_scores, top_impostors
from facerec.pipeline import Pipeline
from facerec.types import FloatArray, ThresholdTable

LFW_VIEW_2 = "LFW View 2"
"""What a report calls the data of that protocol."""
_SEED = 2007
"""Of the bootstrap: the same scores give the same intervals."""
_MAX_FAR = 1e-2
"""Above it, no interval: it would take millions of pairs, for a rate that nobody runs at."""
_MIN_PEOPLE = 10
"""Below it, no interval: a bootstrap of so few people says nothing."""
_CLOSEST = 20
_PER_DECADE = 60
"""Points of a curve."""


@dataclass(frozen=True)
class Point:
    """An operating point with the 95 % interval of its FNMR, people resampled; None if too few."""

    point: OperatingPoint
    fnmr_interval: Interval | None


@dataclass(frozen=True)
class Curve:
    """A ROC at given FARs, ascending to (1, 1): steps, not joined; see :func:`metrics.tar_at_fars`.

    genuine, impostor: how many pairs it rests on.
    """

    far: tuple[float, ...]
    tar: tuple[float, ...]
    genuine: int
    impostor: int


@dataclass(frozen=True)
class Verification:
    """Error rates of one set of pairs. ``points``: by falling FMR; some may be unmeasurable."""

    eer: float
    auc: float
    points: tuple[Point, ...]
    curve: Curve


@dataclass(frozen=True)
class ClosePair:
    """Two photos of different names, and their similarity."""

    photo: str
    other: str
    cosine: float


@dataclass(frozen=True)
class LfwReport:
    """What :func:`evaluate_lfw` measured.

    data: the name of the data. missed: photos in which no face was found. protocol: the
    protocol's own pairs. all_pairs: every pair among the photos. closest: the photos of
    two names that are most alike, where wrong labels show first. seconds: to find and embed the
    faces; all else in the report does not depend on the machine, but for rounding.
    """

    pack: str
    contract_id: str
    data: str
    photos: int
    people: int
    missed: tuple[str, ...]
    accuracy: KFoldAccuracy
    protocol: Verification
    all_pairs: Verification
    open_set: OpenSet | None
    closest: tuple[ClosePair, ...]
    seconds: float

    @property
    def thresholds(self) -> ThresholdTable | None:
        """The measurable thresholds of ``all_pairs``, for the pack; None if fewer than two."""
        rows = [p.point for p in self.all_pairs.points if p.point.is_measured]
        if len(rows) < 2:
            return None
        curve = self.all_pairs.curve
        return ThresholdTable(
            fmr=tuple(row.fmr for row in rows),
            cosine=tuple(row.cosine for row in rows),
            fnmr=tuple(row.fnmr for row in rows),
            measured_on=(
                f"{self.data}: every pair among its {self.photos:,} photos of {self.people:,} "
                f"people, {curve.genuine:,} genuine and {curve.impostor:,} impostor; "
                f"facerec evaluate lfw DIR --pack {self.pack}"
            ),
        )

    def to_json(self) -> str:
        """Every field as JSON, indented."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def evaluate_lfw(
    pipeline: Pipeline,
    folder: Path,
    *,
    pairs_file: Path | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    embeddings_file: Path | None = None,
) -> LfwReport:
    """Run ``pipeline`` over the photos of LFW, or of any data in its layout, and measure it.

    folder: DIR with DIR/NAME/NAME_0001.jpg. pairs_file: default DIR/pairs.txt.
    progress(done, total) is called after each batch and may raise to stop; nothing is written
    then. embeddings_file: an .npz to keep the embeddings in; where it exists and was
    made by the same pack, version of facerec and list of photos, they are read instead of
    computed. Raises ConfigError for a protocol, folder or embeddings file that is wrong, and
    ImageError for a photo that cannot be read.
    """
    protocol = read_protocol(pairs_file or folder / PAIRS_FILE)
    paths = find_photos(protocol, folder)
    embedded = embed_photos(
        pipeline,
        paths,
        protocol.sha256,
        batch_size=batch_size,
        progress=progress,
        kept_in=embeddings_file,
    )
    return assess(
        protocol,
        embedded.rows,
        embedded.found,
        pack=pipeline.pack.name,
        contract_id=pipeline.contract.contract_id,
        data=LFW_VIEW_2 if protocol.is_lfw_view_2 else f"{folder.resolve().name} (LFW layout)",
        seconds=embedded.seconds,
    )


def assess(
    protocol: Protocol,
    embeddings: FloatArray,
    found: NDArray[np.bool_],
    *,
    pack: str,
    contract_id: str,
    data: str,
    seconds: float,
) -> LfwReport:
    """The report on embeddings (n, d) of ``protocol.photos``; rows without ``found`` are ignored.

    A photo without a face matches nobody: every pair with it has similarity -1. A genuine
    pair thereby counts as an error and an impostor pair as rightly refused, as in use.
    Raises ImageError where too few faces were found to measure anything.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(protocol.photos) or found.shape != (len(rows),):
        raise ValueError(f"expected (n, d), (n,) for {len(protocol.photos)} photos: {rows.shape}")
    labels = protocol.labels
    if len(np.unique(labels[found])) < 2:
        raise ImageError(
            f"{data}: faces of {len(np.unique(labels[found]))} people were found in "
            f"{len(rows):,} photos; nothing can be compared"
        )
    scores = pair_similarities(rows, found, protocol.left, protocol.right)
    names = [f"{name}_{number:04d}" for name, number in protocol.photos]
    return LfwReport(
        pack=pack,
        contract_id=contract_id,
        data=data,
        photos=len(rows),
        people=int(labels.max()) + 1,
        missed=tuple(np.array(names)[~found].tolist()),
        accuracy=kfold_accuracy(scores, protocol.same, protocol.fold),
        protocol=_verify_protocol(protocol, scores, labels),
        all_pairs=verify_all_pairs(rows, found, labels),
        open_set=open_set(rows, found, labels),
        closest=_closest(rows[found], labels[found], np.array(names)[found].tolist()),
        seconds=seconds,
    )


def pair_similarities(
    rows: FloatArray,
    found: NDArray[np.bool_],
    left: NDArray[np.intp],
    right: NDArray[np.intp],
) -> FloatArray:
    """Cosine (p,) of the pairs (left, right) of unit rows (n, d); -1 where a face was not found.

    found: (n,) bool. left, right: (p,) indices of rows.
    """
    scores: FloatArray = np.einsum("ij,ij->i", rows[left], rows[right]).clip(-1, 1)
    scores[~(found[left] & found[right])] = -1
    return scores


def verify_pairs(
    genuine: Scores,
    impostor: Scores,
    *,
    genuine_subjects: NDArray[np.int64] | None = None,
    impostor_subjects: NDArray[np.int64] | None = None,
) -> Verification:
    """Error rates of a list of pairs. FARs that allow no impostor at all are left out.

    genuine: (g,). impostor: (n,). genuine_subjects: (g,) and impostor_subjects: (n, 2), whom the
    pairs show: intervals resample people then, given ten of them. Without, intervals resample
    pairs, and are too narrow where pairs share people.
    """
    fars = [far for far in DECADES if allowed_count(len(impostor), far) > 0]
    if genuine_subjects is None or impostor_subjects is None:
        units = min(len(genuine), len(impostor))
    else:
        units = len(np.union1d(genuine_subjects, impostor_subjects))
    intervals: tuple[Interval, ...] = ()
    if units >= _MIN_PEOPLE and fars:
        intervals = bootstrap_tar(
            genuine,
            impostor,
            fars,
            genuine_subjects=genuine_subjects,
            impostor_subjects=impostor_subjects,
            seed=_SEED,
        )
    return _verification(genuine, impostor, fars, dict(zip(fars, intervals, strict=False)))


def _verify_protocol(
    protocol: Protocol, scores: FloatArray, labels: NDArray[np.int64]
) -> Verification:
    """The protocol's own pairs."""
    same = protocol.same
    pairs = np.stack((labels[protocol.left], labels[protocol.right]), axis=1)
    return verify_pairs(
        scores[same],
        scores[~same],
        genuine_subjects=pairs[same, 0],
        impostor_subjects=pairs[~same],
    )


def verify_all_pairs(
    rows: FloatArray, found: NDArray[np.bool_], labels: NDArray[np.int64]
) -> Verification:
    """Error rates of every pair among the photos; intervals resample people.

    rows: (n, d) float32 unit embeddings. labels: (n,) integers from 0. Photos without ``found``
    (n,) count as genuine pairs at -1 and as no impostor pair.
    """
    rows, seen = rows[found], labels[found]
    genuine, impostor = pair_scores(rows, seen)
    lost = np.bincount(genuine_subjects(labels), minlength=labels.max() + 1)
    lost -= np.bincount(genuine_subjects(seen), minlength=labels.max() + 1)
    genuine = np.concatenate((genuine, np.full(lost.sum(), -1, np.float32)))
    subjects = np.concatenate((genuine_subjects(seen), np.repeat(np.arange(len(lost)), lost)))

    def bootstrap(threshold: float) -> tuple[Interval, ...]:
        top = top_impostors(rows, seen, threshold)
        return bootstrap_tar_all_pairs(genuine, subjects, top, fars, seed=_SEED)

    count = len(impostor)
    fars = [f for f in DECADES if f <= _MAX_FAR and allowed_count(count, f) >= MIN_IMPOSTORS]
    intervals: tuple[Interval, ...] = ()
    if fars and len(np.unique(labels)) >= _MIN_PEOPLE:
        try:
            intervals = bootstrap(threshold_for_fmr(impostor, 2 * max(fars)))
        except ListTooShort:  # few people have most of the photos
            intervals = bootstrap(-1)
    return _verification(genuine, impostor, DECADES, dict(zip(fars, intervals, strict=False)))


def _verification(
    genuine: Scores, impostor: Scores, fars: Sequence[float], tars: dict[float, Interval]
) -> Verification:
    grid = 10 ** -np.arange(1 / _PER_DECADE, math.log10(len(impostor)), 1 / _PER_DECADE)[::-1]
    curve = tar_at_fars(genuine, impostor, grid)
    points = []
    for point in operating_points(genuine, impostor, fars):
        tar = tars.get(point.fmr)
        fnmr = tar and Interval(1 - tar.high, 1 - tar.low, tar.confidence)
        points.append(Point(point, fnmr))
    return Verification(
        eer=eer(genuine, impostor),
        auc=auc(genuine, impostor),
        points=tuple(points),
        curve=Curve(
            far=(*(round(float(f), 9) for f in grid), 1.0),
            tar=(*(round(float(t), 6) for t in curve), 1.0),
            genuine=len(genuine),
            impostor=len(impostor),
        ),
    )


def _closest(
    rows: FloatArray, labels: NDArray[np.int64], names: list[str]
) -> tuple[ClosePair, ...]:
    _, impostor = pair_scores(rows, labels)
    at = max(0, len(impostor) - _CLOSEST)
    top = top_impostors(rows, labels, float(np.partition(impostor, at)[at]))
    return tuple(
        ClosePair(names[a], names[b], float(score))
        for score, (a, b) in zip(top.scores[:_CLOSEST], top.rows, strict=False)
    )
