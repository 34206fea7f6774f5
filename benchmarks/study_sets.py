"""The photos of benchmarks/study.py: chips in files that all its processes map, split by person.

Imports torch and the core, inside the functions that need them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SELECT, TEST, SPLIT_SEED = 0.07, 0.13, 0
"""Shares of the identities that choose an interpolation and that are tested on."""
SMALL_SIZE = 32
"""Side of the small network's chips."""
MIN_IMAGES = 6
"""Of an identity, for the small network: a shorter classifier and more photos of each."""
PLANE_PEOPLE = 8


def prepare(faces: Path, lfw: Path, work: Path) -> None:
    """WORK/data: chips of ``faces`` and the central faces of LFW for both networks."""
    from facerec.lfw import PAIRS_FILE, find_photos, read_protocol
    from facerec.packs import find_pack
    from facerec.pipeline import Pipeline
    from training.data import in_memory, open_source

    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    size = SMALL_SIZE
    networks = {"small": ("arcface-112", size), "all": ("dlib-150", 150)}
    for target in networks.values():
        file = folder / f"faces-{target[1]}.npy"
        if not file.exists():
            print(f"{faces} -> {file}", flush=True)
            source = open_source(faces)
            held = in_memory(source, _Wanted(*target))  # type: ignore[arg-type]
            _save(folder / f"labels-{target[1]}.npy", held.labels)
            _save(folder / f"names-{target[1]}.npy", np.array(list(held.identities)))
            _save(file, held.chips)
    files = {key: folder / f"lfw-{target[1]}.npy" for key, target in networks.items()}
    if all(file.exists() for file in files.values()):
        return
    protocol = read_protocol(lfw / PAIRS_FILE)
    shutil.copyfile(lfw / PAIRS_FILE, folder / PAIRS_FILE)
    pipeline = Pipeline.load(find_pack("bundled"))
    chips = central_chips(pipeline, find_photos(protocol, lfw), list(networks.values()))
    for file, array in zip(files.values(), chips, strict=True):
        _save(file, array)


@dataclass(frozen=True)
class _Wanted:
    """What ``in_memory`` needs to know of a network's input."""

    template: str
    input_size: int


def central_chips(
    pipeline: Any, paths: list[Path], targets: list[tuple[str, int]]
) -> list[np.ndarray]:
    """The face nearest the centre of each photo, aligned for each target: (n, S, S, 3) uint8.

    Raises SystemExit where a photo has no face: the bundled detector finds all of LFW's.
    """
    from facerec.alignment import align
    from facerec.image import load_image

    chips = [np.zeros((len(paths), size, size, 3), np.uint8) for _, size in targets]
    for start in range(0, len(paths), 32):
        print(f"\rLFW {start:,} of {len(paths):,}", end="", flush=True)
        images = [load_image(path) for path in paths[start : start + 32]]
        for at, (image, found) in enumerate(
            zip(images, pipeline.detector.detect(images), strict=True), start
        ):
            if not len(found):
                raise SystemExit(f"{paths[at]}: no face found")
            boxes = found.boxes_xyxy
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            centre = (image.shape[1] / 2, image.shape[0] / 2)
            nearest = int(((middle - centre) ** 2).sum(axis=1).argmin())
            for array, (template, size) in zip(chips, targets, strict=True):
                array[at] = align(image, found.landmarks[nearest : nearest + 1], template, size)[0]
    print()
    return chips


def _save(path: Path, array: np.ndarray) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


@dataclass(frozen=True)
class Sets:
    """What an experiment sees: sources by part, and LFW's chips in its protocol's order."""

    train: Any
    select: Any
    test: Any
    lfw: Any
    protocol: Any


def load_sets(work: Path, data: str) -> Sets:
    """The chips that ``prepare`` wrote, split by identity."""
    from facerec.lfw import PAIRS_FILE, read_protocol
    from training.data import ArraySource, keep_identities, split_identities

    size = 150 if data == "all" else SMALL_SIZE
    template = "dlib-150" if data == "all" else "arcface-112"
    folder = work / "data"
    chips = np.load(folder / f"faces-{size}.npy", mmap_mode="r")
    labels = np.load(folder / f"labels-{size}.npy")
    names = np.load(folder / f"names-{size}.npy").tolist()
    split = split_identities(
        ArraySource(chips, labels, template, names, origin="faces"),
        val=SELECT,
        test=TEST,
        seed=SPLIT_SEED,
    )
    protocol = read_protocol(folder / PAIRS_FILE)
    lfw = ArraySource(
        np.load(folder / f"lfw-{size}.npy", mmap_mode="r"),
        protocol.labels,
        template,
        origin="LFW",
    )
    train = split.train
    if data == "small":
        train = keep_identities(train, MIN_IMAGES)
    if data == "plane":
        most = np.argsort(-np.bincount(train.labels), kind="stable")[:PLANE_PEOPLE]
        train = train.subset(np.flatnonzero(np.isin(train.labels, most)))
    return Sets(train, split.val, split.test, lfw, protocol)
