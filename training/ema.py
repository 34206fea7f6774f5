"""A moving average of a backbone's weights. Imports torch only."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from training.backbones import Backbone


class MovingAverage:
    """``average = d average + (1 - d) weights`` after each step, of BatchNorm statistics too.

    d is ``decay``, at the start ``(1 + n) / (10 + n)`` if that is less, with n updates done, so
    that the first weights are forgotten at once. ``backbone`` is a network of its own, in
    evaluation mode, to evaluate and export.
    """

    def __init__(self, backbone: Backbone, decay: float) -> None:
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, backbone: Backbone) -> None:
        """Take in the weights after one more step."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(_tensors(self.backbone), _tensors(backbone), strict=True))
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
            else:
                mine.copy_(theirs)
        self.updates += 1


def _tensors(backbone: Backbone) -> list[Tensor]:
    return [*backbone.parameters(), *backbone.buffers()]
