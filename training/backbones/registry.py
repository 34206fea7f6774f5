"""Backbones by name. Imports torch and the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from facerec.errors import ConfigError
from facerec.packs import find_pack
from training.backbones.base import Backbone
from training.backbones.dlib import DLIB_DIM, DLIB_RESNET29, DlibResNet29, load_dlib
from training.backbones.iresnet import IRESNET_DEPTHS, IResNet
from training.backbones.mobilefacenet import MOBILEFACENET_LAYOUTS, MobileFaceNet


@dataclass(frozen=True)
class BackboneEntry:
    """How a name is built. options: names of the overrides that it takes, with defaults."""

    build: Callable[..., Backbone]
    embedding_dim: int
    options: dict[str, Any]


_SHAPE = {"dropout": 0.0, "width": 1.0, "input_size": 112}


def _iresnet(name: str) -> BackboneEntry:
    def build(**options: Any) -> Backbone:
        return IResNet(name, IRESNET_DEPTHS[name], **options)

    return BackboneEntry(build, 512, _SHAPE)


def _mobilefacenet(name: str) -> BackboneEntry:
    def build(**options: Any) -> Backbone:
        return MobileFaceNet(name, MOBILEFACENET_LAYOUTS[name], **options)

    return BackboneEntry(build, 512, _SHAPE)


def _dlib(*, embedding_dim: int, dropout: float, pretrained: bool) -> Backbone:
    if embedding_dim != DLIB_DIM:
        raise ConfigError(
            f"{DLIB_RESNET29}: embedding_dim is {DLIB_DIM} in its weights, got {embedding_dim}; "
            "leave the setting out"
        )
    if not pretrained:
        return DlibResNet29(dropout=dropout)
    return load_dlib(find_pack("bundled").embedder_path, dropout=dropout)


BACKBONES: dict[str, BackboneEntry] = {
    **{name: _iresnet(name) for name in IRESNET_DEPTHS},
    **{name: _mobilefacenet(name) for name in MOBILEFACENET_LAYOUTS},
    DLIB_RESNET29: BackboneEntry(_dlib, DLIB_DIM, {"dropout": 0.0}),
}


def create_backbone(
    name: str, embedding_dim: int | None = None, *, pretrained: bool = True, **overrides: Any
) -> Backbone:
    """A backbone by name, weights freshly drawn from torch's global generator.

    embedding_dim: None for the name's own (512; dlib_resnet29: 128). pretrained: of
    ``dlib_resnet29``, whether the bundled pack's weights are loaded; no other name has any.
    overrides: ``dropout``, and where the name takes them ``width`` (channel multiplier) and
    ``input_size`` (pixels, a multiple of 16).

    Raises ConfigError, listing what is known, for an unknown name or override, and for a value
    out of range.

    >>> create_backbone("mobilefacenet", 128, input_size=64).input_size
    64
    """
    try:
        entry = BACKBONES[name]
    except KeyError:
        known = ", ".join(BACKBONES)
        raise ConfigError(f"no backbone {name!r}; known are {known}") from None
    for key in overrides:
        if key not in entry.options:
            known = ", ".join(["embedding_dim", *entry.options])
            raise ConfigError(f"backbone {name}: no setting {key!r}; known are {known}")
    options = {**entry.options, **overrides}
    if name == DLIB_RESNET29:
        options["pretrained"] = pretrained
    dim = entry.embedding_dim if embedding_dim is None else embedding_dim
    return entry.build(embedding_dim=dim, **options)
