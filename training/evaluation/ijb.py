"""IJB-B and IJB-C, 1:1 verification of templates, from the published list files.

Imports the core and NumPy. In the folder, for IJB-B ``ijbb_`` instead::

    meta/ijbc_face_tid_mid.txt        image, template, media: a line an image
    meta/ijbc_template_pair_label.txt template, template, 1 (same person) or 0
    meta/ijbc_name_5pts_score.txt     image, x y of five landmarks, detector score
    loose_crop/                       the images

The landmarks are the left and right eye, the nose, and the left and right corner of the mouth.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec.alignment import align
from facerec.errors import ConfigError
from facerec.evaluation import verify_pairs
from facerec.image import load_image
from facerec.lfw import Progress
from facerec.packs.manifest import sha256_file
from facerec.types import FloatArray, RGBImage
from training.evaluation.models import Chips, Model, unit_length
from training.evaluation.results import PairResult, SetResult, histogram
from training.evaluation.sets import EvaluationSet, decoded

WEIGHTS = ("detector", "norm")
_PAIRS_AT_ONCE = 100_000


@dataclass(frozen=True, eq=False)
class TemplateProtocol:
    """What the three files say, column-wise.

    images: (n) file names. landmarks: (n, 5, 2) pixels, xy. scores: (n,) of the detector.
    group: (n,) the media of a template that an image belongs to, 0 to g - 1. template: (g,) whose
    media a group is, 0 to t - 1. left, right: (p,) templates of each pair. same: (p,) bool.
    """

    images: list[str]
    landmarks: FloatArray
    scores: FloatArray
    group: NDArray[np.int64]
    template: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    same: NDArray[np.bool_]


def read_templates(meta: Path, prefix: str) -> TemplateProtocol:
    """The protocol in ``meta``; prefix: ijbb or ijbc. Raises ConfigError, naming file and line."""
    files = [
        meta / f"{prefix}_{name}.txt"
        for name in ("face_tid_mid", "name_5pts_score", "template_pair_label")
    ]
    images, ids = _read_media(files[0])
    points = _read_landmarks(files[1])
    for line, image in enumerate(images, 1):
        if image not in points:
            raise ConfigError(f"{files[0]}, line {line}: {image!r} has no landmarks in {files[1]}")
    values = np.array([points[image] for image in images], dtype=np.float32)
    groups, group = np.unique(ids, axis=0, return_inverse=True)
    templates, template = np.unique(groups[:, 0], return_inverse=True)
    left, right, same = _read_pairs(files[2], templates)
    return TemplateProtocol(
        images=images,
        landmarks=values[:, :10].reshape(-1, 5, 2),
        scores=values[:, 10],
        group=group.reshape(-1).astype(np.int64),
        template=template.astype(np.int64),
        left=left,
        right=right,
        same=same,
    )


def _lines(path: Path, form: str, fields: int) -> Iterator[tuple[str, list[str]]]:
    """(where, its fields) of each line. Raises ConfigError for another number of fields."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                where, parts = f"{path}, line {number}", line.split()
                if len(parts) != fields:
                    raise ConfigError(f"{where}: expected '{form}', got {line.strip()[:80]!r}")
                yield where, parts
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{path}: no such file; the template protocol needs face_tid_mid, name_5pts_score and "
            "template_pair_label in the folder meta"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc


def _read_media(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Image names (n), and their template and media (n, 2)."""
    images, ids = [], []
    for where, (image, template, media) in _lines(path, "IMAGE TEMPLATE MEDIA", 3):
        if os.path.isabs(image) or ".." in image.split("/"):  # noqa: PTH117 - a name, not a path
            raise ConfigError(f"{where}: {image!r} is no name of a file in loose_crop")
        try:
            ids.append((int(template), int(media)))
        except ValueError as exc:
            raise ConfigError(f"{where}: template and media are numbers: {exc}") from exc
        images.append(image)
    if not images:
        raise ConfigError(f"{path}: no line, where one an image is meant")
    return images, np.array(ids, dtype=np.int64)


def _read_landmarks(path: Path) -> dict[str, list[float]]:
    """Ten landmark numbers and the detector's score by image name."""
    points: dict[str, list[float]] = {}
    for where, (image, *numbers) in _lines(path, "IMAGE X Y X Y X Y X Y X Y SCORE", 12):
        try:
            values = [float(number) for number in numbers]
        except ValueError as exc:
            raise ConfigError(f"{where}: landmarks and score are numbers: {exc}") from exc
        if not np.isfinite(values).all() or len({*zip(values[:10:2], values[1:10:2])}) < 2:  # noqa: B905
            raise ConfigError(f"{where}: five points are meant, got {' '.join(numbers[:10])}")
        if points.setdefault(image, values) is not values:
            raise ConfigError(f"{where}: {image!r} is listed a second time")
    return points


def _read_pairs(
    path: Path, templates: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Left and right as indices of ``templates`` (sorted ids), and same; (p,) each.

    IJB-C has 15,658,489 lines: numpy reads them, and only a file that it refuses is walked line
    by line, to say which is wrong.
    """
    form = "TEMPLATE TEMPLATE LABEL"
    try:
        table = np.loadtxt(path, dtype=np.int64, comments=None, ndmin=2)
        if table.shape[1:] != (3,):
            raise ValueError(f"{table.shape[1:]} columns")
    except (OSError, ValueError) as exc:
        for where, fields in _lines(path, form, 3):
            if not all(field.lstrip("-").isdecimal() for field in fields):
                raise ConfigError(f"{where}: expected '{form}', got {' '.join(fields)!r}") from exc
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    wrong = np.flatnonzero((table[:, 2] != 0) & (table[:, 2] != 1))
    if wrong.size:
        where = _where(path, int(wrong[0]))
        raise ConfigError(f"{where}: the label is 1 or 0, got {table[wrong[0], 2]}")
    at = np.searchsorted(templates, table[:, :2]).clip(max=len(templates) - 1)
    unknown = np.argwhere(templates[at] != table[:, :2])
    if unknown.size:
        row, column = unknown[0]
        raise ConfigError(
            f"{_where(path, int(row))}: template {table[row, column]} has no image in face_tid_mid"
        )
    same = table[:, 2] == 1
    if same.all() or not same.any():
        raise ConfigError(
            f"{path}: {int(same.sum()):,} of {len(same):,} pairs are genuine; both kinds are needed"
        )
    return at[:, 0].astype(np.int32), at[:, 1].astype(np.int32), same


def _where(path: Path, row: int) -> str:
    """The line of a row, of which numpy has not counted empty lines."""
    with path.open(encoding="utf-8") as stream:
        filled = (number for number, line in enumerate(stream, 1) if line.strip())
        return f"{path}, line {next(islice(filled, row, None))}"


def people_of(protocol: TemplateProtocol) -> NDArray[np.int64]:
    """Whom each template shows, (t,): templates that genuine pairs join are one person's.

    The files name no people; a person whose templates no genuine pair joins counts as several.
    """
    count = int(protocol.template.max()) + 1
    parent = list(range(count))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for left, right in zip(
        protocol.left[protocol.same].tolist(), protocol.right[protocol.same].tolist(), strict=True
    ):
        parent[root(left)] = root(right)
    return np.unique([root(at) for at in range(count)], return_inverse=True)[1].astype(np.int64)


class IjbSet(EvaluationSet):
    """An IJB-B or IJB-C folder. weights: of the images in their template, from ``WEIGHTS``.

    A template's feature is the mean over the images of each media (a still, or all frames of a
    video), summed over its media, at unit length. Before that an image's embedding is multiplied by
    its detector score ("detector"), and keeps its own length ("norm") or gets unit length. The
    default is both, with flip averaging, as InsightFace's evaluation has it (N1 D1 F2), after
    Whitelam et al. 2017 and Maze et al. 2018; ``()`` weighs all images of a media alike.
    """

    kind = "ijb"

    def __init__(self, path: Path, prefix: str, weights: Iterable[str] = WEIGHTS) -> None:
        super().__init__(path, prefix)
        self.weights = frozenset(weights)
        unknown = self.weights - set(WEIGHTS)
        if unknown:
            raise ConfigError(f"weights: {', '.join(WEIGHTS)} or none, got {', '.join(unknown)}")
        self.protocol = read_templates(path / "meta", prefix)
        self._folder = path / "loose_crop"
        self._require_images()

    def _require_images(self) -> None:
        try:
            here = set(os.listdir(self._folder))  # noqa: PTH208 - half a million names
        except OSError as exc:
            raise ConfigError(f"{self._folder}: cannot be read: {exc.strerror}") from exc
        names = self.protocol.images
        missing = [n for n in names if n not in here and not (self._folder / n).is_file()]
        if missing:
            raise ConfigError(
                f"{len(missing):,} of the {len(names):,} images of the protocol are missing, first "
                f"{self._folder / missing[0]}"
            )

    def __len__(self) -> int:
        return len(self.protocol.images)

    def chips(self, model: Model) -> Iterator[Chips]:
        template, size = model.target

        def load(index: int) -> RGBImage:
            path = self._folder / self.protocol.images[index]
            chip: RGBImage = align(
                load_image(path), self.protocol.landmarks[index : index + 1], template, size
            )[0]
            return chip

        return decoded(len(self), load, size)

    def template_features(self, model: Model, progress: Progress | None = None) -> FloatArray:
        """(t, d) float32 of unit length. Only sums a media are kept, not an embedding an image."""
        protocol, at = self.protocol, 0
        sums = np.zeros((len(protocol.template), model.describe.dim), np.float32)
        for batch in self.chips(model):
            rows = model.features(batch.chips)
            stop = at + len(rows)
            if "norm" not in self.weights:
                rows = unit_length(rows, model.describe.name)
            if "detector" in self.weights:
                rows = rows * protocol.scores[at:stop, None]
            np.add.at(sums, protocol.group[at:stop], rows)
            at = stop
            if progress is not None:
                progress(at, len(self))
        means = sums / np.bincount(protocol.group)[:, None].astype(np.float32)
        features = np.zeros((int(protocol.template.max()) + 1, sums.shape[1]), np.float32)
        np.add.at(features, protocol.template, means)
        return unit_length(features, model.describe.name)

    def measure(self, model: Model, progress: Progress | None = None) -> SetResult:
        began = time.perf_counter()
        features = self.template_features(model, progress)
        return self._assess(features, time.perf_counter() - began)

    def _assess(self, features: FloatArray, seconds: float) -> SetResult:
        protocol = self.protocol
        left, right, same = protocol.left, protocol.right, protocol.same
        scores = np.concatenate(
            [
                np.einsum("ij,ij->i", features[left[part]], features[right[part]]).clip(-1, 1)
                for start in range(0, len(left), _PAIRS_AT_ONCE)
                for part in (slice(start, start + _PAIRS_AT_ONCE),)
            ]
        )
        people = people_of(protocol)
        rates = verify_pairs(
            scores[same],
            scores[~same],
            genuine_subjects=people[left[same]],
            impostor_subjects=np.stack((people[left[~same]], people[right[~same]]), axis=1),
        )
        title, weights = "The protocol's pairs of templates", ", ".join(sorted(self.weights))
        return SetResult(
            name=self.name,
            kind=self.kind,
            path=str(self.path),
            sha256=self._digest(),
            how=(
                (
                    f"1:1 protocol: {len(self):,} images of {len(features):,} templates, "
                    f"{len(same):,} pairs, aligned by the landmarks of the lists."
                ),
                (
                    "A template is the mean of the images of each media, summed over its media; "
                    f"images are weighted by: {weights or 'nothing'}."
                ),
                "Intervals resample people: templates that genuine pairs join are one person's.",
            ),
            images=len(self),
            people=int(people.max()) + 1,
            left_out=(),
            accuracy=None,
            pairs=(PairResult(title, rates, histogram(scores[same], scores[~same]), "people"),),
            seconds=seconds,
        )

    def _digest(self) -> str:
        """SHA-256 over those of the three list files."""
        names = ("face_tid_mid", "name_5pts_score", "template_pair_label")
        files = [self.path / "meta" / f"{self.name}_{name}.txt" for name in names]
        return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
