"""What a pack's forms lose against each other: similarity, error rates, time.

Everything runs through the pipeline's own embedder, on aligned chips. Imports torch and the core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from facerec.embedding import Embedder
from facerec.metrics import (
    MIN_IMPOSTORS,
    Scores,
    allowed_count,
    operating_points,
    tar_at_far,
)
from facerec.packs.manifest import Pack
from facerec.pairs import pair_scores
from facerec.reporting import fewest_digits
from facerec.runtime import Network, Workers
from facerec.types import FloatArray, RGBImage, ThresholdTable
from training.backbones import Preprocessing
from training.data import FaceDataset, FaceSource, OrderedSampler, make_loader

FARS = (1e-2, 1e-3)
BATCHES = (1, 8)
"""Of the timing."""
_BATCH = 64
_SECONDS = 1.0
_ROUNDS = 30


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every pair of a set under one pack. embeddings: (n, d) float32, unit rows."""

    embeddings: FloatArray
    genuine: Scores
    impostor: Scores

    def tar(self) -> dict[float, float]:
        """True-accept rate at each of ``FARS`` that the impostor pairs can show."""
        count = len(self.impostor)
        fars = [far for far in FARS if count and allowed_count(count, far) >= MIN_IMPOSTORS]
        return {
            far: tar_at_far(self.genuine, self.impostor, far) for far in fars if len(self.genuine)
        }

    def thresholds(self, measured_on: str) -> ThresholdTable | None:
        """The measurable thresholds; None if fewer than two."""
        if not (len(self.genuine) and len(self.impostor)):
            return None
        rows = [p for p in operating_points(self.genuine, self.impostor) if p.is_measured]
        if len(rows) < 2:
            return None
        return ThresholdTable(
            fmr=tuple(row.fmr for row in rows),
            cosine=tuple(fewest_digits(row.cosine) for row in rows),
            fnmr=tuple(round(row.fnmr, 6) for row in rows),
            measured_on=measured_on,
        )


def chips_of(
    source: FaceSource, preprocessing: Preprocessing, count: int, seed: int = 0
) -> RGBImage:
    """(count or fewer, S, S, 3) uint8 RGB: images of ``source`` drawn at random, all different."""
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    dataset = FaceDataset(source.subset(drawn), preprocessing)
    loader = make_loader(dataset, OrderedSampler(len(drawn)), _BATCH)
    return np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in loader])


def noise_chips(size: int, count: int, seed: int = 0) -> RGBImage:
    """(count, S, S, 3) uint8 noise, for want of photos."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def load_embedders(packs: Mapping[str, Pack], device: str, threads: int) -> dict[str, Embedder]:
    """The embedder of each pack on ``device`` ("cpu" or "cuda")."""
    workers = Workers(threads)
    return {
        name: Embedder(pack, Network(pack.embedder_path, device, threads), workers)
        for name, pack in packs.items()
    }


def compare_on(
    embedders: Mapping[str, Embedder],
    source: FaceSource,
    preprocessing: Preprocessing,
    progress: Callable[[int, int], None],
) -> dict[str, Pairs]:
    """Every pair of ``source`` under each embedder; each image is read once.

    progress: called with images done, and how many there are. Images that cannot be read are
    left out; more than 1 % of them is an ImageError.
    """
    found: dict[str, list[FloatArray]] = {name: [] for name in embedders}
    indices: list[NDArray[np.int64]] = []
    loader = make_loader(FaceDataset(source, preprocessing), OrderedSampler(len(source)), _BATCH)
    for batch in loader:
        chips = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())
        for name, embedder in embedders.items():
            found[name].append(embedder.embed(chips))
        indices.append(batch.indices.numpy())
        progress(min(len(indices) * _BATCH, len(source)), len(source))
    # A substitute for an unreadable image is one that has been seen: count it once.
    kept, first = np.unique(np.concatenate(indices), return_index=True)
    labels = source.labels[kept]
    rows = {name: np.concatenate(parts)[first] for name, parts in found.items()}
    return {name: Pairs(row, *pair_scores(row, labels)) for name, row in rows.items()}


def describe_measurement(source: FaceSource, pairs: Pairs) -> str:
    """A sentence for a threshold table: data, pairs, command."""
    return (
        f"{set_name(source.origin)}: every pair among {len(pairs.embeddings):,} aligned chips of "
        f"{source.num_classes:,} people who were kept aside from training, "
        f"{len(pairs.genuine):,} genuine and {len(pairs.impostor):,} impostor; facerec export"
    )


def set_name(origin: str) -> str:
    """What a set is called, without the folder that it lies in."""
    return PurePath(origin.replace("\\", "/")).name or "unnamed"


def milliseconds(networks: Mapping[str, Network], size: int) -> dict[str, dict[int, float]]:
    """Median milliseconds per image of each network alone, by batch.

    The networks take turns, so that whatever else the machine does slows them all.
    """
    noise = np.random.default_rng(0).standard_normal((max(BATCHES), 3, size, size))
    blob = noise.astype(np.float32)
    times: dict[str, dict[int, list[float]]] = {
        name: {batch: [] for batch in BATCHES} for name in networks
    }
    for batch in BATCHES:
        until = time.perf_counter() + _SECONDS * len(networks)
        for turn in range(_ROUNDS + 1):
            for name, network in networks.items():
                began = time.perf_counter()
                network.run(blob[:batch], wide=True)
                took = time.perf_counter() - began
                if turn:  # the first one warms up
                    times[name][batch].append(took)
            if turn >= 2 and time.perf_counter() > until:
                break
    return {
        name: {batch: 1e3 * float(np.median(took)) / batch for batch, took in found.items()}
        for name, found in times.items()
    }
