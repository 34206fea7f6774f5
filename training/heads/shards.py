"""Where class weights live: all here, or a range of rows on each rank. Imports torch only.

A :class:`ClassShard` is the only thing that talks to other ranks. With one rank every method is
the identity, so that the loss is written once. The batch of a sharded head is the batches of all
ranks one after the other, and its loss the mean over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from facerec.errors import ConfigError


@dataclass(frozen=True)
class ClassShard:
    """Classes ``low:high`` of ``total``, held by ``rank`` of ``world``."""

    low: int
    high: int
    total: int
    rank: int = 0
    world: int = 1

    @staticmethod
    def whole(total: int) -> ClassShard:
        """Every class on this rank."""
        return ClassShard(0, total, total)

    @staticmethod
    def of_this_rank(total: int) -> ClassShard:
        """This rank's even share; the first ``total % world`` ranks hold one class more."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "Sharded class weights need torch.distributed: start with torchrun, or choose "
                "storage 'dense'."
            )
        rank, world = dist.get_rank(), dist.get_world_size()
        if total < world:
            raise ConfigError(f"{total} classes cannot be sharded over {world} ranks.")
        share, more = divmod(total, world)
        low = rank * share + min(rank, more)
        return ClassShard(low, low + share + (rank < more), total, rank, world)

    def local(self, labels: Tensor) -> Tensor:
        """(M,) columns of this rank, -1 where another rank has the class."""
        if self.world == 1:
            return labels
        mine = (labels >= self.low) & (labels < self.high)
        return torch.where(mine, labels - self.low, -1)

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of every rank, one after the other: (world * n, ...). n must be the same."""
        if self.world == 1:
            return rows
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def same_count(self, count: int, device: torch.device) -> None:
        """Raise ConfigError on every rank if their batches differ in length."""
        if self.world > 1:
            counts = self.gather(torch.tensor([count], device=device)).tolist()
            if len(set(counts)) > 1:
                raise ConfigError(
                    f"Sharded class weights need batches of one size on all ranks, got {counts}: "
                    "drop the last incomplete batch."
                )

    def own_rows(self, rows: Tensor) -> Tensor:
        """This rank's part of gathered gradients, times ``world``.

        Data parallelism averages the encoder's gradient over the ranks, and the loss is already
        a mean over all of them.
        """
        if self.world == 1:
            return rows
        count = len(rows) // self.world
        return rows[self.rank * count : (self.rank + 1) * count] * self.world

    def all_sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def logsumexp(self, values: Tensor) -> Tensor:
        """log of the sum over ranks of exp(values), elementwise; -inf is an empty sum."""
        if self.world == 1:
            return values
        largest = values.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        held = torch.where(largest.isfinite(), largest, 0.0)
        return torch.log(self.all_sum(torch.exp(values - held))) + held

    def lookup(self, weight: Tensor, own: Tensor) -> Tensor:
        """(b, d) rows of ``weight`` for local columns ``own``, from whichever rank has each."""
        if self.world == 1:
            return weight[own]
        found = torch.where((own >= 0)[:, None], weight[own.clamp_min(0)], 0)
        return self.all_sum(found)
