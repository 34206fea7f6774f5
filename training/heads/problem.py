"""What a step of the loss is given and what it returns. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from training.heads.margins import Margins
from training.heads.shards import ClassShard

BLOCK_ROWS = 768


class Rows(Protocol):
    """The M rows of a step: the batch's first, then what a queue replays."""

    labels: Tensor
    """(M,) int64, classes over all ranks."""
    batch: int
    """How many leading rows are the batch."""
    frozen: bool
    """False if the rows change once the step is over, so that it cannot be taken again."""

    def load(self, start: int, stop: int) -> Tensor:
        """(stop - start, d) embeddings in the dtype of the computation, not normalised."""
        ...


@dataclass
class BatchRows:
    """A batch alone."""

    embeddings: Tensor
    labels: Tensor
    frozen: bool = True
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch = len(self.labels)

    def load(self, start: int, stop: int) -> Tensor:
        return self.embeddings[start:stop]


@dataclass(frozen=True)
class Problem:
    """What a step is to be solved for, apart from the weights.

    own (M,) int64: each row's column in this rank's weights, -1 where another rank has it.
    """

    rows: Rows
    own: Tensor
    margins: Margins
    scale: float
    normalise: bool
    straight_through: bool
    shard: ClassShard
    block_rows: int = BLOCK_ROWS


@dataclass
class Solution:
    """Losses of a step and the gradients that were asked for.

    batch_loss, all_loss: means over the batch and over all rows, float64 scalars. rows: gradient
    of batch_loss in the batch's embeddings (N, d). weight (C, d), bias (C,): of all_loss.
    """

    batch_loss: Tensor
    all_loss: Tensor
    rows: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def blocks(count: int, most: int) -> Iterator[tuple[int, int]]:
    """``count`` rows in the fewest blocks of at most ``most``, evenly filled."""
    number = -(-count // most)
    size = -(-count // number)
    for start in range(0, count, size):
        yield start, min(count, start + size)
