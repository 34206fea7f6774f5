"""MobileFaceNet (Chen et al. 2018, arXiv 1804.07573). Imports torch.

| name | parameters at d = 128 / 512 | MACs at 112x112 |
|---|---|---|
| mobilefacenet | 1.86 M / 2.06 M | 0.43 G |
| mobilefacenet-paper | 1.00 M / 1.20 M | 0.22 G |

``mobilefacenet-paper`` is the paper's table 1. ``mobilefacenet`` is what the field has come
to call MobileFaceNet: bottlenecks of twice the channels and the same expanded width.
MACs as in :mod:`training.backbones.iresnet`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from training.backbones.base import (
    Backbone,
    EmbeddingLayer,
    arcface_preprocessing,
    check_shape,
    scaled_width,
)
from training.backbones.prelu import PReLU


@dataclass(frozen=True)
class Stage:
    """``repeats`` bottlenecks; the first has ``stride``. expanded: width of the depthwise part."""

    channels: int
    expanded: int
    repeats: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """The rows of table 1 between the stem and the last 1x1 convolution."""

    stem: int
    stages: tuple[Stage, ...]


MOBILEFACENET_LAYOUTS: dict[str, Layout] = {
    "mobilefacenet-paper": Layout(
        64,
        (
            Stage(64, 128, 5, 2),
            Stage(128, 256, 1, 2),
            Stage(128, 256, 6, 1),
            Stage(128, 512, 1, 2),
            Stage(128, 256, 2, 1),
        ),
    ),
    "mobilefacenet": Layout(
        128,
        (
            Stage(128, 128, 5, 2),
            Stage(256, 256, 1, 2),
            Stage(256, 256, 6, 1),
            Stage(256, 512, 1, 2),
            Stage(256, 256, 2, 1),
        ),
    ),
}
_FEATURES = 512


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2,
        groups=inputs if depthwise else 1,
        bias=False,
    )


def _normed(conv: nn.Conv2d, *, linear: bool = False) -> nn.Sequential:
    """Convolution, BatchNorm and, unless linear, PReLU."""
    layers = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
    return layers if linear else layers.append(PReLU(conv.out_channels))


class Bottleneck(nn.Module):
    """1x1 to the expanded width, 3x3 depthwise (stride), linear 1x1; a sum where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _normed(_conv(inputs, expanded, 1)),
            _normed(_conv(expanded, expanded, 3, stride, depthwise=True)),
            _normed(_conv(expanded, outputs, 1), linear=True),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileFaceNet(Backbone):
    """Inverted bottlenecks, then a depthwise convolution over the whole last map.

    That global depthwise convolution (paper, section 3.2) weighs the places of the 7x7 map,
    where average pooling holds its middle and its corners equal. width multiplies every
    channel count but the embedding's. Convolutions start as He et al. 2015 (fan-in; nine
    for a depthwise filter), the paper being silent.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
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
        inputs = scaled_width(layout.stem, width)
        self.stem = nn.Sequential(
            _normed(_conv(3, inputs, 3, 2)), _normed(_conv(inputs, inputs, 3, depthwise=True))
        )
        self.stages = nn.Sequential()
        for stage in layout.stages:
            outputs, expanded = (
                scaled_width(stage.channels, width),
                scaled_width(stage.expanded, width),
            )
            blocks = nn.Sequential()
            for block in range(stage.repeats):
                blocks.append(Bottleneck(inputs, outputs, expanded, 1 if block else stage.stride))
                inputs = outputs
            self.stages.append(blocks)
        features = scaled_width(_FEATURES, width)
        self.features = _normed(_conv(inputs, features, 1))
        side = input_size // 16
        self.pool = _normed(
            nn.Conv2d(features, features, side, groups=features, bias=False), linear=True
        )
        self.embedding = EmbeddingLayer(features, embedding_dim, dropout, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(self.stages(self.stem(images)))
        embedding: Tensor = self.embedding(self.pool(features).flatten(1))
        return embedding
