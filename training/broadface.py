"""BroadFace (Kim et al., ECCV 2020, arXiv 2008.06674) around any head. Imports torch only.

A queue keeps the Q last embeddings e-, their labels and their class weights of that time W_y-.
Every step trains the encoder on the batch alone and the classifier on batch and queue, whose
embeddings first move as far as their class weight has moved since:

    e* = e- + |e-| / |W_y-| (W_y - W_y-)                                     (compensation)
    encoder:     1/N sum_batch l(e_i)                          reaches the embeddings only
    classifier:  1/(N+Q) (sum_batch l(e_i) + sum_queue l(e_j*))  reaches W only

Both come from one walk over the rows (:mod:`training.heads.fused`): two GEMMs a queue row, no
more memory than for the batch but one block of logits and the queue itself, 2 Q d float32.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from facerec.errors import ConfigError
from training.heads.angles import inverse_length
from training.heads.head import Head
from training.heads.problem import BatchRows, Solution

DRIFTS = ("raw", "normalised")
Drift = Literal["raw", "normalised"]


class BroadFace(nn.Module):
    """A head whose classifier also learns from the last ``queue_size`` embeddings.

    In evaluation it is the head alone, and the queue rests.

    Args:
        head: any head; its margin is drawn again for each replay.
        queue_size: Q, of this rank: with R ranks each keeps its share Q/R. 0 is the plain head.
        compensate: move queued embeddings with their class weight; False replays them as stored.
        drift: ``"raw"``, the paper's formula, or ``"normalised"``: |e-| (W_y / |W_y| -
            W_y- / |W_y-|), which a change of W's length alone leaves at zero.
        warmup_steps: steps that fill the queue without learning from it, until W has settled.

    Attributes:
        classifier_loss: the last step's loss over batch and queue, detached; None before. It
            leaves out terms that W has no part in (MagFace's g).
        replayed: how many queue rows the last step took, over all ranks.
    """

    def __init__(
        self,
        head: Head,
        queue_size: int,
        compensate: bool = True,
        drift: Drift = "raw",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if queue_size < 0 or warmup_steps < 0:
            raise ConfigError(
                f"BroadFace needs queue_size and warmup_steps of 0 or more, not {queue_size} and "
                f"{warmup_steps}."
            )
        if drift not in DRIFTS:
            raise ConfigError(f"BroadFace: drift is {drift!r}; it can be {' or '.join(DRIFTS)}.")
        self.head, self.queue_size = head, queue_size
        self.compensate, self.drift, self.warmup_steps = compensate, drift, warmup_steps
        self.classifier_loss: Tensor | None = None
        self.replayed = 0
        self.next, self.count, self.steps = 0, 0, 0
        shape = (queue_size, head.embedding_dim)
        like = head.weight.detach()
        self.embeddings = like.new_zeros(shape)
        self.weights = like.new_zeros(shape)
        self.labels = like.new_zeros(queue_size, dtype=torch.int64)

    @property
    def weight(self) -> nn.Parameter:
        """The head's class weights (C, d)."""
        return self.head.weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The encoder's loss, the batch's mean, as a scalar; what it may raise is the head's.

        Its backward gives the embeddings the gradient of that loss and W the gradient of
        ``classifier_loss``. The batch then enters the queue and the oldest entries leave.

        Args:
            embeddings: (N, d), any float dtype, not normalised.
            labels: (N,) integers in [0, C).
        """
        if not self.training:
            loss: Tensor = self.head(embeddings, labels)
            return loss
        batch = self.head.gathered(embeddings, labels)
        used = self.count if self.steps >= self.warmup_steps else 0
        rows = BroadRows(batch, self, used) if used else batch
        report: list[Solution] = []
        loss = self.head.step(embeddings, rows, report)
        self.classifier_loss = report[0].all_loss.to(loss.dtype)
        self.replayed = len(rows.labels) - rows.batch
        self._push(batch)
        self.steps += 1
        return loss

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The head's logits of a batch, (N, C)."""
        return self.head.logits(embeddings, labels)

    def queue(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries from oldest to newest: embeddings (n, d), class weights (n, d), labels (n,)."""
        first = self.next if self.count == self.queue_size else 0
        order = (torch.arange(self.count) + first) % max(self.queue_size, 1)
        order = order.to(self.labels.device)
        return self.embeddings[order], self.weights[order], self.labels[order]

    def clear(self) -> None:
        """Forget every entry; the steps taken still count for the warm-up."""
        self.next, self.count = 0, 0

    @torch.no_grad()
    def fill(self, embeddings: Tensor, weights: Tensor, labels: Tensor) -> None:
        """Add entries, oldest first; the last ``queue_size`` stay.

        For a change of the queue's size or of the number of ranks between runs: ``fill`` a new
        queue with what ``queue`` gave.
        """
        kept = min(len(labels), self.queue_size)
        if not kept:
            return
        place = (torch.arange(kept) + self.next) % self.queue_size
        place = place.to(self.labels.device)
        self.embeddings[place] = embeddings[-kept:].to(self.embeddings.dtype)
        self.weights[place] = weights[-kept:].to(self.weights.dtype)
        self.labels[place] = labels[-kept:]
        self.next = (self.next + kept) % self.queue_size
        self.count = min(self.count + kept, self.queue_size)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "embeddings": self.embeddings,
            "weights": self.weights,
            "labels": self.labels,
            "next": self.next,
            "count": self.count,
            "steps": self.steps,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["embeddings"].shape != self.embeddings.shape:
            raise ConfigError(
                f"The checkpoint's queue is {tuple(state['embeddings'].shape)}, this one is "
                f"{tuple(self.embeddings.shape)}: resume with the same queue size and number of "
                "ranks, or move the entries with BroadFace.fill."
            )
        for name in ("embeddings", "weights", "labels"):
            getattr(self, name).copy_(state[name])
        self.next, self.count, self.steps = state["next"], state["count"], state["steps"]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the queue with the module, in the dtype of the head's weights.

        The queue is no buffer, because DistributedDataParallel would overwrite every rank's
        with that of rank 0.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        like = self.head.weight
        self.embeddings = self.embeddings.to(like.device, like.dtype)
        self.weights = self.weights.to(like.device, like.dtype)
        self.labels = self.labels.to(like.device)
        return self

    @torch.no_grad()
    def _push(self, batch: BatchRows) -> None:
        """This rank's rows of the batch, with their class weights as they are now."""
        shard = self.head.shard
        own = shard.lookup(self.head.weight.detach(), shard.local(batch.labels))
        count = batch.batch // shard.world
        mine = slice(shard.rank * count, (shard.rank + 1) * count)
        self.fill(batch.embeddings[mine], own[mine], batch.labels[mine])

    def extra_repr(self) -> str:
        return (
            f"queue_size={self.queue_size}, compensate={self.compensate}, drift={self.drift}, "
            f"warmup_steps={self.warmup_steps}"
        )


class BroadRows:
    """A batch, then the queue's rows, compensated as they are loaded.

    With sharded class weights the queue's rows are those of all ranks, interleaved so that
    every span of them is an equal number of rows from each.
    """

    frozen = False

    def __init__(self, batch: BatchRows, broad: BroadFace, used: int) -> None:
        self._batch, self._broad, self._used = batch, broad, used
        self._shard = broad.head.shard
        self.batch = batch.batch
        queued = self._interleaved(broad.labels[:used])
        self.labels = torch.cat([batch.labels, queued])

    def load(self, start: int, stop: int) -> Tensor:
        parts = []
        if start < self.batch:
            parts.append(self._batch.embeddings[start : min(stop, self.batch)])
        if stop > self.batch:
            parts.append(self._replayed(max(start, self.batch) - self.batch, stop - self.batch))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _interleaved(self, values: Tensor) -> Tensor:
        """(n, ...) of each rank -> (world * n, ...), entry by entry."""
        world = self._shard.world
        if world == 1:
            return values
        parts = self._shard.gather(values).view(world, *values.shape)
        return parts.transpose(0, 1).reshape(-1, *values.shape[1:])

    def _replayed(self, start: int, stop: int) -> Tensor:
        """(stop - start, d) rows of the interleaved queue, in the weights' dtype."""
        broad, world = self._broad, self._shard.world
        low, high = start // world, -(-stop // world)
        cut = slice(start - low * world, stop - low * world)
        weight = broad.head.weight.detach()
        stored = self._interleaved(broad.embeddings[low:high])[cut].to(weight.dtype)
        if not broad.compensate:
            return stored
        then = self._interleaved(broad.weights[low:high])[cut].to(weight.dtype)
        labels = self.labels[self.batch + start : self.batch + stop]
        now = self._shard.lookup(weight, self._shard.local(labels))
        return stored + drift(stored, then, now, broad.drift)


def drift(stored: Tensor, then: Tensor, now: Tensor, kind: Drift) -> Tensor:
    """How far each stored embedding (n, d) moves with its class weight, ``then`` to ``now``.

    ``"raw"``: |e-| / |W-| (W - W-), the paper's. ``"normalised"``: |e-| (W/|W| - W-/|W-|).
    """
    length = torch.linalg.vector_norm(stored, dim=1)[:, None]
    inverse_then = inverse_length(torch.linalg.vector_norm(then, dim=1))[:, None]
    if kind == "raw":
        moved: Tensor = length * inverse_then * (now - then)
        return moved
    inverse_now = inverse_length(torch.linalg.vector_norm(now, dim=1))[:, None]
    turned: Tensor = length * (now * inverse_now - then * inverse_then)
    return turned
