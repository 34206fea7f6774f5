"""Training, validation and test identities. Imports the core and NumPy.

People are split, never images: a network that has seen a person's other photos says nothing
about strangers. An identity's part follows from its name and the seed alone, so that adding
people, or photos, moves nobody who was there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from facerec.errors import ConfigError
from training.data.sources import FaceSource

_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Split:
    """Three sources without a common identity; None for a part whose share is 0."""

    train: FaceSource
    val: FaceSource | None
    test: FaceSource | None


def split_fraction(identity: str, seed: int) -> float:
    """Where an identity lies in [0, 1): uniform over names, the same on every machine."""
    text = f"{seed}\0{identity}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2**56


def split_identities(
    source: FaceSource, *, val: float = 0.1, test: float = 0.0, seed: int = 0
) -> Split:
    """Split by identity: shares ``test`` and ``val`` of the names go there, the rest trains.

    Shares are of the identities that could ever be added: of few, the parts' sizes vary. Raises
    ConfigError for shares that leave nothing, and where a part comes out with fewer than two
    identities; the message names a seed that does better, if one is near.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ConfigError(f"shares: val {val:g} and test {test:g} are at least 0 and sum below 1")
    wanted = [True, val > 0, test > 0]
    names = [source.identities[i] for i in range(source.num_classes)]
    parts = _parts(names, val, test, seed)
    counts = np.bincount(parts, minlength=3)
    if any(want and count < _FEWEST for want, count in zip(wanted, counts, strict=True)):
        raise ConfigError(_too_few(source, names, val, test, seed, counts.tolist()))
    part_of_image = parts[source.labels]
    train, *held_out = (
        source.subset(np.flatnonzero(part_of_image == part)) if want else None
        for part, want in enumerate(wanted)
    )
    assert train is not None
    return Split(train, *held_out)


def _parts(names: list[str], val: float, test: float, seed: int) -> np.ndarray:
    """0 for training, 1 for validation, 2 for test, per name."""
    u = np.array([split_fraction(name, seed) for name in names])
    return np.where(u < test, 2, np.where(u < test + val, 1, 0))


def _too_few(
    source: FaceSource, names: list[str], val: float, test: float, seed: int, counts: list[int]
) -> str:
    text = (
        f"{source.origin}: seed {seed} puts {counts[0]}, {counts[1]} and {counts[2]} of "
        f"{len(names)} identities into training, validation and test, and every part asked for "
        f"needs {_FEWEST}"
    )
    for other in range(seed + 1, seed + 101):
        found = np.bincount(_parts(names, val, test, other), minlength=3)
        wanted = (1.0, val, test)
        if all(n >= _FEWEST or not share for n, share in zip(found, wanted, strict=True)):
            return f"{text}; seed {other} does, or add people, or change the shares."
    return f"{text}; add people, or change the shares."
