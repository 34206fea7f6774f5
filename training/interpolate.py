"""Weight interpolation between a network and what was trained further from it: WiSE-FT.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), equation 1.
Imports torch and the core.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facerec.errors import ConfigError
from training.backbones import Backbone, create_backbone

_ALIKE = ("dropout",)
"""Arguments that may differ: they shape no weight."""


def interpolate(base: Backbone, result: Backbone, alpha: float) -> Backbone:
    """theta(alpha) = (1 - alpha) theta_base + alpha theta_result, as a network of its own.

    All parameters and all buffers of floating point are interpolated, 0 and 1 give the ends to
    the bit. A buffer of integers (BatchNorm's count of batches) is the nearer end's. On the CPU,
    in evaluation mode; base and result are left as they are.

    BatchNorm's running mean and variance belong to one network's activations: between two networks
    their mean is right to first order in the distance only. Train with frozen statistics
    (``backbone.batch_norm = "frozen"``) and both ends have the same.

    Raises ConfigError for alpha outside of [0, 1] and for networks of another architecture.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"the interpolation coefficient lies in [0, 1], got {alpha:g}")
    require_same_architecture(base, result)
    ends = base.state_dict(), result.state_dict()
    mixed = {name: _between(ends[0][name], ends[1][name], alpha) for name in ends[0]}
    backbone = create_backbone(**result.arguments, pretrained=False)
    backbone.load_state_dict(mixed)
    return backbone.eval()


def require_same_architecture(base: Backbone, result: Backbone) -> None:
    """Raises ConfigError, naming what differs, unless weights of one fit into the other."""
    ours, theirs = base.arguments, result.arguments
    wrong = [
        f"{key} is {ours.get(key)!r} in one, {theirs.get(key)!r} in the other"
        for key in sorted({*ours, *theirs} - {*_ALIKE})
        if ours.get(key) != theirs.get(key)
    ]
    if wrong:
        raise ConfigError(
            f"weights can be interpolated between networks of one architecture only: "
            f"{'; '.join(wrong)}. Take the network that the other was trained further from."
        )


def _between(base: Tensor, result: Tensor, alpha: float) -> Tensor:
    base, result = base.detach().cpu(), result.detach().cpu()
    if alpha in (0, 1) or not base.is_floating_point():
        return (base if alpha < 0.5 else result).clone()
    # In float64: the rounding of both products would show where the ends are equal.
    return torch.lerp(base.double(), result.double(), alpha).to(base.dtype)
