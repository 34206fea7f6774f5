"""Open-set error as a gallery grows: misses and false alarms among 10, 30, 100, ... people.

Also how far the first approximation FPIR = 1 - (1 - FMR)^N holds, by which a threshold is chosen
for a gallery's size. What the numbers mean is told in docs/evaluation.md; their text form is
``facerec.reporting``. Imports the core and numpy only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec.embedded import embed_photos
from facerec.errors import ConfigError, ImageError
from facerec.folders import list_identities
from facerec.identification import (
    FPIRS,
    Rows,
    Searches,
    choose_strangers,
    first_photos,
    search,
    single_photos,
)
from facerec.lfw import Progress
from facerec.metrics import MIN_IMPOSTORS
from facerec.pipeline import Pipeline
from facerec.types import FloatArray, ThresholdTable

RANKS = (1, 5)
DRAWS = 20
SEED = 2007
_STEPS = (1, 3)  # of a decade


@dataclass(frozen=True)
class Spread:
    """One figure over several draws. std: with divisor n - 1; None of a single draw."""

    mean: float
    std: float | None
    low: float
    high: float


@dataclass(frozen=True)
class MeasuredRate:
    """FNIR where each draw's own strangers set the threshold for ``fpir``."""

    fpir: float
    threshold: Spread
    fnir: Spread


@dataclass(frozen=True)
class PredictedRate:
    """What the pack's threshold table gives for a target ``fpir``, by FPIR = 1 - (1 - FMR)^N.

    fmr, threshold: what the approximation asks for and the table answers. measured_fpir, fnir:
    the rates that strangers and enrolled people then had.
    """

    fpir: float
    fmr: float
    threshold: float
    measured_fpir: Spread
    fnir: Spread


@dataclass(frozen=True)
class GallerySize:
    """Error rates among ``enrolled`` people. searches: of enrolled people, mean over draws.

    hit_rates: (rank, share of searches whose person is among the first ``rank``). predicted:
    empty without a threshold table; a rate that the table does not reach is left out.
    """

    enrolled: int
    searches: float
    hit_rates: tuple[tuple[int, Spread], ...]
    measured: tuple[MeasuredRate, ...]
    predicted: tuple[PredictedRate, ...]


@dataclass(frozen=True)
class GrowthReport:
    """What :func:`evaluate_identification` measured.

    enrollable: people who can be enrolled and searched for. strangers: searches of people who
    are never enrolled, the same at every size; strangers_are: who they are. missed: photos in
    which no face was found. thresholds_from: what the pack's table was measured on.
    """

    pack: str
    contract_id: str
    data: str
    photos: int
    people: int
    enrollable: int
    strangers: int
    strangers_are: str
    missed: tuple[str, ...]
    draws: int
    seed: int
    thresholds_from: str | None
    sizes: tuple[GallerySize, ...]
    seconds: float

    def to_json(self) -> str:
        """Every field as JSON, indented."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def evaluate_identification(
    pipeline: Pipeline,
    folder: Path,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
    progress: Progress | None = None,
    embeddings_file: Path | None = None,
) -> GrowthReport:
    """Measure ``pipeline`` on the people of ``folder``, DIR/NAME/photo.jpg.

    sizes: of the gallery, in people; default 10, 30, 100, ... and everybody. progress and
    embeddings_file: see :func:`facerec.embedded.embed_photos`. Raises ConfigError for a folder,
    size or number of draws that will not do, ImageError for a photo that cannot be read.
    """
    listing = list_identities(folder)
    paths = [listing.root / path for path in listing.paths]
    digest = hashlib.sha256("\n".join(listing.paths).encode("utf-8", "surrogateescape"))
    labels = np.array(listing.identity, dtype=np.int64)
    _check(labels, sizes, draws, folder)
    embedded = embed_photos(
        pipeline, paths, digest.hexdigest(), progress=progress, kept_in=embeddings_file
    )
    missed = np.array(listing.paths)[~embedded.found].tolist()
    strangers, who = choose_strangers(labels)
    enrollable = enrollable_people(embedded.found, labels, strangers)
    if not len(enrollable):
        raise ImageError(f"{folder}: no face was found in the photos of anybody who has two")
    return GrowthReport(
        pack=pipeline.pack.name,
        contract_id=pipeline.contract.contract_id,
        data=folder.resolve().name,
        photos=len(paths),
        people=len(listing.names),
        enrollable=len(enrollable),
        strangers=int(strangers.sum()),
        strangers_are=who,
        missed=tuple(missed),
        draws=draws,
        seed=seed,
        thresholds_from=pipeline.thresholds.measured_on if pipeline.thresholds else None,
        sizes=grow(
            embedded.rows,
            embedded.found,
            labels,
            strangers,
            sizes=usual_sizes(len(enrollable)) if sizes is None else sizes,
            draws=draws,
            seed=seed,
            table=pipeline.thresholds,
        ),
        seconds=embedded.seconds,
    )


def _check(
    labels: NDArray[np.int64], sizes: Sequence[int] | None, draws: int, folder: Path
) -> None:
    """Before hours of embedding: whether there is anything to measure."""
    strangers, _ = choose_strangers(labels)
    most = len(np.unique(labels[~strangers & ~single_photos(labels)]))
    if draws < 1:
        raise ConfigError(f"draws: at least 1, got {draws}")
    if not most or not strangers.any():
        raise ConfigError(
            f"{folder}: open-set search needs two people with two photos each, one to enrol and "
            "one to search for, and others who are strangers"
        )
    for size in sizes or ():
        if not 1 <= size <= most:
            raise ConfigError(
                f"{folder}: a gallery of {size} people; from 1 to {most} can be enrolled here "
                "(people with two or more photos, strangers kept aside)"
            )


def usual_sizes(people: int) -> tuple[int, ...]:
    """10, 30, 100, 300, ... below ``people``, and all of them."""
    decades = (10**power for power in range(1, len(str(people)) + 1))
    return (*(n * step for n in decades for step in _STEPS if n * step < people), people)


def enrollable_people(
    found: NDArray[np.bool_], labels: NDArray[np.int64], strangers: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Labels of those with two or more photos, a face in one, who are no strangers."""
    return np.unique(labels[found & ~strangers & ~single_photos(labels)])


def grow(
    rows: FloatArray,
    found: NDArray[np.bool_],
    labels: NDArray[np.int64],
    strangers: NDArray[np.bool_],
    *,
    sizes: Sequence[int],
    draws: int,
    seed: int,
    table: ThresholdTable | None,
) -> tuple[GallerySize, ...]:
    """Error rates at each of ``sizes``, over ``draws`` galleries that grow from size to size.

    rows: (n, d) unit embeddings. found: (n,) bool. labels: (n,) integers from 0. strangers:
    (n,) bool, photos of people who are never enrolled. Sizes that are more than the people whose
    face was found count as all of them. The same seed gives the same draws.
    """
    outside = np.flatnonzero(strangers)
    everybody = [
        draw_enrolled(found, labels, strangers, np.random.default_rng((seed, draw)))
        for draw in range(draws)
    ]
    results = []
    for size in sorted({min(size, len(everybody[0])) for size in sizes}):
        searches = []
        for enrolled in everybody:
            some = enrolled[:size]
            mated = np.setdiff1d(np.flatnonzero(np.isin(labels, labels[some])), some)
            searches.append(search(rows, found, labels, some, mated, outside))
        results.append(summarise(searches, table))
    return tuple(results)


def draw_enrolled(
    found: NDArray[np.bool_],
    labels: NDArray[np.int64],
    strangers: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Rows:
    """One photo of everybody who can be enrolled, in random order: rows (people,).

    Of each person a photo with a face is drawn; the first n of the result are a gallery of n
    people, which grows with n.
    """
    people = enrollable_people(found, labels, strangers)
    candidates = rng.permutation(np.flatnonzero(found & np.isin(labels, people)))
    return rng.permutation(first_photos(candidates, labels))


def summarise(searches: Sequence[Searches], table: ThresholdTable | None) -> GallerySize:
    """The figures of several draws of one size."""
    enrolled = searches[0].enrolled
    by_draw = [s.points for s in searches]
    measured = tuple(
        MeasuredRate(
            points[0].fpir,
            threshold=_spread([p.threshold for p in points]),
            fnir=_spread([p.fnir for p in points]),
        )
        for points in zip(*by_draw, strict=True)
    )
    return GallerySize(
        enrolled=enrolled,
        searches=float(np.mean([len(s.mated) for s in searches])),
        hit_rates=tuple(
            (rank, _spread([float((s.ranks <= rank).mean()) for s in searches])) for rank in RANKS
        ),
        measured=measured,
        predicted=_predicted(searches, enrolled, table) if table else (),
    )


def _predicted(
    searches: Sequence[Searches], enrolled: int, table: ThresholdTable
) -> tuple[PredictedRate, ...]:
    rates = []
    for fpir in FPIRS:
        fmr = table.fmr_for_fpir(fpir, enrolled)
        try:
            threshold = table.cosine_at(fmr)
        except ValueError:  # beyond what was measured
            continue
        points = [s.at_threshold(threshold, fpir) for s in searches]
        rates.append(
            PredictedRate(
                fpir,
                fmr,
                threshold,
                measured_fpir=_spread([p.false_positives / p.nonmated for p in points]),
                fnir=_spread([p.fnir for p in points]),
            )
        )
    return tuple(rates)


def _spread(values: Sequence[float]) -> Spread:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, float(min(values)), float(max(values)))


def fewest_strangers(fpir: float) -> int:
    """Searches of strangers that it takes to show ``fpir``."""
    return round(MIN_IMPOSTORS / fpir)
