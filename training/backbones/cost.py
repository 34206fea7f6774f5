"""What a network costs. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.backbones.base import Backbone


def count_parameters(module: nn.Module) -> int:
    """Numbers in the parameters, trained or not; running statistics are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(backbone: Backbone) -> int:
    """Multiply-accumulates of one embedding, in convolutions and matrix products.

    Runs one forward pass in evaluation mode; on the meta device that costs nothing.
    """
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    hooks = [module.register_forward_hook(count) for module in backbone.modules()]
    device = next(backbone.parameters()).device
    was_training = backbone.training
    try:
        with torch.no_grad():
            size = backbone.input_size
            backbone.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    return total
