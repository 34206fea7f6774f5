"""Labelled people as a set: every pair of their photos, and searches among them.

Imports the core and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec import metrics
from facerec.errors import ConfigError, ImageError
from facerec.evaluation import verify_all_pairs
from facerec.pairs import pair_scores
from facerec.types import Failure, FloatArray, RGBImage
from training.data import ChipTransform, Draw, FaceSource, FailureLog
from training.data.splits import split_fraction
from training.evaluation.identification import identify
from training.evaluation.models import Chips, Embedded, Model
from training.evaluation.results import PairResult, SetResult, histogram
from training.evaluation.sets import FAR, ImageSet, decoded

MAX_IMAGES = 12_000
"""Every pair of so many are 72 million similarities, 0.3 GB; counting takes some times as much."""
_SEED = 2007


class PeopleSet(ImageSet):
    """The images of a source, by identity. Of more than ``max_images`` some people are drawn.

    Raises ConfigError where there is no pair of the same person, or none of two.
    """

    kind = "people"

    def __init__(
        self, path: Path, name: str, source: FaceSource, max_images: int = MAX_IMAGES
    ) -> None:
        super().__init__(path, name)
        self._whole = len(source)
        self.source = some_people(source, max_images)
        counts = np.bincount(self.source.labels)
        if len(counts) < 2 or int(counts.max()) < 2:
            raise ConfigError(
                f"{path}: {len(counts)} people with at most {int(counts.max())} photos each; "
                "comparing needs two people, one of them with two photos"
            )
        self._failures = FailureLog(max(10, len(self.source) // 100))

    def __len__(self) -> int:
        return len(self.source)

    def chips(self, model: Model) -> Iterator[Chips]:
        source = self.source
        warp = ChipTransform((source.template, source.size), model.target, None)

        def load(index: int) -> RGBImage | None:
            try:
                return warp(source.chip(index), Draw(index, 0))
            except ImageError as exc:
                self._failures.add((Failure(source.name(index), "unreadable", str(exc)),))
                return None

        return decoded(len(self), load, model.target[1])

    def _kept(self, embedded: Embedded) -> tuple[FloatArray, NDArray[np.int64]]:
        """Embeddings (k, d) of the images that could be read, and their labels (k,) from 0."""
        labels = np.unique(self.source.labels[embedded.found], return_inverse=True)[1]
        if len(labels) == 0 or int(labels.max()) < 1 or int(np.bincount(labels).max()) < 2:
            raise ImageError(f"{self.path}: too few of its images can be read to compare them")
        return embedded.rows[embedded.found], labels.astype(np.int64)

    def assess(self, embedded: Embedded) -> SetResult:
        rows, labels = self._kept(embedded)
        found = np.ones(len(rows), dtype=np.bool_)
        closed_set, open_set = identify(rows, found, labels)
        people = int(labels.max()) + 1
        drawn = ""
        if len(self.source) < self._whole:
            drawn = f" People were drawn by a fixed seed from all {self._whole:,} images."
        return SetResult(
            name=self.name,
            kind=self.kind,
            path=str(self.path),
            sha256=self.source.digest(),
            how=(
                f"Every pair among {len(rows):,} images of {people:,} people.{drawn}",
                "Images that cannot be read, or in which no face was found, are left out.",
                "Intervals resample people.",
            ),
            images=len(rows),
            people=people,
            left_out=(
                *(f.source for f in self.source.failures),
                *(self.source.name(int(i)) for i in np.flatnonzero(~embedded.found)),
            ),
            accuracy=None,
            pairs=(
                PairResult(
                    "Every pair of images",
                    verify_all_pairs(rows, found, labels),
                    histogram(*pair_scores(rows, labels)),
                    "people",
                ),
            ),
            closed_set=closed_set,
            open_set=open_set,
            seconds=embedded.seconds,
        )

    def figures(self, embedded: Embedded) -> dict[str, float]:
        rows, labels = self._kept(embedded)
        genuine, impostor = pair_scores(rows, labels)
        found = np.ones(len(rows), dtype=np.bool_)
        closed_set, _ = identify(rows, found, labels)
        figures = {
            f"{self.name}_tar_at_far_{FAR:g}": metrics.tar_at_far(genuine, impostor, FAR),
            f"{self.name}_eer": metrics.eer(genuine, impostor),
        }
        if closed_set is not None:
            figures[f"{self.name}_rank_1"] = closed_set.cmc[0]
        return figures


def some_people(source: FaceSource, max_images: int) -> FaceSource:
    """All of ``source``, or whole identities of it up to ``max_images`` images, two at least.

    Which ones follows from their names, so that other people in the set change nothing.
    """
    if len(source) <= max_images:
        return source
    names = [source.identities[i] for i in range(source.num_classes)]
    order = np.argsort([split_fraction(name, _SEED) for name in names], kind="stable")
    sizes = np.cumsum(np.bincount(source.labels)[order])
    kept = order[: max(2, int(np.searchsorted(sizes, max_images, side="right")))]
    chosen = source.subset(np.flatnonzero(np.isin(source.labels, kept)))
    chosen.failures = source.failures
    return chosen
