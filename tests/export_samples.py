"""Networks to export, as small as their names allow, and what torch makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from training.backbones import Backbone, create_backbone

SMALL = {"width": 0.125, "input_size": 32, "embedding_dim": 16}


def network(name: str) -> Backbone:
    """As small as the name can be; BatchNorm statistics, slopes and gains as after training."""
    torch.manual_seed(3)
    backbone = create_backbone(name, **({} if name == "dlib_resnet29" else SMALL))
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 4)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, -0.3, 0.5)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return backbone


def noise(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def of_torch(backbone: Backbone, chips: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(chips)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return backbone.eval()(backbone.preprocessing.apply(pixels)).numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
