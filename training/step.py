"""One optimiser step: gradients of a batch, a look at them, the update. Imports torch only.

Kept apart from the loop, so that the loop reads from top to bottom and a step can be timed and
tested on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from facerec.errors import ModelError
from training.backbones import Backbone
from training.broadface import BroadFace
from training.build import freeze_statistics, head_of
from training.data import Batch
from training.heldout import autocast
from training.state import Training

SMALLEST_LOSS_SCALE = 1.0
"""float16 overflow at an unscaled loss is no matter of scaling any more."""


class Diverged(ModelError):
    """A loss or a gradient is not finite; weights are as they were before this step."""


@dataclass(frozen=True)
class Figures:
    """A step before its update, over all ranks.

    loss: what the encoder learns from. classifier_loss: BroadFace's, else the same. Gradients:
    Euclidean norms before clipping. overflow: float16 left its range, the update is to be left
    out. signals: how many ranks were sent SIGINT, and SIGTERM.
    """

    loss: float
    classifier_loss: float
    embedding_norm: float
    backbone_gradient: float
    head_gradient: float
    overflow: bool
    signals: tuple[int, int]


@dataclass
class Stepper:
    """The machinery of a step. network: the backbone as it is called: compiled, and wrapped for
    several ranks. teacher: frozen, to be stayed close to. norms: of the embeddings of the last
    batch, (n,) each part."""

    training: Training
    network: nn.Module
    precision: torch.dtype | None
    teacher: Backbone | None = None
    norms: list[Tensor] = field(default_factory=list)

    def gradients(self, batch: Batch, signals: tuple[int, int] = (0, 0)) -> Figures:
        """Forward and backward over the parts of this rank's batch; gradients stay in ``.grad``.

        Raises Diverged, on all ranks alike, where loss or gradient is not finite.
        """
        training, parts = self.training, self.training.recipe.run.accumulate
        training.backbone.train()
        training.classifier.train()
        if training.recipe.backbone.batch_norm == "frozen":
            freeze_statistics(training.backbone)
        training.optimizer.zero_grad(set_to_none=True)
        self.norms, losses = [], []
        chunks = zip(batch.images.chunk(parts), batch.labels.chunk(parts), strict=True)
        for number, (chips, labels) in enumerate(chunks, 1):
            with self._meeting(number == parts):
                loss = self._loss(chips, labels)
                training.scaler.scale(loss / parts).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        training.scaler.unscale_(training.optimizer)
        self._average_head()
        return self._figures(torch.stack(losses).mean(), signals)

    def _loss(self, chips: Tensor, labels: Tensor) -> Tensor:
        """Scalar float32 of chips (n, 3, S, S) uint8 and labels (n,) int64, mean over n."""
        training = self.training
        recipe, device = training.recipe, training.ranks.device
        images = chips.to(device, non_blocking=True)
        if not recipe.run.channels_last:
            images = images.contiguous()
        images = training.backbone.preprocessing.apply(images)  # (n, 3, S, S) float32
        with autocast(device, self.precision):
            embeddings = self.network(images)
        embeddings = embeddings.float()  # (n, d); head and loss are float32, outside of autocast
        self.norms.append(torch.linalg.vector_norm(embeddings.detach(), dim=1))
        try:
            loss: Tensor = training.classifier(embeddings, labels.to(device, non_blocking=True))
        except ModelError as exc:
            raise Diverged(str(exc)) from exc
        if self.teacher is not None:
            with torch.no_grad(), autocast(device, self.precision):
                wanted = self.teacher(images).float()
            loss = loss + recipe.start.distil * (1 - F.cosine_similarity(embeddings, wanted)).mean()
        return loss

    def _meeting(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of the backbone meet the other ranks' in the last part only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _average_head(self) -> None:
        """Dense class weights are a copy on every rank, each with the gradient of its images."""
        ranks, head = self.training.ranks, head_of(self.training.classifier)
        if ranks.world > 1 and head.shard.world == 1:
            for parameter in head.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= ranks.world

    def _figures(self, loss: Tensor, signals: tuple[int, int]) -> Figures:
        training, ranks = self.training, self.training.ranks
        head = head_of(training.classifier)
        classifier_loss = loss
        if isinstance(training.classifier, BroadFace):
            found = training.classifier.classifier_loss
            classifier_loss = loss if found is None else found
        norm = torch.cat(self.norms).mean()
        gradients = [_norm(training.backbone.parameters()), _norm(head.parameters())]
        here = torch.stack([loss, classifier_loss.to(loss), norm, *gradients])
        values = here.tolist()  # the step's one wait for the device
        # Shards have parts of one gradient, copies the same one, which must count once.
        square = values[4] ** 2 / (1 if head.shard.world > 1 else ranks.world)
        totals = ranks.sum([*values[:3], square, *signals])
        figures = Figures(
            loss=totals[0] / ranks.world,
            classifier_loss=totals[1] / ranks.world,
            embedding_norm=totals[2] / ranks.world,
            backbone_gradient=values[3],  # the same on every rank
            head_gradient=math.sqrt(totals[3]) if totals[3] >= 0 else math.nan,
            overflow=training.scaler.is_enabled()
            and not (math.isfinite(values[3]) and math.isfinite(totals[3])),
            signals=(round(totals[4]), round(totals[5])),
        )
        self._check(figures)
        return figures

    def _check(self, figures: Figures) -> None:
        values = (figures.loss, figures.backbone_gradient, figures.head_gradient)
        if all(map(math.isfinite, values)) or (figures.overflow and math.isfinite(figures.loss)):
            return
        raise Diverged(
            f"the loss is {values[0]:g}, the gradient's norm {values[1]:g} in the backbone and "
            f"{values[2]:g} in the class weights"
        )

    def update(self, figures: Figures) -> None:
        """Clip as the recipe says and take the step; after an overflow, lower the loss scale.

        torch's scaler decides per rank whether to leave a step out, and ranks with other class
        weights may see it differently: here all of them decide by the same figures.
        """
        training = self.training
        if figures.overflow:
            scale = training.scaler.get_scale() * training.scaler.get_backoff_factor()
            if scale < SMALLEST_LOSS_SCALE:
                raise Diverged(f"the loss scale is down to {scale:g}, and gradients still overflow")
            training.scaler.update(scale)
            return
        self._clip(figures)
        training.optimizer.step()
        training.scaler.update()
        if training.average is not None:
            training.average.update(training.backbone)

    def _clip(self, figures: Figures) -> None:
        optim = self.training.recipe.optim
        if not optim.clip:
            return
        parameters = list(self.training.backbone.parameters())
        norm = figures.backbone_gradient
        if optim.clip_scope == "together":
            parameters += head_of(self.training.classifier).parameters()
            norm = math.hypot(norm, figures.head_gradient)
        if norm > optim.clip:
            device = self.training.ranks.device
            total = torch.tensor(norm, device=device)
            torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip, total)


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of the gradients, a scalar on their device; NaN and inf are kept."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
