"""Sets that verification is measured on: ``.bin`` files and folders in LFW's layout.

Imports the core and NumPy; :mod:`training.evaluation.people` and
:mod:`training.evaluation.ijb` hold the other two kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec import metrics
from facerec.alignment import align
from facerec.errors import ConfigError, ImageError
from facerec.evaluation import assess, pair_similarities, verify_pairs
from facerec.lfw import PAIRS_FILE, Progress, central_faces, find_photos, read_protocol
from facerec.packs.manifest import sha256_file
from facerec.pairs import pair_scores
from facerec.types import FloatArray, RGBImage
from training.data import ChipTransform, Draw, VerificationSet, read_verification_bin
from training.evaluation.identification import identify
from training.evaluation.models import Chips, Embedded, Model, embed_chips
from training.evaluation.results import PairResult, SetResult, histogram

FOLDS = 10
FAR = 1e-3
"""Of the true-accept rate that is followed during training."""
_AHEAD = 64
_DECODERS = 2


class EvaluationSet(ABC):
    """Images, and what is asked about them. name: short, for figures: ``agedb_30``."""

    kind: str

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def chips(self, model: Model) -> Iterator[Chips]:
        """The images in order, as ``model`` takes them. Raises ImageError."""

    @abstractmethod
    def measure(self, model: Model, progress: Progress | None = None) -> SetResult:
        """Embed the images and count. progress(images done, in all) may raise to stop."""


class ImageSet(EvaluationSet):
    """A set whose images are compared one by one."""

    @abstractmethod
    def assess(self, embedded: Embedded) -> SetResult:
        """The whole result from the embeddings of the images."""

    @abstractmethod
    def figures(self, embedded: Embedded) -> dict[str, float]:
        """The few figures that are followed during training, by name; the main one first."""

    def measure(self, model: Model, progress: Progress | None = None) -> SetResult:
        return self.assess(embed_chips(model, self.chips(model), len(self), progress))


def decoded(count: int, load: Callable[[int], RGBImage | None], size: int) -> Iterator[Chips]:
    """``load(index)`` for each index in order, some batches at a time in threads.

    A chip is (size, size, 3); None stands for an image that has none. While one batch is used the
    next is decoded.
    """
    starts = range(0, count, _AHEAD)
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        try:
            ahead = [pool.submit(load, i) for i in range(min(_AHEAD, count))]
            for start in starts:
                now, stop = ahead, min(start + 2 * _AHEAD, count)
                ahead = [pool.submit(load, i) for i in range(start + _AHEAD, stop)]
                found = [future.result() for future in now]
                kept = [chip for chip in found if chip is not None]
                present = np.array([chip is not None for chip in found])
                chips = np.stack(kept) if kept else np.zeros((0, size, size, 3), np.uint8)
                yield Chips(chips, present)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class PairSet(ImageSet):
    """A ``.bin`` file: pairs of aligned chips, in ten folds as they come.

    template: how the chips are aligned; their size is the images' own. Raises ConfigError for a
    file that is none, or with which nothing can be measured. Embeddings: one an image.
    """

    kind = "pairs"

    def __init__(self, path: Path, name: str, template: str = "arcface-112") -> None:
        super().__init__(path, name)
        self.template = template
        self.same = read_verification_bin(path).same
        genuine = int(self.same.sum())
        if len(self.same) < FOLDS or not 0 < genuine < len(self.same):
            raise ConfigError(
                f"{path}: {genuine} genuine and {len(self.same) - genuine} impostor pairs; "
                f"accuracy over {FOLDS} folds needs {FOLDS} pairs, some of each kind"
            )

    def __len__(self) -> int:
        return 2 * len(self.same)

    @property
    def folds(self) -> NDArray[np.intp]:
        """(p,) the fold of each pair: ten equal parts in order, the first ones larger by one."""
        sizes = [len(part) for part in np.array_split(self.same, FOLDS)]
        return np.repeat(np.arange(FOLDS), sizes)

    def chips(self, model: Model) -> Iterator[Chips]:
        pairs = read_verification_bin(self.path)
        warps: dict[int, ChipTransform] = {}
        return decoded(
            len(self), lambda index: self._chip(pairs, index, model, warps), model.target[1]
        )

    def _chip(
        self, pairs: VerificationSet, index: int, model: Model, warps: dict[int, ChipTransform]
    ) -> RGBImage:
        image = pairs.image(index)
        height, width = image.shape[:2]
        if height != width:
            raise ImageError(
                f"{self.path}, image {index}: {width}x{height} pixels, where aligned square chips "
                "are meant"
            )
        if height not in warps:
            warps[height] = ChipTransform((self.template, height), model.target, None)
        return warps[height](image, Draw(index, 0))

    def _scores(self, embedded: Embedded) -> FloatArray:
        left = np.arange(0, len(self), 2)
        return pair_similarities(embedded.rows, embedded.found, left, left + 1)

    def assess(self, embedded: Embedded) -> SetResult:
        scores, same = self._scores(embedded), self.same
        pairs = PairResult(
            "The file's pairs",
            verify_pairs(scores[same], scores[~same]),
            histogram(scores[same], scores[~same]),
            "pairs",
        )
        return SetResult(
            name=self.name,
            kind=self.kind,
            path=str(self.path),
            sha256=sha256_file(self.path),
            how=(
                f"{len(same):,} pairs of chips aligned to {self.template}, compared by cosine.",
                (
                    f"Accuracy: {FOLDS} folds in the file's order; the threshold that is best on "
                    "the other nine decides each."
                ),
                (
                    "Intervals resample pairs: the file does not say whom they show. They are too "
                    "narrow where pairs share people."
                ),
            ),
            images=len(self),
            people=None,
            left_out=(),
            accuracy=metrics.kfold_accuracy(scores, same, self.folds),
            pairs=(pairs,),
            seconds=embedded.seconds,
        )

    def figures(self, embedded: Embedded) -> dict[str, float]:
        scores, same = self._scores(embedded), self.same
        return {
            f"{self.name}_accuracy": metrics.kfold_accuracy(scores, same, self.folds).mean,
            f"{self.name}_tar_at_far_{FAR:g}": metrics.tar_at_far(scores[same], scores[~same], FAR),
            f"{self.name}_eer": metrics.eer(scores[same], scores[~same]),
        }


class LfwSet(ImageSet):
    """Photos in LFW's layout with ``pairs.txt``; of each the face nearest the centre counts.

    Raises ConfigError for a protocol that is wrong and for photos that are missing.
    """

    kind = "lfw"

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.protocol = read_protocol(path / PAIRS_FILE)
        self._photos = find_photos(self.protocol, path)

    def __len__(self) -> int:
        return len(self._photos)

    def chips(self, model: Model) -> Iterator[Chips]:
        template, size = model.target
        for images, faces in central_faces(model.detector, self._photos):
            chips = [
                align(image, face.landmarks, template, size)
                for image, face in zip(images, faces, strict=True)
            ]
            yield Chips(np.concatenate(chips), np.array([len(c) > 0 for c in chips]))

    def assess(self, embedded: Embedded) -> SetResult:
        rows, found, protocol = embedded.rows, embedded.found, self.protocol
        report = assess(
            protocol,
            rows,
            found,
            pack="",
            contract_id="",
            data="LFW View 2" if protocol.is_lfw_view_2 else f"{self.path.name} (LFW layout)",
            seconds=embedded.seconds,
        )
        scores = pair_similarities(rows, found, protocol.left, protocol.right)
        own = histogram(scores[protocol.same], scores[~protocol.same])
        every = histogram(*pair_scores(rows[found], protocol.labels[found]))
        closed_set, open_set = identify(rows, found, protocol.labels)
        return SetResult(
            name=self.name,
            kind=self.kind,
            path=str(self.path),
            sha256=protocol.sha256,
            how=(
                (
                    f"{report.data}: {len(scores):,} pairs in {protocol.folds} folds, from photos; "
                    "of each photo the face nearest the centre."
                ),
                "A photo without a face matches nobody: its genuine pairs are errors.",
                "Intervals resample people.",
            ),
            images=report.photos,
            people=report.people,
            left_out=report.missed,
            accuracy=report.accuracy,
            pairs=(
                PairResult("The protocol's pairs", report.protocol, own, "people"),
                PairResult("Every pair among the photos", report.all_pairs, every, "people"),
            ),
            closed_set=closed_set,
            open_set=open_set,
            seconds=embedded.seconds,
        )

    def figures(self, embedded: Embedded) -> dict[str, float]:
        rows, found, protocol = embedded.rows, embedded.found, self.protocol
        scores = pair_similarities(rows, found, protocol.left, protocol.right)
        accuracy = metrics.kfold_accuracy(scores, protocol.same, protocol.fold)
        genuine, impostor = pair_scores(rows[found], protocol.labels[found])
        return {
            f"{self.name}_accuracy": accuracy.mean,
            f"{self.name}_tar_at_far_{FAR:g}": metrics.tar_at_far(genuine, impostor, FAR),
            f"{self.name}_eer": metrics.eer(genuine, impostor),
        }
