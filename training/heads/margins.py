"""Margin policies: which triple (m1, m2, m3) each row gets. Imports torch only.

The target's logit is ``scale * psi(theta)`` with ``psi = f(m1 * theta + m2) - m3``, where theta
is the angle between the embedding and its class weight. ``f`` is the cosine on [0, pi] and
continues beyond it as SphereFace does (Liu 2017, section 3): ``f(phi) = (-1)^k cos(phi) - 2k``
with ``k = floor(phi / pi)``. So f is continuous, has the continuous slope ``-|sin(phi)|`` and
falls over the whole line: theta + m beyond pi needs no second formula, and neither does a
negative phase (AdaFace's g_angle reaches -m), where a plain cosine would push the embedding
away from its own class.

A policy sees the targets' cosines and the embeddings' norms, both (M,) float64, and nothing of
the other classes: margins cost O(M), never O(M * C).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST_MARGIN_RAD = math.pi


@dataclass(frozen=True)
class Margins:
    """One triple per row, or one for all: float, or (M,) float64.

    ``m2_slope`` is d m2 / d |e| per unit of norm, (M,) float64, where the margin depends on the
    embedding's norm *and* the gradient is to pass through it (MagFace); None elsewhere.
    """

    m1: float = 1.0
    m2: Tensor | float = 0.0
    m3: Tensor | float = 0.0
    m2_slope: Tensor | None = None

    def part(self, start: int, stop: int) -> Margins:
        """The margins of the rows ``start:stop``."""

        def cut(value: Tensor | float) -> Tensor | float:
            return value[start:stop] if isinstance(value, Tensor) else value

        slope = None if self.m2_slope is None else self.m2_slope[start:stop]
        return Margins(self.m1, cut(self.m2), cut(self.m3), slope)

    def joined(self, other: Margins) -> Margins:
        """These margins of the first rows, then ``other``'s of the rest."""

        def join(a: Tensor | float, b: Tensor | float) -> Tensor | float:
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                return torch.cat([a, b])
            return a

        slope = self.m2_slope
        if slope is not None and other.m2_slope is not None:
            slope = torch.cat([slope, other.m2_slope])
        return Margins(self.m1, join(self.m2, other.m2), join(self.m3, other.m3), slope)

    def psi(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """psi and d psi / d phase at the angles ``theta`` (M,), radians; both (M,)."""
        phase = self.m1 * theta + self.m2
        half_turns = torch.floor(phase / math.pi)
        sign = 1 - 2 * torch.remainder(half_turns, 2)
        return sign * torch.cos(phase) - 2 * half_turns - self.m3, -torch.sin(phase).abs()


class MarginPolicy(nn.Module):
    """The same triple for every row: NormFace, SphereFace, CosFace, ArcFace, combined.

    m1 multiplies the angle, m2 (radians) adds to it, m3 is taken off the cosine
    (Deng 2019, equation 4).
    """

    def __init__(self, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)

    def margins(self, cosine: Tensor, norm: Tensor, *, replay: bool = False) -> Margins:
        """The rows' margins.

        Args:
            cosine: (M,) float64, of each embedding and its class weight.
            norm: (M,) float64, the embeddings' lengths.
            replay: the rows come from a queue; running statistics leave them out.
        """
        return Margins(self.m1, self.m2, self.m3)

    def penalty(self, norm: Tensor) -> Tensor | None:
        """What is added to each row's loss, (M,), differentiable in ``norm``; None for nothing."""
        return None

    def extra_repr(self) -> str:
        return f"m1={self.m1}, m2={self.m2}, m3={self.m3}"


class ElasticMargin(MarginPolicy):
    """ElasticFace (Boutros 2022, equations 6 to 9): margins drawn from N(margin, sigma).

    Drawn afresh for every row and step in training, on the CPU, from a generator of its own
    whose state is part of ``state_dict``. In evaluation every row gets the mean, so that a
    validation loss neither varies nor moves the generator.

    Args:
        kind: ``"arc"``, the margin is m2 in radians; ``"cos"``, it is m3.
        margin: mean of the draw.
        sigma: its standard deviation.
        plus: hand the drawn margins out by difficulty: the row farthest from its class weight
            gets the largest (the paper's ElasticFace+).
        seed: of the generator.
    """

    def __init__(self, kind: str, margin: float, sigma: float, *, plus: bool, seed: int) -> None:
        super().__init__()
        self.kind, self.margin, self.sigma, self.plus = kind, float(margin), float(sigma), plus
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def margins(self, cosine: Tensor, norm: Tensor, *, replay: bool = False) -> Margins:
        if not self.training:
            drawn = cosine.new_full(cosine.shape, self.margin)
        else:
            noise = torch.randn(len(cosine), generator=self.generator, dtype=torch.float64)
            drawn = (self.margin + self.sigma * noise).to(cosine.device)
            if self.plus:
                farthest_first = torch.argsort(cosine, stable=True)
                handed = torch.empty_like(drawn)
                handed[farthest_first] = drawn.sort(descending=True).values
                drawn = handed
        return Margins(m2=drawn) if self.kind == "arc" else Margins(m3=drawn)

    def get_extra_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())

    def extra_repr(self) -> str:
        plus = ", plus" if self.plus else ""
        return f"{self.kind}, margin={self.margin}, sigma={self.sigma}{plus}"


class AdaMargin(MarginPolicy):
    """AdaFace (Kim 2022, equations 8 to 11): the margin follows the norm, a proxy of quality.

    ``q = clip((|e| - mean) / (std / h), -1, 1)``, ``g_angle = -m q``, ``g_add = m q + m``; the
    target's logit is ``scale * (cos(theta + g_angle) - g_add)``. The norm carries no gradient.
    Mean and std are exponential moving averages of the batches' statistics, buffers of the
    module, updated before use in training and left alone by replayed rows and in evaluation.
    The first batch sets them (the paper starts from constants that suit one backbone).
    """

    mean: Tensor
    std: Tensor
    batches: Tensor

    def __init__(self, margin: float, h: float, momentum: float) -> None:
        super().__init__()
        self.margin, self.h, self.momentum = float(margin), float(h), float(momentum)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the module, but stay float64: ``head.half()`` must not round statistics."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = self.mean.double(), self.std.double()
        return self

    @torch.no_grad()
    def _update(self, norm: Tensor) -> None:
        keep = self.momentum if self.batches else 0.0
        self.mean.mul_(keep).add_(norm.mean(), alpha=1 - keep)
        if len(norm) > 1:
            self.std.mul_(keep).add_(norm.std(), alpha=1 - keep)
        self.batches += 1

    def margins(self, cosine: Tensor, norm: Tensor, *, replay: bool = False) -> Margins:
        if self.training and not replay:
            self._update(norm)
        quality = (self.h * (norm - self.mean) / self.std.clamp_min(1e-3)).clamp(-1, 1)
        return Margins(m2=-self.margin * quality, m3=self.margin * quality + self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, h={self.h}, momentum={self.momentum}"


class MagMargin(MarginPolicy):
    """MagFace (Meng 2021, equation 4): the margin ``m(a)`` grows with the norm a.

    ``m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)`` in radians, held outside [l_a, u_a];
    ``g(a) = 1 / a + a / u_a^2``, times ``lambda_g``, is added to the loss. Both pass their
    gradient on to the norm: that is what makes the norm measure quality. Below l_a, where 1/a
    would explode, g goes on along its tangent.
    """

    def __init__(self, l_a: float, u_a: float, l_m: float, u_m: float, lambda_g: float) -> None:
        super().__init__()
        self.l_a, self.u_a, self.l_m, self.u_m = float(l_a), float(u_a), float(l_m), float(u_m)
        self.lambda_g = float(lambda_g)

    def margins(self, cosine: Tensor, norm: Tensor, *, replay: bool = False) -> Margins:
        rise = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        inside = (norm >= self.l_a) & (norm <= self.u_a)
        margin = self.l_m + rise * (norm.clamp(self.l_a, self.u_a) - self.l_a)
        return Margins(m2=margin, m2_slope=rise * inside.to(norm.dtype))

    def penalty(self, norm: Tensor) -> Tensor:
        held = norm.clamp_min(self.l_a)
        inverse = 1 / held - (norm - held) / self.l_a**2
        return self.lambda_g * (inverse + norm / self.u_a**2)

    def extra_repr(self) -> str:
        return (
            f"l_a={self.l_a}, u_a={self.u_a}, l_m={self.l_m}, u_m={self.u_m}, "
            f"lambda_g={self.lambda_g}"
        )
