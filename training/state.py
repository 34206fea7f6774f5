"""Everything of a run that moves, as one object, into a checkpoint and out of it.

Imports torch and the core.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facerec.errors import ConfigError
from training.backbones import Backbone
from training.broadface import BroadFace
from training.build import Classifier, describe_identities, head_of
from training.checkpoint import (
    FORMAT,
    State,
    cpu_copy,
    random_state,
    redistribute,
    restore_random_state,
    seed_all,
)
from training.data import FaceSource, Loader
from training.distributed import Ranks
from training.ema import MovingAverage
from training.recipe import Recipe, differences, recipe_from

_SHARDED = ("weight", "bias")
_REASONS = 100


@dataclass
class Training:
    """What the loop changes, and where it is in the data.

    step: updates done. history: one entry an evaluation. best: the entry of the best.
    evaluation_due: the one of this step is to come. data: what identifies the data
    (:func:`describe_data`). pending: the sum of the losses since the last
    log line, and how many they are.
    """

    recipe: Recipe
    ranks: Ranks
    data: dict[str, Any]
    backbone: Backbone
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    average: MovingAverage | None = None
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    evaluation_due: bool = False
    pending: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def evaluated(self) -> Backbone:
        """The network to evaluate and export: the averaged one if there is one."""
        return self.backbone if self.average is None else self.average.backbone

    def content(self) -> State | None:
        """A checkpoint's content on rank 0, None elsewhere; every rank must call."""
        head = head_of(self.classifier)
        sharded: State = {f"head.{k}": p for k, p in head.named_parameters() if k in _SHARDED}
        momentum = {name: self._momentum(p) for name, p in self._parameters()}
        mine = {
            "random": random_state(self.ranks.device),
            "classifier": self._classifier_state(),
            "sharded": sharded if head.shard.world > 1 else {},
            "momentum": {k: v for k, v in momentum.items() if k in sharded}
            if head.shard.world > 1
            else {},
        }
        parts = self.ranks.gather(cpu_copy(mine))
        if parts is None:
            return None
        if head.shard.world > 1:
            for name in sharded:
                sharded[name] = torch.cat([part["sharded"][name] for part in parts])
                rows = [part["momentum"][name] for part in parts]
                momentum[name] = None if rows[0] is None else torch.cat(rows)
        return {
            "format": FORMAT,
            "recipe": cpu_copy(self.recipe.model_dump(exclude_none=True)),
            "backbone_arguments": cpu_copy(self.backbone.arguments),
            "data": self.data,
            "step": self.step,
            "position": self.loader.state_dict(),
            "world": self.ranks.world,
            "backbone": cpu_copy(self.backbone.state_dict()),
            "ema": cpu_copy(self.average.backbone.state_dict()) if self.average else None,
            "ema_updates": self.average.updates if self.average else 0,
            "head": cpu_copy(sharded),
            "momentum": cpu_copy(momentum),
            "scaler": self.scaler.state_dict(),
            "ranks": [{k: p[k] for k in ("random", "classifier")} for p in parts],
            "pending": list(self.pending),
            "history": self.history,
            "best": self.best,
            "evaluation_due": self.evaluation_due,
            "metrics": self.history[-1]["metrics"] if self.history else {},
        }

    def restore(self, state: State) -> None:
        """Take up a checkpoint, made by this or another number of ranks.

        With the same number everything goes on as if it had never stopped. With another, class
        weights and queue are dealt out anew and the random numbers of each rank start from
        (seed, step, rank): a valid run, but not the one that would have been.
        """
        self.backbone.load_state_dict(state["backbone"])
        if self.average is not None:
            self.average.backbone.load_state_dict(state["ema"])
            self.average.updates = state["ema_updates"]
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["position"])
        self.step = state["step"]
        self.history, self.best = list(state["history"]), state["best"]
        self.evaluation_due = state.get("evaluation_due", False)  # absent: they came first once
        self.pending = list(state["pending"])
        self._restore_rows(state)
        if state["world"] == self.ranks.world:
            mine = state["ranks"][self.ranks.rank]
            self._load_classifier(mine["classifier"])
            restore_random_state(mine["random"], self.ranks.device)
        else:
            self._redistribute(state)
            seed_all(self.recipe.run.seed, self.step, self.ranks.rank)

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Every trained parameter by a name that does not depend on groups or wrappers."""
        named = [(f"backbone.{k}", p) for k, p in self.backbone.named_parameters()]
        named += [(f"head.{k}", p) for k, p in head_of(self.classifier).named_parameters()]
        return [(name, p) for name, p in named if p.requires_grad]

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        buffer: Tensor | None = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
        return buffer

    def _restore_rows(self, state: State) -> None:
        """Class weights and all momentum; this rank's rows of what is sharded."""
        head = head_of(self.classifier)
        own = slice(head.shard.low, head.shard.high)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                if name in _SHARDED:
                    parameter.copy_(state["head"][f"head.{name}"][own])
        for name, parameter in self._parameters():
            rows = state["momentum"].get(name)
            if rows is None:
                continue
            if name.removeprefix("head.") in _SHARDED:
                rows = rows[own].clone()
            self.optimizer.state[parameter]["momentum_buffer"] = rows.to(parameter.device)

    def _classifier_state(self) -> State:
        """Queue, margin statistics and generators: what a rank has for itself."""
        prefix = "head." if isinstance(self.classifier, BroadFace) else ""
        left_out = {prefix + name for name in _SHARDED}
        return {k: v for k, v in self.classifier.state_dict().items() if k not in left_out}

    def _load_classifier(self, saved: State) -> None:
        current = self.classifier.state_dict()
        self.classifier.load_state_dict({**current, **saved})

    def _redistribute(self, state: State) -> None:
        """Queues of the old ranks dealt out to the new; margin statistics from rank 0."""
        saved = [part["classifier"] for part in state["ranks"]]
        broad = self.classifier if isinstance(self.classifier, BroadFace) else None
        own = {"_extra_state", "head._extra_state"}  # its queue, and what it samples
        self._load_classifier({k: v for k, v in saved[0].items() if k not in own})
        if broad is None:
            return
        queues = []
        for queue in (part["_extra_state"] for part in saved):
            size = len(queue["labels"])
            first = queue["next"] if queue["count"] == size else 0
            order = (torch.arange(queue["count"]) + first) % max(size, 1)
            queues.append(tuple(queue[key][order] for key in ("embeddings", "weights", "labels")))
        mine = redistribute(queues, self.ranks.world)[self.ranks.rank]
        broad.clear()
        broad.fill(*(values.to(self.ranks.device) for values in mine))
        broad.steps = saved[0]["_extra_state"]["steps"]


def describe_data(source: FaceSource) -> dict[str, Any]:
    """What identifies the data: quick to make, unlike its digest, which reads every image."""
    identities = describe_identities(source)
    labels = hashlib.sha256(source.labels.astype("<i8").tobytes()).hexdigest()
    return {
        "origin": source.origin,
        "images": len(source),
        "classes": source.num_classes,
        "template": source.template,
        "size": source.size,
        "identities": identities,
        "fingerprint": hashlib.sha256((identities + labels).encode()).hexdigest(),
    }


def describe_left_out(source: FaceSource) -> dict[str, Any]:
    """What of the data could not be taken in: how many, and the first reasons. Not part of what
    identifies the data."""
    reasons = [failure.reason for failure in source.failures[:_REASONS]]
    return {"count": len(source.failures), "reasons": reasons}


def left_out_line(source: FaceSource) -> str:
    """The same as a sentence, of a source with failures."""
    return (
        f"{len(source.failures):,} images were left out (the reasons are in data.json); the first: "
        f"{source.failures[0].reason}"
    )


def check_fits(state: State, source: str, recipe: Recipe, data: dict[str, Any], world: int) -> None:
    """Raises ConfigError, saying what differs, unless a run of ``recipe`` on ``data`` can go on."""
    old = recipe_from(state["recipe"], source)
    wrong = differences(old, recipe)
    if wrong:
        raise ConfigError(
            f"{source} is of a run with another recipe: {'; '.join(wrong)}. Resume with that "
            "run's recipe.toml, or give the new recipe a folder of its own."
        )
    saved = state["data"]
    if saved["classes"] != data["classes"]:
        raise ConfigError(
            f"{source} has class weights of {saved['classes']:,} identities, the data has "
            f"{data['classes']:,}. Resume on the same data; to go on with other people, start a "
            "new run with start.checkpoint."
        )
    if saved["fingerprint"] != data["fingerprint"]:
        raise ConfigError(
            f"{source} was trained on other data: {saved['images']:,} images "
            f"({saved['origin']}), here are {data['images']:,} ({data['origin']}) with other "
            "identities or labels. Resume on the same data."
        )
    if recipe.run.batch_size % (world * recipe.run.accumulate):
        raise ConfigError(
            f"{source} was made by {state['world']} processes; {world} cannot take it up, because "
            f"run.batch_size {recipe.run.batch_size} does not divide into {world} x "
            f"{recipe.run.accumulate} equal parts (processes x run.accumulate)."
        )
