"""A retrain before its first step: what it was told, opened and checked.

Imports torch and the core.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.config import load_settings
from facerec.errors import ConfigError
from facerec.packs import find_pack
from facerec.packs.manifest import Pack
from facerec.types import FloatArray
from training.backbones import Backbone
from training.build import build_backbone
from training.data import (
    FaceSource,
    Split,
    in_memory,
    keep_identities,
    open_source,
    require_trainable,
)
from training.distributed import choose_device
from training.guard import GuardSet, measurable_far, open_guard
from training.heldout import embed
from training.plan import (
    Start,
    choose_recipe,
    fits_memory,
    scaled,
    seconds_per_image,
    split_people,
)
from training.recipe import Recipe

UNGUARDED = 0.5
"""The largest coefficient where forgetting cannot be measured, and the one that is taken where
nobody is kept aside to choose on: the default that WiSE-FT's authors recommend."""
_ALPHAS = tuple(i / 10 for i in range(11))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a retrain may be told beside data and target; the defaults suit most.

    start: a pack's name or folder, a checkpoint or a run's folder; None: the recipe's, else
    bundled. recipe: None for ``fine-tune`` scaled to the data; one that is named runs as it is.
    overrides: of the recipe, by dotted name. guard: see :func:`training.guard.open_guard`;
    tolerance: how far its figure may fall, a share. alpha: the coefficient, instead of choosing
    it. distil: weight of feature distillation to the base. pack: whose detector aligns photos
    and goes into the new pack; None: the base's, else bundled. template, size: of aligned
    chips. run_dir: None for TARGET.run. name, licence: of the new pack. keep_anyway: write a
    pack that is worse, too; report_only: write none. variants: smaller forms of the pack.
    """

    start: str | None = None
    recipe: str | None = None
    overrides: Mapping[str, Any] | None = None
    guard: Path | None = None
    tolerance: float | None = None
    alpha: float | None = None
    distil: float | None = None
    pack: str | None = None
    template: str | None = None
    size: int | None = None
    run_dir: Path | None = None
    name: str | None = None
    licence: str | None = None
    keep_anyway: bool = False
    report_only: bool = False
    variants: Sequence[str] = ("float16", "int8")


@dataclass(frozen=True, eq=False)
class Job:
    """A retrain that can begin: everything is opened and fits together.

    left_out: what of the data is not used, as sentences. flip: whether embeddings of mirror
    images are added.
    """

    target: Path
    run_dir: Path
    name: str
    start: Start
    detector: Pack
    recipe: Recipe
    split: Split
    left_out: tuple[str, ...]
    guard: GuardSet | None
    base: Backbone
    flip: bool
    options: Options
    say: Say

    @property
    def candidates(self) -> tuple[float, ...]:
        """Coefficients above 0 that may be chosen, in ascending order."""
        if self.options.alpha is not None:
            return (self.options.alpha,) if self.options.alpha else ()
        chosen_on = self.split.val
        measurable = chosen_on is not None and measurable_far(chosen_on.labels) is not None
        free = measurable and self.guard is not None
        return tuple(a for a in _ALPHAS if 0 < a <= (1.0 if free else UNGUARDED))

    def embed(self, backbone: Backbone, source: FaceSource) -> tuple[FloatArray, NDArray[np.int64]]:
        """Unit embeddings in float32, as the pack will give them, and whose they are."""
        device = choose_device(self.recipe.run.device)
        embeddings, rows = embed(backbone.to(device), source, flip=self.flip)
        backbone.cpu()
        return embeddings.numpy(), rows


def prepare(data: str | Path | FaceSource, target: Path, options: Options, say: Say) -> Job:
    """Open everything and check that it fits, before anything takes long.

    Raises ConfigError, ImageError and ModelError; see :func:`training.retrain.retrain`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("retrain runs in one process; start it without torchrun")
    name = options.name or target.name
    _check_target(target, name, options.alpha)
    overrides = dict(options.overrides or {})
    if options.distil is not None:
        overrides["start.distil"] = float(options.distil)
    recipe, start = choose_recipe(options.recipe, options.start, overrides)
    base, _ = build_backbone(recipe)
    settings = load_settings()
    cache = settings.cache / "aligned"
    detector = start.pack
    if options.pack is not None or detector is None:
        detector = find_pack(options.pack or "bundled", search=settings.packs, cache=settings.cache)
    source = _open(data, base, detector, cache, options, say)
    require_trainable(source)
    held = fits_memory(len(source), base.input_size)
    if held:
        source = in_memory(source, base.preprocessing, max_failures=recipe.data.max_failures)
        recipe = recipe.changed(**{"data.in_memory": False})
    kept = keep_identities(source, max(2, recipe.data.min_images))
    left_out = _left_out(source, kept)
    split = split_people(kept, recipe.data.holdout_seed)
    require_trainable(split.train)
    if options.recipe is None:
        recipe = scaled(recipe, len(split.train), in_memory=held, overrides=overrides)
    guard = None
    if options.guard is not None:
        guard = open_guard(
            Path(options.guard),
            preprocessing=base.preprocessing,
            pack=detector,
            cache=cache,
            tolerance=options.tolerance,
            progress=_ticker(say, "guard photos aligned"),
        )
    flip = base.preprocessing.flip if start.flip is None else start.flip
    run_dir = options.run_dir or target.with_name(f"{target.name}.run")
    return Job(
        target,
        Path(run_dir),
        name,
        start,
        detector,
        recipe,
        split,
        left_out,
        guard,
        base,
        flip,
        options,
        say,
    )


def _check_target(target: Path, name: str, alpha: float | None) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists already; name another folder for the new pack")
    nearest = next(p for p in target.absolute().parents if os.path.lexists(p))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{target}: no pack can be written in {nearest}; name another folder")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a pack: letters, digits, '.', '_' and '-', 56 at most; give "
            "one with --name"
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"the interpolation coefficient lies in [0, 1], got {alpha:g}")


def _left_out(source: FaceSource, kept: FaceSource) -> tuple[str, ...]:
    lines = []
    if source.failures:
        first = source.failures[0].reason
        lines.append(f"{len(source.failures):,} photos were left out; the first: {first}")
    if kept.num_classes < source.num_classes:
        lines.append(
            f"{source.num_classes - kept.num_classes:,} people with too few photos were left out"
        )
    return tuple(lines)


def _open(
    data: str | Path | FaceSource,
    base: Backbone,
    detector: Pack,
    cache: Path,
    options: Options,
    say: Say,
) -> FaceSource:
    if isinstance(data, FaceSource):
        return data
    return open_source(
        data,
        template=options.template,
        size=options.size,
        pack=detector,
        cache=cache,
        preprocessing=base.preprocessing,
        progress=_ticker(say, "photos aligned"),
    )


def _ticker(say: Say, what: str, seconds: float = 10) -> Callable[[int, int], None]:
    """A line now and then."""
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said > seconds:
            said = time.monotonic()
            say(f"{done:,} of {total:,} {what}")

    return tell


def announce(job: Job) -> None:
    """The plan, and about how long it will take on this machine."""
    split, run = job.split, job.recipe.run
    device = choose_device(run.device)
    learn, look = seconds_per_image(job.base, split.train, job.recipe, device)
    steps = -(-run.epochs * len(split.train) // run.batch_size)
    passes = 2 if job.flip else 1
    selection = (len(job.candidates) + 1) * len(split.val or ())
    guard = 4 * len(job.guard.source) if job.guard else 0
    seconds = steps * run.batch_size * learn
    seconds += passes * look * (selection + guard + 4 * len(split.test or ()))
    parts = [f"{len(split.train):,} photos of {split.train.num_classes:,} people"]
    for part, why in ((split.val, "to choose the coefficient"), (split.test, "to judge by")):
        if part is not None:
            parts.append(f"{len(part):,} of {part.num_classes:,} {why}")
    job.say(
        f"{job.name} from {job.start.label}: learning from {', '.join(parts)}; {steps:,} steps of "
        f"{run.batch_size} on {device}, about {max(1, round(seconds / 60))} minutes in all"
    )
    if job.guard is not None:
        job.say(f"guard set: {job.guard.measure}, {job.guard.origin}")
