"""Fine-tuning from a model pack. Imports torch and the core.

An ONNX file is made for inference: its exporter may fold BatchNorm into the convolutions
before it, rename weights and reorder nodes, and there is no general way back to a network that
trains. A pack is a starting point if its embedder is a file that this module knows (the
bundled one), or if ``backbone.pt`` lies beside it, which ``facerec export`` puts there.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from facerec.errors import ConfigError, ModelError
from facerec.files import write_atomically
from facerec.packs.manifest import Pack
from training.backbones.base import Backbone
from training.backbones.dlib import DLIB_GRAPH, load_dlib, load_onnx
from training.backbones.registry import create_backbone

STARTING_POINT = "backbone.pt"
"""File of a pack's folder: the network that its ONNX file was exported from."""
_FORMAT = 1


def save_starting_point(backbone: Backbone, folder: Path, embedder_sha256: str) -> Path:
    """Write ``backbone.pt``, so that the pack in ``folder`` can be trained further.

    embedder_sha256: of the ONNX file that was exported from the same weights; the two are
    only ever used together. Raises OSError.
    """
    import io

    content = {
        "format": _FORMAT,
        "arguments": backbone.arguments,
        "embedder_sha256": embedder_sha256,
        "state_dict": {k: v.detach().cpu() for k, v in backbone.state_dict().items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = folder / STARTING_POINT
    write_atomically(path, buffer.getvalue())
    return path


def backbone_from_pack(pack: Pack, *, dropout: float | None = None) -> Backbone:
    """The pack's own embedder, ready to be trained further; embeds as the pack does.

    dropout: before the last matrix; None keeps what the network was made with.
    Raises ModelError for a pack that cannot be a starting point, and says why.
    """
    path = pack.embedder_path
    saved = pack.folder / STARTING_POINT
    training = pack.manifest.training
    if training is not None and training.variant is not None:
        raise ModelError(
            f"pack {pack.name!r} cannot be a starting point: it is a {training.variant.precision} "
            f"variant of the pack with contract {training.variant.of}. Start from that one; as "
            "exported it lies in the folder above."
        )
    if saved.is_file():
        backbone = _load_starting_point(pack, saved, dropout)
    elif load_onnx(path).graph.name == DLIB_GRAPH:
        backbone = load_dlib(path, dropout=dropout or 0.0)
    else:
        raise ModelError(
            f"pack {pack.name!r} cannot be a starting point: {path.name} is an ONNX file for "
            f"inference, and the network that it was exported from ({STARTING_POINT}) does not "
            "lie beside it. Start from the pack 'bundled', from a pack that 'facerec export' or "
            "'facerec retrain' wrote, or from a checkpoint."
        )
    _check_preprocessing(pack, backbone)
    return backbone


def _load_starting_point(pack: Pack, path: Path, dropout: float | None) -> Backbone:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
        arguments = dict(content["arguments"])
        exported = content["embedder_sha256"]
        state = content["state_dict"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as exc:
        raise ModelError(f"{path}: damaged, or not a backbone file: {exc}") from exc
    if version != _FORMAT:
        raise ModelError(f"{path}: format {version} is newer than this facerec understands")
    if exported != pack.contract.embedder_sha256:
        raise ModelError(
            f"{path}: belongs to another ONNX file (SHA-256 {exported[:16]}...) than "
            f"{pack.embedder_path.name} ({pack.contract.embedder_sha256[:16]}...); export the "
            "pack again"
        )
    if dropout is not None:
        arguments["dropout"] = dropout
    try:
        backbone = create_backbone(**arguments, pretrained=False)
        backbone.load_state_dict(state)
    except (ConfigError, TypeError, RuntimeError) as exc:
        raise ModelError(f"{path}: does not fit the network that it names: {exc}") from exc
    return backbone


def _check_preprocessing(pack: Pack, backbone: Backbone) -> None:
    """The manifest and the network agree on the input, or nothing learned would carry over."""
    contract, ours = pack.contract, backbone.preprocessing
    wrong = [
        f"{field} is {theirs!r} in pack.toml, {mine!r} in the network"
        for field, theirs, mine in (
            ("template", contract.template, ours.template),
            ("input_size", contract.input_size, ours.input_size),
            ("colour", contract.colour, ours.colour),
            ("dim", contract.dim, backbone.embedding_dim),
        )
        if theirs != mine
    ]
    for field in ("mean", "scale"):
        theirs, mine = getattr(contract, field), getattr(ours, field)
        if any(abs(a - b) > 1e-6 * max(1.0, abs(b)) for a, b in zip(theirs, mine, strict=True)):
            wrong.append(f"{field} is {theirs} in pack.toml, {mine} in the network")
    if wrong:
        raise ModelError(f"pack {pack.name!r} cannot be a starting point: {'; '.join(wrong)}")
