"""In which order samples are seen. Imports the core and NumPy.

A sampler is an endless sequence of draws, and a pure function of its seed: what is drawn at
position p depends on nothing that happened before. So one number, the count of draws made,
resumes it exactly; ranks take their share of each global batch without talking; and the
draws do not depend on how many ranks or workers there are. Epochs follow each other without
a gap: a batch may hold the end of one and the start of the next, and over each epoch every
image is drawn exactly once, on one rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.errors import ConfigError


class Draw(NamedTuple):
    """One showing of a sample. sample: its index. visit: how often it was drawn before; both
    and the seed determine the augmentation."""

    sample: int
    visit: int


class Sampler(ABC):
    """The draws that one rank of ``world`` makes. size: images in the set."""

    kind: str
    endless = True

    def __init__(self, size: int, *, seed: int, rank: int, world: int) -> None:
        if size < 1:
            raise ConfigError("sampler: the set is empty")
        if not 0 <= rank < world:
            raise ConfigError(f"sampler: rank {rank} of a world of {world}")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"sampler: the seed lies in [0, 2^63), got {seed}")
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world = world

    @abstractmethod
    def draws(self, start: int, stop: int) -> list[Draw]:
        """What all ranks together draw at the positions from ``start`` up to ``stop``."""

    def batches(self, batch_size: int, position: int = 0) -> Iterator[list[Draw]]:
        """This rank's batches from ``position`` (draws of all ranks so far), without end.

        A global batch is ``world * batch_size`` draws; the rank's is its slice of them.
        """
        self.check(batch_size)
        while True:
            start = position + self.rank * batch_size
            yield self.draws(start, start + batch_size)
            position += self.world * batch_size

    def check(self, batch_size: int) -> None:
        """Raises ConfigError for a batch size that the sampler cannot make."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, got {batch_size}")

    def epoch(self, position: int) -> int:
        """Passes over the set that are complete at ``position``."""
        return position // self.size

    def steps(self, epochs: float, batch_size: int) -> int:
        """Batches that see ``epochs`` times the set, rounded up."""
        return -int(-epochs * self.size // (self.world * batch_size))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same; ranks may change."""
        return {"kind": self.kind, "seed": self.seed, "size": self.size}


class ShuffleSampler(Sampler):
    """A new permutation of the set in each epoch.

    blocks: None to shuffle everything with everything. Else where the blocks (tar shards)
    start, ascending from 0: blocks come in random order, and samples change places within a
    window of ``window`` only, so that a disk reads mostly forwards, as from WebDataset's
    shuffle buffer.
    """

    kind = "shuffle"

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        blocks: ArrayLike | None = None,
        window: int = 10_000,
    ) -> None:
        super().__init__(size, seed=seed, rank=rank, world=world)
        self.blocks = None if blocks is None else np.asarray(blocks, dtype=np.int64)
        self.window = window
        if self.blocks is not None and (window < 1 or not _is_partition(self.blocks, size)):
            raise ConfigError("sampler: blocks start at 0 and ascend within the set; window >= 1")
        self._order = lru_cache(maxsize=2)(self._permutation)

    def draws(self, start: int, stop: int) -> list[Draw]:
        drawn = []
        while start < stop:
            visit, at = divmod(start, self.size)
            rows = self._order(visit)[at : at + stop - start]
            drawn += [Draw(sample, visit) for sample in rows.tolist()]
            start += len(rows)
        return drawn

    def identity(self) -> dict[str, Any]:
        if self.blocks is None:
            return super().identity()
        return {**super().identity(), "blocks": len(self.blocks), "window": self.window}

    def _permutation(self, visit: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, visit])
        if self.blocks is None:
            return rng.permutation(self.size)
        ends = np.append(self.blocks[1:], self.size)
        order = np.concatenate(
            [np.arange(self.blocks[b], ends[b]) for b in rng.permutation(len(self.blocks))]
        )
        # The first window is cut at random, so that two epochs do not share their borders.
        first = int(rng.integers(1, self.window + 1))
        for low in range(first - self.window, self.size, self.window):
            rng.shuffle(order[max(0, low) : low + self.window])
        return order

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._permutation)


def _is_partition(starts: NDArray[np.int64], size: int) -> bool:
    return bool(
        len(starts) and starts[0] == 0 and (np.diff(starts) >= 0).all() and starts[-1] <= size
    )


class BalancedSampler(Sampler):
    """P identities with K images each per batch, whatever an identity's number of images.

    labels: (n,) of the source. Identities follow each other as a shuffled set, and the images
    of one identity likewise, each pass anew: an identity of fewer than K images repeats them
    in a batch. P is the batch size over K. An epoch is as many draws as the set has images,
    of which a large identity's images are not all.
    """

    kind = "balanced"

    def __init__(
        self,
        labels: ArrayLike,
        images_per_identity: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        labels = np.asarray(labels, dtype=np.int64)
        super().__init__(len(labels), seed=seed, rank=rank, world=world)
        if images_per_identity < 1:
            raise ConfigError(f"images_per_identity is at least 1, got {images_per_identity}")
        self.images_per_identity = images_per_identity
        self._by_identity = np.argsort(labels, kind="stable")
        self._ends = np.cumsum(np.bincount(labels))
        self._passes = lru_cache(maxsize=2)(self._identities)

    def check(self, batch_size: int) -> None:
        super().check(batch_size)
        if batch_size % self.images_per_identity:
            raise ConfigError(
                f"batch_size {batch_size} is not a multiple of images_per_identity "
                f"{self.images_per_identity}"
            )

    def draws(self, start: int, stop: int) -> list[Draw]:
        each = self.images_per_identity
        drawn: list[Draw] = []
        for turn in range(start // each, -(-stop // each)):
            visit, at = divmod(turn, len(self._ends))
            drawn += self._images(int(self._passes(visit)[at]), visit)
        skip = start % each
        return drawn[skip : skip + stop - start]

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "images_per_identity": self.images_per_identity}

    def _identities(self, visit: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, visit, 1]).permutation(len(self._ends))

    def _images(self, identity: int, visit: int) -> list[Draw]:
        """K images of an identity, the (visit + 1)-th time that it has its turn."""
        end = int(self._ends[identity])
        own = self._by_identity[int(self._ends[identity - 1]) if identity else 0 : end]
        drawn = []
        position = visit * self.images_per_identity
        stop = position + self.images_per_identity
        while position < stop:
            round_, at = divmod(position, len(own))
            order = np.random.default_rng([self.seed, round_, 2, identity]).permutation(len(own))
            rows = own[order[at : at + stop - position]]
            drawn += [Draw(sample, round_) for sample in rows.tolist()]
            position += len(rows)
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_passes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._passes = lru_cache(maxsize=2)(self._identities)


class OrderedSampler(Sampler):
    """Every image once, in order, then the end: for evaluation.

    Ranks take the blocks of a cut into ``world`` parts that differ by at most one image.
    """

    kind = "ordered"
    endless = False

    def __init__(self, size: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(size, seed=0, rank=rank, world=world)
        self.first = rank * size // world
        self.last = (rank + 1) * size // world

    def draws(self, start: int, stop: int) -> list[Draw]:
        return [Draw(sample, 0) for sample in range(start, min(stop, self.size))]

    def batches(self, batch_size: int, position: int = 0) -> Iterator[list[Draw]]:
        """The rank's whole part, whatever ``position``; the last batch may be smaller."""
        self.check(batch_size)
        for start in range(self.first, self.last, batch_size):
            yield self.draws(start, min(start + batch_size, self.last))
