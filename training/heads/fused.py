"""Softmax cross-entropy over many classes in closed form, chunked. Imports torch only.

One step needs the gradient of ``mean_i (log sum_c exp(z_ic) - z_iy)`` with ``z = s cos`` and the
target's entry replaced by ``s psi``. Plain autograd keeps several (M, C) matrices for it and a
normalised copy of W. Here rows are walked in blocks of B, each block's classes in tiles that
stay in cache, and nothing of a block is kept:

1. ``E = exp(s x W^T / |w|)`` per tile, in place, the norms of W folded into the logits; row sums.
2. Across ranks, if classes are sharded: the log-sums are combined.
3. ``P = E / sum``; ``G += P^T x`` and, for batch rows only, ``dx += (P / |w|) W``.
4. After the last block, the Jacobian of W's normalisation, tile by tile while it is in cache.

So W's gradient costs two GEMMs a row, memory is ``B * C + C * d``. The target's entry is zero in
E and enters in float64, in angles (:mod:`training.heads.angles`): only M of the M * C logits
ever see a margin. ``exp`` needs no maximum taken off while ``s + ln C`` fits in float32 (every
head of the papers); beyond that a shift per row is used, checked, and made exact if it was not
enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.heads.angles import (
    Angles,
    Target,
    apply_margins,
    inverse_length,
    measure,
    refuse_second_derivatives,
)
from training.heads.problem import Problem, Solution, blocks

TILE_ELEMENTS = 1 << 21
TILE_WEIGHTS = 1 << 21
SAFE_EXPONENT = 80.0
"""exp(80) and its inverse are normal float32 numbers with a few orders of magnitude to spare."""


def own_weights(problem: Problem, weight: Tensor, start: int, stop: int) -> Tensor:
    """(b, d) class weights of the rows' labels, from whichever rank has them."""
    return problem.shard.lookup(weight, problem.own[start:stop])


class _Block:
    """Logits of one block of rows against this rank's classes, in tiles of columns."""

    def __init__(self, engine: _Engine, start: int, stop: int) -> None:
        self.engine, self.start, self.stop = engine, start, stop
        self.count = stop - start
        problem = engine.problem
        embeddings = problem.rows.load(start, stop)
        own = own_weights(problem, engine.weight, start, stop)
        self.angles: Angles | None = None
        if problem.normalise:
            self.angles = measure(embeddings, own)
            margins = problem.margins.part(start, stop)
            self.target: Target = apply_margins(
                self.angles, margins, straight_through=problem.straight_through
            )
            self.logit = problem.scale * self.target.psi
            self.features = self.angles.unit.to(engine.weight.dtype)
        else:
            self.features, self.own_rows = embeddings, own.to(embeddings.dtype)
            self.logit = (embeddings.double() * own.double()).sum(1)
            if engine.bias is not None:
                own_bias = problem.shard.lookup(engine.bias[:, None], problem.own[start:stop])
                self.logit += own_bias[:, 0]
        self._sort_targets(problem.own[start:stop])

    def _sort_targets(self, own: Tensor) -> None:
        """Rows ordered by their target's column, and where each tile's begin."""
        width = self.engine.tile_width(self.count)
        classes = len(self.engine.weight)
        self.edges = [*range(0, classes, width), classes]
        columns, order = torch.sort(own, stable=True)
        marks = torch.searchsorted(columns, torch.tensor(self.edges, device=own.device)).tolist()
        self.targets = [
            (order[a:b], columns[a:b] - edge)
            for edge, a, b in zip(self.edges, marks, marks[1:], strict=False)
        ]

    def tiles(self) -> Iterator[tuple[int, slice, Tensor]]:
        """(number, columns, (b, width) view of the buffer); each tile is contiguous."""
        keep = self.engine.keep
        for number, (low, high) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            offset = low * self.count if keep else 0
            size = self.count * (high - low)
            view = self.engine.buffer[offset : offset + size]
            yield number, slice(low, high), view.view(self.count, high - low)

    def _logits(self, columns: slice, out: Tensor) -> Tensor:
        engine = self.engine
        torch.mm(self.features, engine.weight[columns].t(), out=out)
        if engine.problem.normalise:
            out.mul_(engine.column_scale(columns))
        elif engine.bias is not None:
            out.add_(engine.bias[columns])
        return out

    def _exp_sum(self, shift: Tensor | None) -> Tensor:
        """Row sums of exp(logit - shift) without the targets, (b,) float64; E stays behind."""
        total = self.logit.new_zeros(self.count)
        for number, columns, tile in self.tiles():
            self._logits(columns, tile)
            if shift is not None:
                tile.sub_(shift[:, None])
            tile.exp_()
            tile[self.targets[number]] = 0
            total += tile.sum(1)
        return total

    def _largest(self, tiles: int | None = None) -> Tensor:
        """Each row's largest logit but its target's, over the first ``tiles`` tiles; (b,)."""
        largest = torch.full_like(self.features[:, 0], -torch.inf)
        for number, columns, tile in self.tiles():
            if number == tiles:
                break
            self._logits(columns, tile)[self.targets[number]] = -torch.inf
            torch.maximum(largest, tile.amax(1), out=largest)
        return torch.where(largest.isfinite(), largest, 0.0)

    def log_sum(self) -> Tensor:
        """log of the sum of exp over this rank's classes but the target, (b,) float64."""
        self.shift: Tensor | None = None
        if not self.engine.safe:
            self.shift = self._largest(tiles=1)
        total = self._exp_sum(self.shift)
        if self.shift is not None:
            if not bool(((total >= 0.5) & (total < math.exp(SAFE_EXPONENT))).all()):
                self.shift = self._largest()
                total = self._exp_sum(self.shift)
            return torch.log(total) + self.shift
        return torch.log(total)


class _Engine:
    """Walks the blocks of one step; every tensor here lives as long as the step."""

    def __init__(
        self,
        problem: Problem,
        weight: Tensor,
        bias: Tensor | None,
        need_rows: bool,
        need_weight: bool,
    ) -> None:
        self.problem, self.weight, self.bias = problem, weight, bias
        self.keep = need_rows or need_weight
        self.need_rows, self.need_weight = need_rows, need_weight
        count, classes = len(problem.rows.labels), len(weight)
        self.spans = list(blocks(count, problem.block_rows))
        deepest = max(stop - start for start, stop in self.spans)
        size = deepest * classes
        if not self.keep:
            size = min(size, max(TILE_ELEMENTS, deepest * self.tile_width(deepest)))
        self.buffer = weight.new_empty(size)
        exponent = problem.scale + math.log(max(classes, 2))
        self.safe = problem.normalise and exponent < SAFE_EXPONENT
        self.inverse = torch.full_like(weight[:, 0], -1.0)
        self.rows_grad = weight.new_zeros(problem.rows.batch, weight.shape[1])
        self.weight_grad = torch.empty_like(weight) if need_weight else None
        self.bias_grad = torch.zeros_like(bias) if need_weight and bias is not None else None
        self.scratch: Tensor | None = None
        self.measured = 0

    def tile_width(self, rows: int) -> int:
        """Columns of a tile: enough work for a GEMM; logits and weights of 8 MB each."""
        if self.weight.device.type != "cpu":
            return max(len(self.weight), 1)
        return max(256, min(TILE_ELEMENTS // rows, TILE_WEIGHTS // self.weight.shape[1]))

    def column_scale(self, columns: slice) -> Tensor:
        """s / |w| of the columns; measured when a tile is first met, while W is in cache."""
        if columns.stop > self.measured:
            norms = torch.linalg.vector_norm(self.weight[columns], dim=1)
            self.inverse[columns] = inverse_length(norms)
            self.measured = columns.stop
        return self.inverse[columns] * self.problem.scale

    def run(self) -> Solution:
        problem = self.problem
        losses = []
        for index, (start, stop) in enumerate(self.spans):
            block = _Block(self, start, stop)
            others = problem.shard.logsumexp(block.log_sum())
            losses.append(F.softplus(others - block.logit, threshold=50))
            if self.keep:
                self._gradients(block, others, index)
        loss = torch.cat(losses)
        return Solution(
            loss[: problem.rows.batch].mean(),
            loss.mean(),
            self.rows_grad if self.need_rows else None,
            self.weight_grad,
            self.bias_grad,
        )

    def _gradients(self, block: _Block, others: Tensor, index: int) -> None:
        normaliser = torch.logaddexp(others, block.logit)
        if block.shift is not None:
            normaliser = normaliser - block.shift
        share = torch.exp(-normaliser).to(self.weight.dtype)[:, None]
        missing = -torch.sigmoid(others - block.logit)
        ends = min(block.stop, self.problem.rows.batch) - block.start
        batch_rows = max(0, ends) if self.need_rows else 0
        through = self.weight.new_zeros(batch_rows, self.weight.shape[1])
        pull = self._target_pull(block, missing) if self.need_weight else None
        for number, columns, tile in block.tiles():
            tile.mul_(share)
            if self.weight_grad is not None and pull is not None:
                self._accumulate(block, number, columns, tile, pull, missing, index)
            if batch_rows:
                top = tile[:batch_rows]
                if self.problem.normalise:
                    top = top * self.inverse[columns]
                through.addmm_(top, self.weight[columns])
        if batch_rows:
            part = self._row_gradient(block, through, missing, batch_rows)
            self.rows_grad[block.start : block.start + batch_rows] = part

    def _target_pull(self, block: _Block, missing: Tensor) -> Tensor:
        """(b, d): each row's term in its own class's gradient, before W's Jacobian, over s."""
        if block.angles is None:
            return missing.to(self.weight.dtype)[:, None] * block.features
        along = (missing * block.target.per_angle)[:, None] * block.angles.weight_tangent
        return along.to(self.weight.dtype)

    def _accumulate(
        self,
        block: _Block,
        number: int,
        columns: slice,
        tile: Tensor,
        pull: Tensor,
        missing: Tensor,
        index: int,
    ) -> None:
        """Add one tile of one block to W's gradient; finish the tile after the last block."""
        assert self.weight_grad is not None
        grad = self.weight_grad[columns]
        if index == 0:
            torch.mm(tile.t(), block.features, out=grad)
        else:
            grad.addmm_(tile.t(), block.features)
        rows, own = block.targets[number]
        grad.index_add_(0, own, pull[rows])
        if self.bias_grad is not None:
            part = self.bias_grad[columns]
            part += tile.sum(0)
            part.index_add_(0, own, missing[rows].to(part.dtype))
        if index == len(self.spans) - 1:
            self._finish(columns, grad)

    def _finish(self, columns: slice, grad: Tensor) -> None:
        """The Jacobian of w / |w|, and the mean over the rows."""
        count = len(self.problem.rows.labels)
        if not self.problem.normalise:
            grad /= count
            if self.bias_grad is not None:
                self.bias_grad[columns] /= count
            return
        weight, inverse = self.weight[columns], self.inverse[columns]
        if self.scratch is None:
            self.scratch = torch.empty_like(weight)
        scratch = self.scratch[: len(weight)]
        radial = torch.mul(grad, weight, out=scratch).sum(1) * inverse
        torch.mul(weight, (radial * inverse)[:, None], out=scratch)
        grad.sub_(scratch).mul_((inverse * (self.problem.scale / count))[:, None])

    def _row_gradient(self, block: _Block, through: Tensor, missing: Tensor, count: int) -> Tensor:
        """(count, d) gradient of the batch loss in the raw embeddings of the block's batch rows."""
        problem = self.problem
        through = problem.shard.all_sum(through)
        missing = missing[:count]
        if block.angles is None:
            own = missing.to(through.dtype)[:, None] * block.own_rows[:count]
            return (through + own) / problem.rows.batch
        angles, target = block.angles, block.target
        unit, spread = angles.unit[:count], through.double()
        spread = spread - (spread * unit).sum(1)[:, None] * unit
        own = (missing * target.per_angle[:count])[:, None] * angles.row_tangent[:count]
        grad = (spread + own) * inverse_length(angles.norm[:count])[:, None]
        if target.per_norm is not None:
            grad = grad + (missing * target.per_norm[:count])[:, None] * unit
        return (grad * (problem.scale / problem.rows.batch)).to(through.dtype)


@torch.no_grad()
def solve(
    problem: Problem,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    need_rows: bool = False,
    need_weight: bool = False,
) -> Solution:
    """Losses and gradients of one step; autocast does not reach in here.

    Args:
        problem: rows, margins and options.
        weight: (C, d) float32 or float64, this rank's classes.
        bias: (C,), of the plain softmax.
        need_rows: the gradient in the batch's embeddings is wanted.
        need_weight: the gradient in ``weight`` (and ``bias``) is wanted.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return _Engine(problem, weight, bias, need_rows, need_weight).run()


class SoftmaxLoss(torch.autograd.Function):
    """The batch loss as a scalar; its backward hands out the gradients that forward made.

    The embeddings get the gradient of the batch loss, weight and bias that of the loss over all
    rows: the same for a batch alone, BroadFace's routing with a queue. The buffers go to the
    first backward without a copy; a second one (``retain_graph``) solves the step again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        problem: Problem,
        needs: tuple[bool, bool],
        report: Callable[[Solution], None],
    ) -> Tensor:
        ctx.save_for_backward(embeddings, weight, bias)
        ctx.problem, ctx.needs = problem, needs
        solution = solve(problem, weight, bias, need_rows=needs[0], need_weight=needs[1])
        report(solution)
        ctx.solution = solution if any(needs) else None
        return solution.batch_loss.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        embeddings, weight, bias = ctx.saved_tensors
        solution, ctx.solution = ctx.solution, None
        if solution is None:
            if not ctx.problem.rows.frozen:
                raise RuntimeError(
                    "This BroadFace step was already walked back and its queue has moved on; "
                    "call the loss again instead of using retain_graph."
                )
            wanted = ctx.needs
            solution = solve(ctx.problem, weight, bias, need_rows=wanted[0], need_weight=wanted[1])
        unit = grad.device.type == "cpu" and grad.item() == 1
        for part in (solution.rows, solution.weight, solution.bias):
            if part is not None and not unit:
                part.mul_(grad)
        rows = solution.rows
        if rows is not None:
            rows = ctx.problem.shard.own_rows(rows).to(embeddings.dtype)
        return rows, solution.weight, solution.bias, None, None, None
