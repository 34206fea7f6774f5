"""A trained network as a model pack, with smaller variants of it. Imports torch and the core.

::

    PACK/
    ├── pack.toml        contract, licence, thresholds, and where the embedder comes from
    ├── embedder.onnx    float32
    ├── backbone.pt      the same network for torch, to train further from
    ├── DETECTOR.onnx    of another pack, with its licences/
    ├── float16/         packs of their own: embeddings of one are compared with its own only
    └── int8/
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath

from facerec.errors import ConfigError, ModelError
from facerec.packs import Pack, find_pack
from facerec.packs.manifest import MANIFEST_NAME
from training.backbones import Backbone
from training.checkpoint import CheckpointFolder, backbone_from_state, load_checkpoint
from training.data import FaceSource
from training.export_report import ExportReport
from training.onnx_variants import VARIANTS
from training.pack_measures import set_name
from training.pack_writer import PackWriter, Provenance, Say
from training.recipe import Recipe, recipe_from

__all__ = ["ExportReport", "Provenance", "default_licence", "export_pack", "load_trained"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}")
"""Of a pack whose variants' names, ``NAME-float16``, are to be names too."""
_YOURS = "the user's own: trained by them on their data"


def export_pack(
    backbone: Backbone,
    target: Path,
    *,
    detector: Pack,
    name: str,
    version: str = "1",
    licence: str,
    source: str,
    description: str = "",
    flip: bool = True,
    provenance: Provenance,
    measure_on: FaceSource | None = None,
    calibrate_on: FaceSource | None = None,
    variants: Sequence[str] = VARIANTS,
    device: str = "cpu",
    progress: Say | None = None,
) -> ExportReport:
    """Write ``backbone`` as the pack ``target``, whole or not at all, and measure it.

    Args:
        target: a folder that is not there yet, in one that is.
        detector: the pack whose detector, and licence files, are copied.
        licence, source: of the weights.
        flip: whether the pack averages a chip's embedding with its mirror image's.
        measure_on: people that training has not seen. The threshold table of each form is
            measured on every pair of them, and what float16 and int8 lose. Without, or with
            too few for two thresholds, the pack has none, which the report says.
        calibrate_on: other people, such as those of the training; ``"int8"`` needs them.
        variants: of ``"float16"`` and ``"int8"``, each a pack in a folder of its name.
        device: "cpu" or "cuda", for measuring.
        progress: told what is going on, often.

    Raises:
        ConfigError: a wrong argument, such as a target that exists.
        ModelError: a network that cannot be exported, or whose ONNX file differs from torch by
            more than 1e-4; a disk that cannot be written.
        ImageError: too many images cannot be read.
    """
    target = Path(target)
    _check(target, name, variants, measure_on, calibrate_on)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        writer = PackWriter(
            backbone,
            part,
            detector,
            name=name,
            version=version,
            licence=licence,
            source=source,
            description=description,
            flip=flip,
            provenance=provenance,
            say=progress or (lambda text: None),
        )
        report = writer.run(measure_on, calibrate_on, variants, device)
        if target.exists():
            raise ConfigError(_exists(target))
        part.rename(target)
    except OSError as exc:
        raise ModelError(
            f"{target}: the pack cannot be written: {exc.strerror or exc}. Nothing of it is left; "
            "make room, or name a folder that can be written."
        ) from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report.at(target)


def load_trained(ref: str | Path) -> tuple[Backbone, Provenance]:
    """The network of a run, on the CPU in evaluation mode, and where it comes from.

    ref: a run's folder, of which the best checkpoint counts, else the newest; or a checkpoint
    file. Weights are the moving average's where the run kept one. Raises ModelError for a
    folder without a checkpoint, and for a file that is none.
    """
    path = Path(ref)
    if path.is_dir():
        path = _checkpoint_of(path)
    state = load_checkpoint(path)
    recipe = recipe_from(state["recipe"], str(path))
    history = state["history"]
    current = bool(history) and history[-1]["step"] == state["step"]
    provenance = Provenance(
        recipe=recipe,
        data=state["data"],
        metrics=history[-1]["metrics"] if current else {},
        base=_base_of(recipe),
        notes={
            "checkpoint": path.name,
            "step": state["step"],
            "averaged_weights": state["ema"] is not None,
        },
    )
    return backbone_from_state(state, str(path)), provenance


def default_licence(provenance: Provenance) -> str:
    """A sentence for weights that nobody has said anything about."""
    if provenance.base is None:
        return _YOURS
    return f"{_YOURS}, further from {provenance.base}, whose licence applies too"


def _checkpoint_of(folder: Path) -> Path:
    found = CheckpointFolder(folder / "checkpoints")
    chosen = found.best or found.newest()
    if chosen is not None:
        return chosen
    if (folder / MANIFEST_NAME).is_file():
        raise ModelError(f"{folder} is a model pack already, not the folder of a training run")
    raise ModelError(
        f"{folder}: no checkpoint in its folder 'checkpoints'. Name the folder of a run that "
        "'python -m training train' has started, or a checkpoint file."
    )


def _base_of(recipe: Recipe) -> str | None:
    start = recipe.start
    if start.checkpoint:
        return f"checkpoint {'/'.join(PurePath(start.checkpoint).parts[-3:])}"
    if not start.pack:
        return None
    try:
        pack = find_pack(start.pack)
        return (
            f"pack {pack.name} (contract {pack.contract.contract_id}; "
            f"licence: {pack.manifest.embedder.licence or pack.manifest.licence})"
        )
    except ModelError:  # it may be gone by now
        return f"pack {set_name(start.pack)}"


def _check(
    target: Path,
    name: str,
    variants: Sequence[str],
    measure_on: FaceSource | None,
    calibrate_on: FaceSource | None,
) -> None:
    """Raises ConfigError for what can be known to be wrong before any work."""
    if target.exists() or target.is_symlink():
        raise ConfigError(_exists(target))
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: the folder it is to lie in does not exist; make it first")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a pack: letters, digits, '.', '_' and '-', starting with a "
            "letter or digit, 56 characters at most"
        )
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown:
        raise ConfigError(f"no variant {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    if "int8" in variants and calibrate_on is None:
        raise ConfigError(
            "int8 needs faces to calibrate on, and there are none. Give the training data, or "
            "leave the variant out: --variants float16."
        )
    if measure_on is not None and calibrate_on is not None:
        same_set = measure_on.origin == calibrate_on.origin
        if same_set and set(measure_on.identities) & set(calibrate_on.identities):
            raise ConfigError(
                f"{measure_on.origin}: some people are both measured and calibrated on; what is "
                "measured on them would flatter. Split by identity."
            )


def _exists(target: Path) -> str:
    return f"{target} exists; a pack is never written over. Remove it, or name another folder."
