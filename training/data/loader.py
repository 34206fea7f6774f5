"""From a source and a sampler to batches for the network. Imports torch and the core."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from facerec.errors import ConfigError, ImageError
from facerec.types import Failure, RGBImage
from training.backbones.base import Preprocessing
from training.data.augment import Augmentation, ChipTransform
from training.data.samplers import Draw, Sampler
from training.data.sources import FaceSource

_SUBSTITUTES = 32
"""Images tried in the place of an unreadable one, before giving up."""
_NAMED = 5


class Batch(NamedTuple):
    """images: (N, 3, S, S) uint8 RGB, channels last in memory; ``Preprocessing.apply`` makes
    the network's input of them, on whatever device they are. labels: (N,) int64. indices: (N,)
    int64, of the source. failures: images that could not be read and were substituted."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    failures: tuple[Failure, ...] = ()


class FaceDataset(Dataset[tuple[Tensor, int]]):
    """The chips of ``source`` as a backbone with ``preprocessing`` takes them.

    augmentation: None for none (evaluation). Chips of another template or size are warped.
    ``dataset[i]`` is ((3, S, S) uint8 RGB, label) of image i at its first visit.
    """

    def __init__(
        self,
        source: FaceSource,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.transform = ChipTransform(
            (source.template, source.size),
            (preprocessing.template, preprocessing.input_size),
            augmentation,
            seed,
        )
        self._by_label = np.argsort(source.labels, kind="stable")
        self._ends = np.cumsum(np.bincount(source.labels))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        draw = Draw(index % len(self), 0)
        chip = self.transform(self.source.chip(draw.sample), draw)
        image = torch.from_numpy(np.ascontiguousarray(chip.transpose(2, 0, 1)))
        return image, int(self.source.labels[draw.sample])

    def batch(self, draws: list[Draw]) -> Batch:
        """The chips of ``draws``. An unreadable one is replaced by the next readable image of
        the same identity, else of the set, and reported; the same each time."""
        size = self.preprocessing.input_size
        chips = np.empty((len(draws), size, size, 3), dtype=np.uint8)
        indices = np.empty(len(draws), dtype=np.int64)
        failures: list[Failure] = []
        for row, draw in enumerate(draws):
            chip, index = self._readable(draw, failures)
            chips[row] = self.transform(chip, draw)
            indices[row] = index
        return Batch(
            images=torch.from_numpy(chips).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.source.labels[indices]),
            indices=torch.from_numpy(indices),
            failures=tuple(failures),
        )

    def _readable(self, draw: Draw, failures: list[Failure]) -> tuple[RGBImage, int]:
        """The chip of a draw and its index, or of the next that can be read."""
        for index in islice(self._candidates(draw.sample), _SUBSTITUTES):
            try:
                return self.source.chip(index), index
            except ImageError as exc:
                failures.append(Failure(self.source.name(index), "unreadable", str(exc)))
        raise ImageError(
            f"{self.source.origin}: {len(failures)} images in a row cannot be read; the first: "
            f"{failures[0].reason}"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        """The image, the others of its identity, then everybody else's."""
        yield index
        label = int(self.source.labels[index])
        end = int(self._ends[label])
        start = int(self._ends[label - 1]) if label else 0
        own = self._by_label[start:end]
        after = int(np.searchsorted(own, index)) + 1
        for part in (own[after:], own[: after - 1], self._by_label[end:], self._by_label[:start]):
            yield from part[:_SUBSTITUTES].tolist()


class FailureLog:
    """Images that could not be read, each once, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.found: dict[str, Failure] = {}

    def add(self, failures: tuple[Failure, ...]) -> None:
        """Raises ImageError when there are more than the limit."""
        for failure in failures:
            self.found.setdefault(failure.source, failure)
        if len(self.found) > self.limit:
            raise ImageError(
                f"{len(self.found)} images cannot be read, more than the limit of {self.limit}: "
                + "; ".join(f.reason for f in list(self.found.values())[:_NAMED])
                + ("; ..." if len(self.found) > _NAMED else "")
            )

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        if not self.found:
            return "every image could be read"
        return f"{len(self)} images could not be read and were substituted: " + "; ".join(
            f.reason for f in self.found.values()
        )


class Loader:
    """Batches of one rank, from a position that can be saved and taken up again.

    With an endless sampler, iterating goes on where the last iteration stopped; ``position``
    counts the draws of all ranks in the batches handed out, not those that workers prepared
    ahead. Give a new loader the saved state, and the next batch is the one that would have come.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        sampler: Sampler,
        batch_size: int,
        workers: int,
        *,
        max_failures: int | None,
        pin_memory: bool,
        prefetch: int,
    ) -> None:
        if sampler.size != len(dataset):
            raise ConfigError(
                f"the sampler is for {sampler.size} images, the set has {len(dataset)}"
            )
        sampler.check(batch_size)
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.workers = workers
        self.position = 0
        limit = max(10, len(dataset) // 100) if max_failures is None else max_failures
        self.failures = FailureLog(limit)
        self._options: dict[str, Any] = {"pin_memory": pin_memory}
        if workers:
            self._options["prefetch_factor"] = prefetch
            self._options["multiprocessing_context"] = _worker_context()

    @property
    def epoch(self) -> int:
        """Passes over the set that are complete."""
        return self.sampler.epoch(self.position)

    def __iter__(self) -> Iterator[Batch]:
        if not self.sampler.endless:
            self.position = 0
        batches = DataLoader(
            _Batches(self.dataset),
            batch_size=None,
            sampler=_Draws(self.sampler, self.batch_size, self.position),
            collate_fn=_as_it_is,
            num_workers=self.workers,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else starting workers draws from torch's global one
            **self._options,
        )
        for batch in batches:
            self.failures.add(batch.failures)
            self.position += self.sampler.world * self.batch_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position, epoch and what they refer to: numbers and strings only."""
        return {"position": self.position, "epoch": self.epoch, **self.sampler.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches of ``state``. World and batch size may have changed.

        Raises ConfigError where the position belongs to other data or another order.
        """
        ours = self.sampler.identity()
        theirs = {k: v for k, v in state.items() if k not in ("position", "epoch")}
        if theirs != ours:
            changed = ", ".join(
                f"{key} was {theirs.get(key)}, is {ours.get(key)}"
                for key in sorted({*ours, *theirs})
                if ours.get(key) != theirs.get(key)
            )
            raise ConfigError(
                f"the saved position belongs to other data or another order: {changed}. Resume "
                "with the same data and seed, or start a new run."
            )
        self.position = int(state["position"])


def make_loader(
    dataset: FaceDataset,
    sampler: Sampler,
    batch_size: int,
    workers: int = 0,
    *,
    max_failures: int | None = None,
    pin_memory: bool = False,
    prefetch: int = 4,
) -> Loader:
    """Batches of ``batch_size`` images for this rank, prepared by ``workers`` processes.

    workers: 0 decodes in the training process; the batches are the same for any number. A
    script that uses workers guards its start by ``if __name__ == "__main__"``.
    max_failures: so many unreadable images are substituted and reported, one more is an
    ImageError; None for 1 % of the set, at least 10. prefetch: batches ahead per worker.
    """
    return Loader(
        dataset,
        sampler,
        batch_size,
        workers,
        max_failures=max_failures,
        pin_memory=pin_memory,
        prefetch=prefetch,
    )


class _Batches(Dataset[Batch]):
    """A dataset whose items are batches: decoded, augmented and stacked in the worker."""

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: list[Draw]) -> Batch:
        return self.dataset.batch(draws)


class _Draws:
    """The batches of a sampler from a position, as DataLoader's sampler."""

    def __init__(self, sampler: Sampler, batch_size: int, position: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.position = position

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.sampler.batches(self.batch_size, self.position)


def _as_it_is(batch: Any) -> Any:
    return batch


def _worker_context() -> BaseContext:
    """Workers come from a server process, forked before there were any threads.

    A fork of the training process itself would inherit locks of thread pools whose threads it
    does not have (OpenCV's: seen to hang at the first call).
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(_: int) -> None:
    """A worker is one thread, and leaves Ctrl-C to the training process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
