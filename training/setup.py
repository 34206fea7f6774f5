"""Everything before the first step of a run, or before the step after its checkpoint's.

Imports torch and the core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facerec.errors import ConfigError
from training.backbones import Backbone
from training.build import (
    build_backbone,
    build_classifier,
    build_loader,
    build_optimizer,
    build_schedule,
    head_of,
    precision_of,
    preprocessing_of,
    set_class_weights,
    synchronise_statistics,
)
from training.checkpoint import (
    CheckpointFolder,
    State,
    backbone_from_state,
    load_checkpoint,
    load_network,
    save_network,
    seed_all,
)
from training.data import FaceSource, in_memory, require_trainable
from training.distributed import Ranks
from training.ema import MovingAverage
from training.heldout import HeldOutVerification
from training.logs import environment, read_json, write_json
from training.recipe import Recipe
from training.schedules import Schedule
from training.state import Training, check_fits, describe_data, describe_left_out
from training.step import Stepper

Evaluate = Callable[[Backbone], dict[str, float]]
"""Figures of a network in evaluation mode; larger is better for the one that chooses."""

START = "start.pt"
"""In the run's folder: the network that was trained further, to distil from and compare with."""


@dataclass
class Run:
    """What the loop works with; ``source`` is what the loader reads, a copy in memory or not."""

    recipe: Recipe
    source: FaceSource
    run_dir: Path
    ranks: Ranks
    checkpoints: CheckpointFolder
    training: Training
    stepper: Stepper
    schedule: Schedule
    evaluate: Evaluate | None
    resumed: bool

    @property
    def total_steps(self) -> int:
        """Updates that the recipe's epochs take on this data."""
        return self.schedule.total_steps


def set_up(
    recipe: Recipe,
    source: FaceSource,
    run_dir: Path,
    ranks: Ranks,
    held_out: FaceSource | None,
    evaluate: Evaluate | None,
    resume: bool,
) -> Run:
    """Check that everything fits together, build it, and take up the newest checkpoint."""
    require_trainable(source)
    if recipe.run.batch_size % (ranks.world * recipe.run.accumulate):
        raise ConfigError(
            f"run.batch_size {recipe.run.batch_size} does not divide into {ranks.world} processes "
            f"x {recipe.run.accumulate} parts (run.accumulate)."
        )
    precision = precision_of(recipe.run.amp, ranks.device)
    if evaluate is None and held_out is not None:
        evaluate = HeldOutVerification(held_out, workers=recipe.data.workers, precision=precision)
    _require_best_metric(recipe, evaluate, ranks)
    source = _held(recipe, source)
    data = describe_data(source)
    checkpoints = CheckpointFolder(run_dir / "checkpoints", recipe.run.keep_last)
    saved = _saved(checkpoints, recipe, data, ranks, resume)
    if ranks.main:
        checkpoints.remove_remains()
        _describe(run_dir, recipe, source, data, environment(ranks.device, ranks.world, precision))
    ranks.barrier()
    training = _training(recipe, source, data, ranks, run_dir, saved, precision)
    total_steps = training.loader.sampler.steps(recipe.run.epochs, training.loader.batch_size)
    schedule = build_schedule(recipe, len(source) / recipe.run.batch_size, total_steps)
    resumed = saved is not None
    if saved is not None:
        training.restore(saved)
        _mark_best_again(checkpoints, training)
    teacher = None
    if recipe.start.distil:
        teacher = load_network(run_dir / START).to(ranks.device).requires_grad_(False)
    network = _wrapped(training.backbone, recipe, ranks)
    stepper = Stepper(training, network, precision, teacher)
    return Run(
        recipe, source, run_dir, ranks, checkpoints, training, stepper, schedule, evaluate, resumed
    )


def require_metric(name: str, given: Iterable[str]) -> None:
    """Raises ConfigError unless the evaluation gives a metric of that name."""
    if name not in given:
        raise ConfigError(
            f"run.best_metric is {name!r}; the evaluation gives {', '.join(given) or 'nothing'}"
        )


def _require_best_metric(recipe: Recipe, evaluate: Evaluate | None, ranks: Ranks) -> None:
    """Before the first step, of evaluations that know the names of their figures beforehand."""
    names = ranks.from_main(getattr(evaluate, "names", None))
    if names is not None and recipe.run.best_metric is not None:
        require_metric(recipe.run.best_metric, names)


def _mark_best_again(checkpoints: CheckpointFolder, training: Training) -> None:
    """A process may have died between writing the best checkpoint and calling it best.pt."""
    newest = checkpoints.newest()
    best = training.best is not None and training.best["step"] == training.step
    if best and newest is not None and training.ranks.main:
        checkpoints.mark_best(newest)


def _held(recipe: Recipe, source: FaceSource) -> FaceSource:
    """``source``, or on demand its chips in memory: whom no photo is left of has no class then."""
    if not recipe.data.in_memory:
        return source
    held = in_memory(source, preprocessing_of(recipe), max_failures=recipe.data.max_failures)
    require_trainable(held)
    return held


def _saved(
    checkpoints: CheckpointFolder, recipe: Recipe, data: dict[str, Any], ranks: Ranks, resume: bool
) -> State | None:
    """The newest checkpoint's content, if it can be taken up; None for a new run."""
    newest = ranks.from_main(checkpoints.newest())
    if newest is None:
        return None
    if not resume:
        raise ConfigError(
            f"{checkpoints.folder.parent} holds a run already ({newest.name}). Resume it, or give "
            "another folder."
        )
    state = load_checkpoint(newest)
    check_fits(state, str(newest), recipe, data, ranks.world)
    return state


def _training(
    recipe: Recipe,
    source: FaceSource,
    data: dict[str, Any],
    ranks: Ranks,
    run_dir: Path,
    saved: State | None,
    precision: torch.dtype | None,
) -> Training:
    """Network, head, optimiser and loader; of a new run with the weights that it starts from."""
    seed_all(recipe.run.seed)  # the same on every rank, so that all draw the same weights
    started: State | None = None
    if saved is not None:
        backbone = backbone_from_state(saved, "the checkpoint", averaged=False)
    else:
        backbone, started = build_backbone(recipe)
    backbone = backbone.to(ranks.device)
    if recipe.run.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = build_classifier(recipe, backbone.embedding_dim, source.num_classes, ranks)
    if saved is None:
        set_class_weights(recipe, head_of(classifier), backbone, source, ranks, started, precision)
        if ranks.main and recipe.start.given:
            save_network(run_dir / START, backbone)
        ranks.barrier()
    if recipe.backbone.batch_norm == "synchronised":
        backbone = synchronise_statistics(backbone, ranks)
    loader = build_loader(recipe, source, backbone, ranks)
    seed_all(recipe.run.seed, ranks.rank)
    return Training(
        recipe,
        ranks,
        data,
        backbone,
        classifier,
        build_optimizer(recipe, backbone, head_of(classifier)),
        torch.amp.GradScaler(ranks.device.type, enabled=precision is torch.float16),
        loader,
        MovingAverage(backbone, recipe.optim.ema) if recipe.optim.ema else None,
    )


def _wrapped(backbone: Backbone, recipe: Recipe, ranks: Ranks) -> nn.Module:
    """The backbone as it is called: compiled on demand, and averaged over several ranks."""
    network: nn.Module = backbone
    if recipe.run.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    if ranks.world > 1:
        devices = [ranks.device.index] if ranks.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=devices)
    return network


def _describe(
    run_dir: Path,
    recipe: Recipe,
    source: FaceSource,
    data: dict[str, Any],
    surroundings: dict[str, Any],
) -> None:
    """recipe.toml, environment.json and data.json; the digest is made once, at the first start.

    Written at every start, because what was left out may change where what is left does not.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    starts = read_json(run_dir / "environment.json", [])
    write_json(run_dir / "environment.json", [*starts, surroundings])
    path = run_dir / "data.json"
    known = read_json(path, {})
    if known.get("fingerprint") != data["fingerprint"]:
        known = {**data, "sha256": source.digest()}
    write_json(path, {**known, "left_out": describe_left_out(source)})
    data["sha256"] = known["sha256"]
