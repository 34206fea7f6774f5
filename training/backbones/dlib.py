"""dlib's face ResNet-29, the bundled pack's embedder, as a network that can be fine-tuned.

Imports torch; ``onnx`` inside the function that reads a file.

| name | parameters | MACs at 150x150 |
|---|---|---|
| dlib_resnet29 | 5.61 M | 0.27 G |

The architecture is dlib's ``dnn_face_recognition_ex`` (Boost licence), written from its
description: residual blocks without BatchNorm, every convolution followed by a gain and a
shift per channel. The pack's file has both folded into the convolution, and they stay folded
here: one weight and one bias per convolution say all there is to say, what is trained is what
is exported, and halfway between two sets of weights is a network of the same kind (weight
interpolation; with separate gains it would be a product of two interpolations). There is no
batch statistic to keep: training and evaluation compute the same function.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from facerec.errors import ConfigError, ModelError
from training.backbones.base import Backbone, Preprocessing

if TYPE_CHECKING:
    import onnx

DLIB_RESNET29 = "dlib_resnet29"
DLIB_DIM = 128
DLIB_GRAPH = "dlib_face_recognition_resnet_29"
"""Name of the ONNX graph that :func:`read_dlib_weights` understands."""
DLIB_PREPROCESSING = Preprocessing(
    "dlib-150", 150, "RGB", (122.782, 117.001, 104.298), (1 / 256, 1 / 256, 1 / 256)
)
_SIDE_BEHIND_STEM = 35
# name -> output channels; a "down" block halves the side.
_BLOCKS = {
    "conv32_1": 32,
    "conv32_2": 32,
    "conv32_3": 32,
    "conv64_down": 64,
    "conv64_1": 64,
    "conv64_2": 64,
    "conv64_3": 64,
    "conv128_down": 128,
    "conv128_1": 128,
    "conv128_2": 128,
    "conv256_down": 256,
    "conv256_1": 256,
    "conv256_2": 256,
    "conv256_down_out": 256,
}


class DlibBlock(nn.Module):
    """conv3x3-ReLU-conv3x3 plus the shortcut, ReLU.

    A down block's first convolution has stride 2 and no padding; its shortcut is a 2x2 mean,
    with channels of zeros behind its own. The convolution may come out a row and a column
    short of the mean: zeros again. side: of the map that goes in, pixels.
    """

    def __init__(self, inputs: int, outputs: int, side: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.widening = outputs - inputs
        self.side = side // 2 if down else side
        self.missing = self.side - (side - 3) // 2 - 1 if down else 0
        self.conv1 = nn.Conv2d(
            inputs, outputs, 3, stride=2 if down else 1, padding=0 if down else 1
        )
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv2(F.relu(self.conv1(x)))
        shortcut = x
        if self.down:
            shortcut = F.avg_pool2d(x, 2)
            if self.missing:
                branch = F.pad(branch, (0, self.missing, 0, self.missing))
            if self.widening:
                shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.widening))
        return F.relu(branch + shortcut)


class DlibResNet29(Backbone):
    """(N, 3, 150, 150) to (N, 128). Weights start as He et al. 2015; see ``load_dlib``."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        if not 0 <= dropout < 1:
            raise ConfigError(f"{DLIB_RESNET29}: dropout lies in [0, 1), got {dropout:g}")
        super().__init__(DLIB_PREPROCESSING, DLIB_DIM, {"name": DLIB_RESNET29, "dropout": dropout})
        self.conv32_down = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.ModuleDict()
        inputs, side = 32, _SIDE_BEHIND_STEM
        for name, outputs in _BLOCKS.items():
            block = DlibBlock(inputs, outputs, side, down="down" in name)
            self.blocks[name] = block
            inputs, side = outputs, block.side
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, DLIB_DIM, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv32_down(images)), 3, stride=2)
        for block in self.blocks.values():
            x = block(x)
        embedding: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return embedding.float()


def load_dlib(path: Path, *, dropout: float = 0.0) -> DlibResNet29:
    """The network with the weights of the pack's ONNX file at ``path``.

    Raises ModelError where the file cannot be read or is another network.
    """
    backbone = DlibResNet29(dropout=dropout)
    weights = read_dlib_weights(path)
    state = backbone.state_dict()
    for name, tensor in state.items():
        source = name.removeprefix("blocks.")
        found = weights.get(source)
        if found is None or found.shape != tuple(tensor.shape):
            got = "nothing" if found is None else str(found.shape)
            raise ModelError(
                f"{path}: is not dlib's face ResNet-29: expected a tensor {source} of shape "
                f"{tuple(tensor.shape)}, got {got}"
            )
        state[name] = torch.from_numpy(np.array(found, dtype=np.float32, order="C"))
    backbone.load_state_dict(state)
    return backbone


def read_dlib_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by name, as torch lays them out: conv (out, in, h, w), fc (out, in).

    Most are stored as integers behind Cast, Sub and Mul: ``(q - zero) * scale``, computed here
    in float32 as onnxruntime does, so that the result is the same to the bit.
    Raises ModelError where the file is not an ONNX model.
    """
    model = load_onnx(path)
    from onnx import numpy_helper

    tensors: dict[str, NDArray[Any]] = {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer
    }
    weights = {n: t for n, t in tensors.items() if n.endswith((".weight", ".bias"))}
    for name, stored in tensors.items():
        if name.endswith(".q"):
            base = name.removesuffix(".q")
            zero = tensors.get(f"{base}.zero", np.float32(0))
            weights[base] = (stored.astype(np.float32) - zero) * tensors[f"{base}.scale"]
    if "fc.weight" in weights:
        weights["fc.weight"] = weights["fc.weight"].T
    return weights


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model in the file. Raises ModelError where it cannot be read or parsed."""
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as exc:  # OSError, and whatever the protobuf parser at hand raises
        raise ModelError(f"{path}: not an ONNX model that can be read: {exc}") from exc
