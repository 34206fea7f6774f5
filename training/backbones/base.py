"""What every backbone is: a network, and the preprocessing that its input has had.

Imports torch and the core's contracts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facerec.errors import ConfigError


@dataclass(frozen=True)
class Preprocessing:
    """What a chip goes through before the network; the terms of a pack's ``[embedder]`` table.

    template: name of the alignment template, scaled to ``input_size`` pixels a side.
    colour: "RGB" or "BGR". The network gets ``(pixel - mean) * scale`` per channel, in the
    order of ``colour``. flip: whether a pack made from this backbone averages the
    embeddings of the chip and its mirror image, unless its maker says otherwise.
    """

    template: str
    input_size: int
    colour: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    flip: bool = True

    def apply(self, chips: Tensor) -> Tensor:
        """Network input from chips, on their device: (N, 3, S, S) uint8 RGB -> float32.

        The memory format is kept. Raises ConfigError for another shape or dtype.
        """
        size = self.input_size
        if chips.dtype != torch.uint8 or chips.ndim != 4 or chips.shape[1:] != (3, size, size):
            raise ConfigError(
                f"chips: this backbone takes (N, 3, {size}, {size}) uint8, got "
                f"{tuple(chips.shape)} {str(chips.dtype).removeprefix('torch.')}"
            )
        if self.colour == "BGR":
            chips = chips.flip(1)
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=chips.device).view(shape)
        scale = torch.tensor(self.scale, device=chips.device).view(shape)
        return (chips.float() - mean) * scale

    def to_dict(self) -> dict[str, Any]:
        """The fields, as a pack.toml's ``[embedder]`` table names them."""
        return asdict(self)


class Backbone(nn.Module):
    """A face encoder: (N, 3, S, S) float32, preprocessed, to (N, d) float32 embeddings.

    Embeddings are not normalised; cosine heads and the pipeline do that. Under autocast the
    network computes in the lower precision and its output is float32 all the same.

    arguments: what ``create_backbone(**arguments)`` builds this network from again.
    """

    def __init__(
        self, preprocessing: Preprocessing, embedding_dim: int, arguments: dict[str, Any]
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.embedding_dim = embedding_dim
        self.arguments = arguments

    @property
    def name(self) -> str:
        return str(self.arguments["name"])

    @property
    def template(self) -> str:
        return self.preprocessing.template

    @property
    def input_size(self) -> int:
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.preprocessing.mean

    @property
    def scale(self) -> tuple[float, float, float]:
        return self.preprocessing.scale


class EmbeddingLayer(nn.Module):
    """(N, f) features to (N, d) float32 embeddings: dropout, a matrix, BatchNorm.

    Deng et al. 2019, section 3.2.2, option E: BN-Dropout-FC-BN; the first BN belongs to the
    backbone. The last BatchNorm has a shift and no gain: the heads divide a common gain
    out, and a gain per feature only doubles what the matrix before it can do. It computes in
    float32, whatever autocast does to the matrix product.
    """

    def __init__(self, features: int, embedding_dim: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, embedding_dim, bias=bias)
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.norm.weight.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        embedding: Tensor = self.norm(self.fc(self.dropout(features)).float())
        return embedding


ARCFACE_MEAN = (127.5, 127.5, 127.5)
ARCFACE_SCALE = (1 / 127.5, 1 / 127.5, 1 / 127.5)


def arcface_preprocessing(input_size: int) -> Preprocessing:
    """ArcFace's: its template, RGB, pixels to [-1, 1]."""
    return Preprocessing("arcface-112", input_size, "RGB", ARCFACE_MEAN, ARCFACE_SCALE)


def scaled_width(channels: int, width: float) -> int:
    """``channels`` times the width multiplier: a multiple of 8, and at least 8.

    Vector units work on 8 or more channels at a time.
    """
    return max(8, 8 * round(channels * width / 8))


def check_shape(
    name: str, *, embedding_dim: int, dropout: float, width: float, input_size: int
) -> None:
    """Raises ConfigError for a network that cannot be built, naming the argument."""
    if embedding_dim < 2:
        raise ConfigError(f"{name}: embedding_dim is at least 2, got {embedding_dim}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{name}: dropout lies in [0, 1), got {dropout:g}")
    if not 0 < width <= 4:
        raise ConfigError(f"{name}: width lies in (0, 4], got {width:g}")
    if input_size < 32 or input_size % 16:
        raise ConfigError(
            f"{name}: input_size is a multiple of 16 and at least 32 (the network halves it four "
            f"times), got {input_size}"
        )
