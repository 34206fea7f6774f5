"""How a retrain treats what it is given: whom it keeps aside, and a recipe scaled to the data.

Imports torch, NumPy and the core.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facerec.config import load_settings
from facerec.errors import ConfigError, ModelError
from facerec.packs import find_pack
from facerec.packs.manifest import MANIFEST_NAME, Pack
from training.backbones import Backbone
from training.build import freeze_statistics, precision_of
from training.checkpoint import CheckpointFolder, undisturbed_randomness
from training.data import FaceDataset, FaceSource, Split, split_identities
from training.data.samplers import Draw
from training.guard import measurable_far
from training.heldout import autocast
from training.recipe import Recipe, load_recipe

DEFAULT_RECIPE = "fine-tune"
FEWEST_FOR_TEST = 8
"""People; of fewer nobody is kept aside, and nothing can be said of the result."""
FEWEST_FOR_SELECTION = 40
"""People; of fewer nobody is kept aside to choose the coefficient on."""
FEWEST_FOR_INTERVAL = 10
"""Test people; a bootstrap of fewer says nothing."""
_TEST, _SELECTION = 0.3, 0.15
_MOST_TEST, _MOST_SELECTION = 600, 300
_SEEDS = 100
_MEMORY_BYTES = 2**31

_MIN_STEPS = 60
_EPOCHS = 5
_MAX_EPOCHS = 40
_TIMED = 8


@dataclass(frozen=True)
class Start:
    """The network that is trained further.

    keys: of the recipe. label: for people; provenance: the same with the licence of its weights.
    flip: whether embeddings of mirror images are added, None for as its preprocessing says.
    """

    keys: dict[str, str | None]
    label: str
    provenance: str
    pack: Pack | None
    flip: bool | None


def find_start(reference: str) -> Start:
    """A pack by name or folder, a checkpoint, or a run's folder (best.pt, else the newest).

    Raises ModelError where there is none.
    """
    path = Path(reference)
    if path.suffix == ".pt" or (path / "checkpoints").is_dir():
        folder = CheckpointFolder(path / "checkpoints")
        file = path if path.suffix == ".pt" else folder.best or folder.newest()
        if file is None or not file.is_file():
            raise ModelError(f"{reference}: no checkpoint to start from")
        keys = {"start.checkpoint": str(file.resolve()), "start.pack": None}
        label = f"checkpoint {'/'.join(file.resolve().parts[-3:])}"
        return Start(keys, label, label, None, None)
    if path.is_dir() and not (path / MANIFEST_NAME).is_file():
        raise ModelError(
            f"{reference}: cannot be a starting point: neither a pack ({MANIFEST_NAME}) nor a "
            "run's folder (checkpoints/)"
        )
    settings = load_settings()
    pack = find_pack(reference, search=settings.packs, cache=settings.cache)
    place = reference if reference == "bundled" else str(pack.folder.resolve())
    contract, licence = pack.contract.contract_id, pack.manifest.embedder.licence
    return Start(
        {"start.pack": place, "start.checkpoint": None},
        f"pack {pack.name}, contract {contract}",
        f"pack {pack.name} (contract {contract}; licence: {licence or pack.manifest.licence})",
        pack,
        pack.contract.flip,
    )


def choose_recipe(
    name: str | None, start: str | None, overrides: Mapping[str, Any]
) -> tuple[Recipe, Start]:
    """The recipe with its starting point, before it is scaled; and the starting point.

    Where ``start`` is None it is the recipe's own, else the bundled pack. Class weights start
    from the class means of the base's embeddings, unless the recipe says ``"keep"``.
    Raises ConfigError and ModelError.
    """
    recipe = load_recipe(name or DEFAULT_RECIPE)
    own = recipe.start
    found = find_start(start or own.pack or own.checkpoint or "bundled")
    keys: dict[str, Any] = dict(found.keys)
    if own.class_weights == "random":
        keys["start.class_weights"] = "class-means"
    return recipe.changed(**{**keys, **overrides}), found


def split_people(source: FaceSource, seed: int) -> Split:
    """People to learn from, to choose the coefficient on (``val``) and to judge by (``test``).

    Shares are 0.55, 0.15 and 0.3, of thousands less for the last two. With fewer people than
    ``FEWEST_FOR_SELECTION``, or where those for choosing have too few photos to measure
    anything, nobody is for choosing; with fewer than ``FEWEST_FOR_TEST`` all train. A person's
    part follows from name and seed, so that a second retrain with more photos, from the pack
    of the first, judges by people whom the first did not learn either.
    """
    people = source.num_classes
    if people < FEWEST_FOR_TEST:
        return Split(source, None, None)
    test = min(_TEST, _MOST_TEST / people)
    selection = min(_SELECTION, _MOST_SELECTION / people) if people >= FEWEST_FOR_SELECTION else 0.0
    for other in range(seed, seed + _SEEDS):  # of few people a part can come out too small
        try:
            split = split_identities(source, val=selection, test=test, seed=other)
        except ConfigError:
            continue
        if split.val is not None and measurable_far(split.val.labels) is None:
            return split_identities(source, val=0.0, test=test, seed=other)
        return split
    return Split(source, None, None)


def scaled(recipe: Recipe, images: int, *, in_memory: bool, overrides: Mapping[str, Any]) -> Recipe:
    """The shipped recipe for ``images`` photos; what ``overrides`` names stays as it is.

    Enough passes for 60 updates, 5 at least and 40 at most; a batch of a quarter of the photos
    and 64 at most; a queue that holds each photo once at most: a second entry of the same
    photo is an older copy, no wider view. BatchNorm's statistics stay the base's, so that both
    ends of the interpolation share them, and a few hundred photos do not replace millions.
    """
    batch = overrides.get("run.batch_size", min(64, images, max(8, images // 4)))
    wanted = math.ceil(_MIN_STEPS * int(batch) / images)
    epochs = overrides.get("run.epochs", min(_MAX_EPOCHS, max(_EPOCHS, wanted)))
    queue = min(recipe.broadface.queue_size, images)
    keys = {
        "run.batch_size": batch,
        "run.epochs": epochs,
        "run.tensorboard": False,
        "schedule.warmup_epochs": max(0.5, 0.1 * epochs) if epochs > 1 else 0.0,
        "broadface.queue_size": queue,
        "broadface.warmup_steps": min(recipe.broadface.warmup_steps, -(-queue // int(batch))),
        "backbone.batch_norm": "frozen",
    }
    if in_memory:
        keys["data.workers"] = 0
    return recipe.changed(**{k: v for k, v in keys.items() if k not in overrides})


def fits_memory(images: int, side: int) -> bool:
    """Whether the decoded chips take less than 2 GB."""
    return images * side * side * 3 < _MEMORY_BYTES


def seconds_per_image(
    backbone: Backbone, source: FaceSource, recipe: Recipe, device: torch.device
) -> tuple[float, float]:
    """(training, embedding): measured on a few images and a copy of the network."""
    network = copy.deepcopy(backbone).to(device).train()
    freeze_statistics(network)
    precision = precision_of(recipe.run.amp, device)
    draws = [Draw(i % len(source), 0) for i in range(_TIMED)]
    chips = FaceDataset(source, backbone.preprocessing).batch(draws).images.to(device)
    images = backbone.preprocessing.apply(chips)

    def step() -> None:
        with autocast(device, precision):
            network(images).square().mean().backward()

    def look() -> None:
        with torch.no_grad():
            network(images).sum().item()

    with undisturbed_randomness(device):
        return _second_time(step) / _TIMED, _second_time(look) / _TIMED


def _second_time(call: Any) -> float:
    """Of two calls; the first one pays for what is set up once."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
