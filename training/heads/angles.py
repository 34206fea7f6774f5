"""The target's logit and its derivatives, in angles and float64. Imports torch only.

Every formula of a margin is smooth in theta, while its form in cos(theta) has a division by
sin(theta) that float32 cannot carry near 0 and pi. So the angle of each row and its own class
weight is measured with atan2, without acos, and its gradient is a unit tangent:
``d theta / d e = -(w - cos e) / (|w - cos e| |e|)`` for unit e and w, whose length is 1/|e|
everywhere. At theta = 0 or pi, where the direction is undefined, it is zero. All of this is
O(M * d) work on the targets alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.heads.margins import Margins

NO_DIRECTION = 1e-12
"""Vectors shorter than this have no direction: their cosine is 0 and so is their gradient."""


@dataclass(frozen=True)
class Angles:
    """M embeddings against their class weights; float64.

    cosine, theta (radians), norm, weight_norm: (M,). unit, weight_unit: (M, d). row_tangent and
    weight_tangent (M, d): d theta / d unit embedding and d theta / d unit weight, length 1.
    """

    cosine: Tensor
    theta: Tensor
    norm: Tensor
    weight_norm: Tensor
    unit: Tensor
    weight_unit: Tensor
    row_tangent: Tensor
    weight_tangent: Tensor


def inverse_length(length: Tensor) -> Tensor:
    """1 / length, and 0 for what has no direction."""
    return torch.where(length < NO_DIRECTION, 0.0, 1 / length.clamp_min(NO_DIRECTION))


def measure(embeddings: Tensor, weights: Tensor) -> Angles:
    """Angles of rows (M, d) against ``weights`` (M, d), row by row."""
    rows, own = embeddings.double(), weights.double()
    norm, weight_norm = (torch.linalg.vector_norm(v, dim=1) for v in (rows, own))
    unit = rows * inverse_length(norm)[:, None]
    weight_unit = own * inverse_length(weight_norm)[:, None]
    cosine = (unit * weight_unit).sum(1)
    to_weight = weight_unit - cosine[:, None] * unit
    to_row = unit - cosine[:, None] * weight_unit
    sine = torch.linalg.vector_norm(to_weight, dim=1)
    other_sine = torch.linalg.vector_norm(to_row, dim=1)
    return Angles(
        cosine,
        torch.atan2(sine, cosine),
        norm,
        weight_norm,
        unit,
        weight_unit,
        -to_weight / sine.clamp_min(NO_DIRECTION)[:, None],
        -to_row / other_sine.clamp_min(NO_DIRECTION)[:, None],
    )


@dataclass(frozen=True)
class Target:
    """Target logits over ``scale``, (M,) float64, and their slopes in the angle and the norm."""

    psi: Tensor
    per_angle: Tensor
    per_norm: Tensor | None


def apply_margins(angles: Angles, margins: Margins, *, straight_through: bool) -> Target:
    """psi of each row, with d psi / d theta and, for MagFace, d psi / d |e|.

    ``straight_through``: the value is the margin's, the gradient that of the plain cosine, as
    if the margin were added outside of the graph. The exact gradient is the other one.
    """
    psi, per_phase = margins.psi(angles.theta)
    if straight_through:
        return Target(psi, -torch.sin(angles.theta), None)
    per_norm = None if margins.m2_slope is None else per_phase * margins.m2_slope
    return Target(psi, margins.m1 * per_phase, per_norm)


def refuse_second_derivatives() -> None:
    """Raise in a backward under ``create_graph``: a closed form would count as a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The heads' gradients are closed-form and have no second derivative: "
            "create_graph=True cannot pass through them."
        )


class TargetLogits(torch.autograd.Function):
    """psi of each row as a differentiable function of embeddings and own weights, both (M, d)."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weights: Tensor, margins: Margins, straight_through: bool
    ) -> Tensor:
        ctx.save_for_backward(embeddings, weights)
        ctx.margins, ctx.straight_through = margins, straight_through
        angles = measure(embeddings, weights)
        target = apply_margins(angles, margins, straight_through=straight_through)
        return target.psi.to(weights.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        embeddings, weights = ctx.saved_tensors
        angles = measure(embeddings, weights)
        target = apply_margins(angles, ctx.margins, straight_through=ctx.straight_through)
        along = (grad * target.per_angle)[:, None]
        rows = along * angles.row_tangent * inverse_length(angles.norm)[:, None]
        if target.per_norm is not None:
            rows = rows + (grad * target.per_norm)[:, None] * angles.unit
        own = along * angles.weight_tangent * inverse_length(angles.weight_norm)[:, None]
        return rows.to(embeddings.dtype), own.to(weights.dtype), None, None
