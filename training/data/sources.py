"""A labelled set of aligned chips, whatever it is stored in. Imports the core and NumPy."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.alignment import find_template
from facerec.errors import ConfigError, ImageError
from facerec.image import load_image
from facerec.types import Failure, RGBImage


class FaceSource(ABC):
    """n aligned chips of C identities, random access; no image is held in memory.

    labels: (n,) int64, each of 0..C-1 occurs. identities: C names, in the order of the labels.
    template, size: how the chips are aligned. origin: what to call the set in a message.
    failures: what of the set could not be taken in when it was opened; of a subset, that of the
    whole set.

    An instance may be pickled, forked into workers and read from several threads.
    """

    labels: NDArray[np.int64]
    identities: Sequence[str]
    template: str
    size: int
    origin: str
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.identities)

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The stored bytes of an image. Raises ImageError where they cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message: a path, or a file and a record."""

    def chip(self, index: int) -> RGBImage:
        """(S, S, 3) uint8 RGB. Raises ImageError, naming the image, where it is unreadable or
        of another size."""
        data = self.encoded(index)
        try:
            image = load_image(data)
        except ImageError as exc:
            reason = str(exc).removeprefix("the image: ")
            raise ImageError(f"{self.name(index)}: {reason}") from exc
        if image.shape[:2] != (self.size, self.size):
            raise ImageError(
                f"{self.name(index)}: {image.shape[1]}x{image.shape[0]} pixels, where aligned "
                f"chips of {self.size}x{self.size} are meant; if these are photos, align them first"
            )
        return image

    def subset(self, indices: ArrayLike) -> FaceSource:
        """The images ``indices``, in that order; identities without an image leave, and the
        labels are numbered anew."""
        return SubsetSource(self, np.asarray(indices, dtype=np.int64))

    def digest(self, threads: int = 4) -> str:
        """SHA-256 of what there is to learn from: 64 hexadecimal digits.

        Over every image's content and its identity's name, in no order: renaming files,
        moving the folder or storing the same files another way changes nothing, and one pixel
        or one label does. Reads everything once. An unreadable image counts as such.
        """

        def one(index: int) -> bytes:
            try:
                content = hashlib.sha256(self.encoded(index)).digest()
            except ImageError:
                content = b"unreadable"
            identity = self.identities[int(self.labels[index])]
            return hashlib.sha256(
                identity.encode(errors="surrogateescape") + b"\0" + content
            ).digest()

        with ThreadPoolExecutor(threads) as pool:
            rows = sorted(pool.map(one, range(len(self)), chunksize=256))
        return hashlib.sha256(b"facerec data 1\0" + b"".join(rows)).hexdigest()


class PackedStrings(Sequence[str]):
    """Many strings in two arrays.

    Millions of Python strings cost a gigabyte, and a forked worker that reads one copies its
    page, because reading counts a reference.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        start = int(self._ends[index - 1]) if index else 0
        text = bytes(self._text[start : self._ends[index]])
        return text.decode("utf-8", "surrogateescape")


class SubsetSource(FaceSource):
    """Some images of another source."""

    base: FaceSource
    indices: NDArray[np.int64]

    def __init__(self, base: FaceSource, indices: NDArray[np.int64]) -> None:
        kept, labels = np.unique(base.labels[indices], return_inverse=True)
        names = [base.identities[int(i)] for i in kept]
        self.base = base
        if type(base) is SubsetSource:  # and no class of its own chips
            self.base, indices = base.base, base.indices[indices]
        self.indices = indices
        self.labels = labels.astype(np.int64)
        self.identities = PackedStrings(names)
        self.template = base.template
        self.size = base.size
        self.origin = base.origin
        self.failures = base.failures

    def encoded(self, index: int) -> bytes:
        return self.base.encoded(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.base.name(int(self.indices[index]))

    def chip(self, index: int) -> RGBImage:
        return self.base.chip(int(self.indices[index]))


class MemorySource(SubsetSource):
    """Images of another source, their chips decoded and warped, in memory.

    Names, stored bytes and the digest are the other source's.
    """

    def __init__(
        self, base: FaceSource, indices: NDArray[np.int64], chips: RGBImage, template: str
    ) -> None:
        """chips: (len(indices), S, S, 3) uint8 RGB."""
        super().__init__(base, indices)
        self.chips = chips
        self.template = template
        self.size = chips.shape[1]

    def chip(self, index: int) -> RGBImage:
        chip: RGBImage = self.chips[index]
        return chip


class ArraySource(FaceSource):
    """Chips in memory, from wherever they come.

    chips: (n, S, S, 3) uint8 RGB. labels: (n,) integers; ``identities`` names them in
    ascending order. Raises ValueError for shapes that do not fit.
    """

    def __init__(
        self,
        chips: RGBImage,
        labels: ArrayLike,
        template: str,
        identities: Sequence[str] | None = None,
        origin: str = "chips in memory",
    ) -> None:
        found, dense = np.unique(np.asarray(labels), return_inverse=True)
        names = [str(v) for v in found] if identities is None else list(identities)
        if (
            chips.dtype != np.uint8
            or chips.ndim != 4
            or chips.shape[1:] != (chips.shape[1],) * 2 + (3,)
        ):
            raise ValueError(f"chips: expected (n, S, S, 3) uint8, got {chips.shape} {chips.dtype}")
        if len(dense) != len(chips) or len(names) != len(found):
            raise ValueError(
                f"{len(chips)} chips, {len(dense)} labels of {len(found)} identities, "
                f"{len(names)} names"
            )
        find_template(template)
        self.chips = chips
        self.labels = dense.astype(np.int64)
        self.identities = names
        self.template = template
        self.size = chips.shape[1]
        self.origin = origin

    def encoded(self, index: int) -> bytes:
        return bytes(self.chips[index].tobytes())

    def name(self, index: int) -> str:
        return f"{self.origin}, image {index}"

    def chip(self, index: int) -> RGBImage:
        chip: RGBImage = self.chips[index]
        return chip


@dataclass(frozen=True)
class SourceSummary:
    """What a person wants to know of a set before training on it."""

    images: int
    identities: int
    fewest: int
    """Images of the smallest identity; ``median`` and ``most`` likewise."""
    median: float
    most: int
    singletons: int
    """Identities with one image: they have a class, and nothing pulls it together."""

    def __str__(self) -> str:
        text = (
            f"{self.images:,} images of {self.identities:,} identities "
            f"({self.fewest} to {self.most} each, median {self.median:g})"
        )
        return text + (f", {self.singletons:,} with a single image" if self.singletons else "")


def summarise(source: FaceSource) -> SourceSummary:
    """Counts of a non-empty source."""
    counts = np.bincount(source.labels, minlength=source.num_classes)
    return SourceSummary(
        images=len(source),
        identities=source.num_classes,
        fewest=int(counts.min()),
        median=float(np.median(counts)),
        most=int(counts.max()),
        singletons=int((counts == 1).sum()),
    )


def keep_identities(source: FaceSource, min_images: int) -> FaceSource:
    """The identities with at least ``min_images`` images.

    Raises ConfigError where fewer than two are left: nothing can be told apart then.
    """
    counts = np.bincount(source.labels, minlength=source.num_classes)
    kept = np.flatnonzero((counts >= min_images)[source.labels])
    left = int((counts >= min_images).sum())
    if left < 2:
        raise ConfigError(
            f"{source.origin}: {left} of {source.num_classes} identities have at least "
            f"{min_images} images; two are needed. Add photos, or lower the minimum."
        )
    return source if left == source.num_classes else source.subset(kept)


def require_trainable(source: FaceSource) -> None:
    """Raises ConfigError for a set that no classifier can be trained on: fewer than two
    identities, or no identity with two images."""
    if source.num_classes < 2:
        raise ConfigError(
            f"{source.origin}: {source.num_classes} identity; training tells people apart and "
            "needs at least two, each in a folder (or with a label) of their own"
        )
    if int(np.bincount(source.labels).max()) < 2:
        raise ConfigError(
            f"{source.origin}: every one of the {source.num_classes} identities has a single "
            "image; training needs several of the same person to learn what does not change"
        )
