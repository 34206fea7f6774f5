"""ArcFace's improved residual networks. Imports torch.

| name | parameters | MACs at 112x112 |
|---|---|---|
| iresnet10 | 17.8 M | 1.69 G |
| iresnet18 | 24.0 M | 2.61 G |
| iresnet34 | 34.1 M | 4.46 G |
| iresnet50 | 43.6 M | 6.31 G |
| iresnet100 | 65.2 M | 12.09 G |

Parameters are for d = 512. A MAC is one multiply-accumulate of a convolution or a matrix
product. The field calls these GFLOPs and counts BatchNorm and PReLU too, hence the 6.33 and
12.12 in print; twice as many floating-point operations are done. iresnet10 is nobody's
standard: one block per stage, which with a width below 1 and small chips trains on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.backbones.base import (
    Backbone,
    EmbeddingLayer,
    arcface_preprocessing,
    check_shape,
    scaled_width,
)
from training.backbones.prelu import PReLU

IRESNET_DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "iresnet10": (1, 1, 1, 1),
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""Blocks per stage."""
_CHANNELS = (64, 128, 256, 512)


class ImprovedBlock(nn.Module):
    """BN-conv3x3-BN-PReLU-conv3x3(stride)-BN, plus the shortcut.

    Deng et al. 2019, section 3.2.2, "improved residual unit": nothing stands between the
    sum and the next block. Where the shape changes, the shortcut is conv1x1(stride)-BN.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.norm2(self.conv1(self.norm1(x))))
        total: Tensor = self.norm3(self.conv2(branch)) + self.shortcut(x)
        return total


class IResNet(Backbone):
    """Stem of stride 1, four stages that halve the side, BN-dropout-FC-BN1d.

    At 112 pixels the last map is 7x7. depths: blocks per stage. width: multiplies every
    stage's channels. Convolutions start from N(0, 0.1), as the networks that the published
    recipes were tuned with. Behind a BatchNorm the scale of a filter does not change what
    it computes, but it fixes its effective learning rate, lr / |w|^2 (van Laarhoven 2017,
    arXiv 1706.05350): with another start, lr 0.1 would mean something else.
    """

    def __init__(
        self,
        name: str,
        depths: Sequence[int],
        *,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        width: float = 1.0,
        input_size: int = 112,
    ) -> None:
        shape = {
            "embedding_dim": embedding_dim,
            "dropout": dropout,
            "width": width,
            "input_size": input_size,
        }
        check_shape(name, **shape)  # type: ignore[arg-type]
        super().__init__(arcface_preprocessing(input_size), embedding_dim, {"name": name, **shape})
        channels = [scaled_width(c, width) for c in _CHANNELS]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            PReLU(channels[0]),
        )
        self.stages = nn.Sequential()
        inputs = channels[0]
        for outputs, depth in zip(channels, depths, strict=True):
            stage = nn.Sequential()
            for block in range(depth):
                stage.append(ImprovedBlock(inputs, outputs, stride=1 if block else 2))
                inputs = outputs
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(inputs)
        side = input_size // 16
        self.embedding = EmbeddingLayer(inputs * side * side, embedding_dim, dropout, bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.stages(self.stem(images)))
        embedding: Tensor = self.embedding(features.flatten(1))
        return embedding
