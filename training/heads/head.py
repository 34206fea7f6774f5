"""The head: checks, class weights and a margin policy around the fused loss. Imports torch only.

A head owns ``weight``; which margin its policy hands out and where the weights live are
independent of each other and of the loss (:mod:`training.heads.fused`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from facerec.errors import ConfigError, ModelError
from training.heads.angles import TargetLogits, inverse_length, measure
from training.heads.fused import SoftmaxLoss
from training.heads.margins import MarginPolicy, Margins
from training.heads.problem import BLOCK_ROWS, BatchRows, Problem, Rows, Solution, blocks
from training.heads.shards import ClassShard

Storage = Literal["dense", "sharded", "sampled"]
INIT_BLOCK = 4096


@dataclass(frozen=True)
class HeadOptions:
    """What every head takes beside its margin.

    Attributes:
        scale: s, the length that normalised embeddings are given; 1 without normalisation.
        normalise: cosines, as all margins need; False is the plain softmax with a bias.
        gradient: ``"exact"``, or ``"straight-through"``: the target's logit has the margin's
            value and the plain cosine's gradient.
        storage: ``"dense"``: all classes on this rank. ``"sharded"``: each rank of
            torch.distributed holds its share of the rows. ``"sampled"``: dense, but a step
            takes only the classes that its rows have and random others (PartialFC).
        sample_rate: share of the classes that a step takes; below 1 it also applies to shards.
        init_std: of the normal distribution that class weights start from.
        seed: of weights, margins and sampling. Ranks of a dense head draw margins of their own.
        block_rows: rows whose logits exist at one time: memory is block_rows x C x 4 bytes.
    """

    scale: float = 64.0
    normalise: bool = True
    gradient: Literal["exact", "straight-through"] = "exact"
    storage: Storage = "dense"
    sample_rate: float = 1.0
    init_std: float = 0.01
    seed: int = 0
    block_rows: int = BLOCK_ROWS


class Head(nn.Module):
    """Class weights (C, d) and a margin: ``head(embeddings, labels) -> loss``.

    Args:
        embedding_dim: d.
        num_classes: C, over all ranks.
        margin: the policy.
        options: the rest.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        margin: MarginPolicy,
        options: HeadOptions | None = None,
        name: str = "head",
    ) -> None:
        super().__init__()
        options = options or HeadOptions()
        self.name, self.options = name, options
        self.embedding_dim, self.num_classes = embedding_dim, num_classes
        self.margin = margin
        sharded = options.storage == "sharded"
        self.shard = (
            ClassShard.of_this_rank(num_classes) if sharded else ClassShard.whole(num_classes)
        )
        self.weight = nn.Parameter(torch.empty(self.shard.high - self.shard.low, embedding_dim))
        self.register_parameter(
            "bias", None if options.normalise else nn.Parameter(torch.zeros(len(self.weight)))
        )
        self.sampler = torch.Generator("cpu").manual_seed(options.seed * 1009 + self.shard.low + 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the class weights anew from the seed, the same for any number of ranks."""
        low, high = self.shard.low, self.shard.high
        for block in range(low // INIT_BLOCK, -(-high // INIT_BLOCK)):
            first = block * INIT_BLOCK
            generator = torch.Generator("cpu").manual_seed(self.options.seed * 1_000_003 + block)
            rows = min(INIT_BLOCK, self.num_classes - first)
            drawn = torch.randn(rows, self.embedding_dim, generator=generator)
            a, b = max(low, first), min(high, first + rows)
            self.weight[a - low : b - low] = drawn[a - first : b - first] * self.options.init_std

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            embeddings: (N, d), any float dtype, not normalised; N >= 1.
            labels: (N,) integers in [0, C).

        Returns:
            Scalar, float32 (float64 if the weights are). With sharded weights the mean over the
            batches of all ranks, and each rank must call with the same N.

        Raises:
            ConfigError: shapes or labels do not fit the head; names the row.
            ModelError: an embedding is not finite; names the row.
        """
        return self.step(embeddings, self.gathered(embeddings, labels))

    def gathered(self, embeddings: Tensor, labels: Tensor) -> BatchRows:
        """The checked batch of all ranks, embeddings detached, in the weights' dtype."""
        self._check_shapes(embeddings, labels)
        self.shard.same_count(len(labels), embeddings.device)
        rows = self.shard.gather(embeddings.detach().to(self.weight.dtype))
        labels = self.shard.gather(labels.detach().long())
        self._check_values(rows, labels)
        return BatchRows(rows, labels)

    def step(self, embeddings: Tensor, rows: Rows, report: list[Solution] | None = None) -> Tensor:
        """The batch loss over ``rows``, whose leading rows are the gathered ``embeddings``.

        ``report`` receives the solution's losses (its gradients belong to autograd).
        """
        margins = self._margins(rows)
        tracked = torch.is_grad_enabled()
        needs = (tracked and embeddings.requires_grad, tracked and self.weight.requires_grad)

        def tell(solution: Solution) -> None:
            if report is not None:
                report.append(Solution(solution.batch_loss, solution.all_loss))

        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        own = self.shard.local(rows.labels)
        if self.training and self.options.sample_rate < 1:
            index = self._sample(own)
            weight = weight[index]
            bias = None if bias is None else bias[index]
            place = torch.full((len(self.weight) + 1,), -1, device=own.device)
            place[index] = torch.arange(len(index), device=own.device)
            own = place[own]
        problem = self._problem(rows, own, margins)
        loss: Tensor = SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
            embeddings, weight, bias, problem, needs, tell
        )
        penalty = self._penalty(embeddings)
        return loss if penalty is None else loss + penalty

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """All logits, margins applied and scaled, float32: (N, C), for plots and tests.

        Differentiable by plain autograd, except with sharded weights. Draws margins like
        ``forward`` does, so that cross-entropy of it is forward's loss from the same state.
        """
        rows = self.gathered(embeddings, labels)
        margins = self._margins(rows)
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.shard.world > 1:
                return self._sharded_logits(rows, margins)
            features = embeddings.to(self.weight.dtype)
            target = self._target(features, self.weight[labels], margins)
            logits = self._cosines(features) * self.options.scale
            if not self.options.normalise:
                return logits
            row = torch.arange(len(labels), device=labels.device)
            return logits.index_put((row, labels), target)

    def full_weight(self) -> Tensor:
        """(C, d) class weights of all ranks, on the CPU; every rank must call. For checkpoints."""
        if self.shard.world == 1:
            return self.weight.detach().cpu()
        parts: list[Any] = [None] * self.shard.world
        dist.all_gather_object(parts, self.weight.detach().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def load_full_weight(self, weight: Tensor) -> None:
        """Take this rank's rows from ``weight`` (C, d): any number of ranks may have saved it."""
        if weight.shape != (self.num_classes, self.embedding_dim):
            raise ConfigError(
                f"These class weights are {tuple(weight.shape)}, the head is "
                f"({self.num_classes}, {self.embedding_dim})."
            )
        self.weight.copy_(weight[self.shard.low : self.shard.high])

    def get_extra_state(self) -> dict[str, Any]:
        return {"sampler": self.sampler.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.sampler.set_state(state["sampler"].cpu())

    def extra_repr(self) -> str:
        return f"{self.name}, d={self.embedding_dim}, C={self.num_classes}, {self.options}"

    def _check_shapes(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ConfigError(
                f"Embeddings of shape {tuple(embeddings.shape)} for a head of "
                f"{self.embedding_dim} dimensions; it takes (N, {self.embedding_dim})."
            )
        if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
            raise ConfigError(
                f"Labels of shape {tuple(labels.shape)} and {labels.dtype} for "
                f"{len(embeddings)} embeddings; give one integer a row."
            )
        if not len(labels):
            raise ConfigError("The batch is empty; a mean over no rows is no loss.")
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"The head's weights are {self.weight.dtype}: logits near 64 need float32. "
                "Keep the head in float32 and let autocast or the backbone be lower."
            )

    def _check_values(self, rows: Tensor, labels: Tensor) -> None:
        wrong = (labels < 0) | (labels >= self.num_classes)
        broken = ~torch.isfinite(rows).all(dim=1)
        if not bool((wrong | broken).any()):
            return
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ConfigError(
                f"Row {row} of the batch has label {int(labels[row])}, but the head has classes "
                f"0 to {self.num_classes - 1}: the data has other classes than the head."
            )
        row = int(broken.nonzero()[0])
        raise ModelError(
            f"The embedding in row {row} of the batch (label {int(labels[row])}) is not finite: "
            "the backbone has diverged or read a broken image. Lower the learning rate, clip "
            "gradients, or look at that image."
        )

    @torch.no_grad()
    def _margins(self, rows: Rows) -> Margins:
        """Margins of all rows, the batch's from one draw and the replayed rows' from another."""
        if type(self.margin) is MarginPolicy or not self.options.normalise:
            return self.margin.margins(self.weight.new_zeros(0), self.weight.new_zeros(0))
        own = self.shard.local(rows.labels)
        cosines, norms = [], []
        for start, stop in blocks(len(rows.labels), self.options.block_rows):
            target = self.shard.lookup(self.weight, own[start:stop])
            angles = measure(rows.load(start, stop), target)
            cosines.append(angles.cosine)
            norms.append(angles.norm)
        cosine, norm, count = torch.cat(cosines), torch.cat(norms), rows.batch
        batch = self.margin.margins(cosine[:count], norm[:count])
        if count == len(cosine):
            return batch
        return batch.joined(self.margin.margins(cosine[count:], norm[count:], replay=True))

    def _problem(self, rows: Rows, own: Tensor, margins: Margins) -> Problem:
        options = self.options
        return Problem(
            rows,
            own,
            margins,
            options.scale,
            options.normalise,
            options.gradient == "straight-through",
            self.shard,
            options.block_rows,
        )

    def _penalty(self, embeddings: Tensor) -> Tensor | None:
        """The policy's own term of the batch loss (MagFace's), with its gradient."""
        norm = torch.linalg.vector_norm(embeddings.to(self.weight.dtype), dim=1)
        rows = self.margin.penalty(norm)
        if rows is None:
            return None
        if self.shard.world == 1:
            return rows.mean()
        mean = self.shard.gather(rows.detach()).mean()
        return rows.mean() + (mean - rows.detach().mean())

    @torch.no_grad()
    def _sample(self, own: Tensor) -> Tensor:
        """Sorted columns of one step: every class of its rows, then random ones up to the rate."""
        classes = len(self.weight)
        positive = torch.unique(own[own >= 0]).cpu()
        wanted = max(round(classes * self.options.sample_rate), 1)
        keys = torch.rand(classes, generator=self.sampler)
        keys[positive] = 2.0
        count = max(len(positive), wanted)
        return keys.topk(count).indices.sort().values.to(own.device)

    def _target(self, features: Tensor, own: Tensor, margins: Margins) -> Tensor:
        psi: Tensor = TargetLogits.apply(  # type: ignore[no-untyped-call]
            features, own, margins, self.options.gradient == "straight-through"
        )
        return psi * self.options.scale

    def _cosines(self, features: Tensor) -> Tensor:
        """(n, C) cosines of this rank's classes, or inner products plus bias."""
        if not self.options.normalise:
            logits = features @ self.weight.t()
            return logits if self.bias is None else logits + self.bias
        lengths = [torch.linalg.vector_norm(v, dim=1) for v in (features, self.weight)]
        rows, columns = (inverse_length(v) for v in lengths)
        return (features * rows[:, None]) @ self.weight.t() * columns

    @torch.no_grad()
    def _sharded_logits(self, rows: BatchRows, margins: Margins) -> Tensor:
        """This rank's (N, C) logits from every rank's columns."""
        own = self.shard.local(rows.labels)
        logits = self._cosines(rows.embeddings) * self.options.scale
        if self.options.normalise:
            target = self._target(rows.embeddings, self.shard.lookup(self.weight, own), margins)
            here = own >= 0
            logits[here.nonzero()[:, 0], own[here]] = target[here]
        parts: list[Any] = [None] * self.shard.world
        dist.all_gather_object(parts, logits.cpu())
        count = len(rows.labels) // self.shard.world
        mine = slice(self.shard.rank * count, (self.shard.rank + 1) * count)
        return torch.cat(parts, dim=1)[mine].to(logits.device)
