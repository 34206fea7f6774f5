"""What is measured: a pack through onnxruntime, or a trained network through torch.

Imports torch and the core.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from facerec.config import load_settings
from facerec.detection import Detector, load_detector
from facerec.embedding import Embedder
from facerec.errors import ModelError
from facerec.lfw import Progress
from facerec.packs import find_pack
from facerec.packs.manifest import MANIFEST_NAME, Pack, sha256_file
from facerec.runtime import Network, Workers, available_threads, resolve_device
from facerec.types import FloatArray, RGBImage
from training.backbones import Backbone, Preprocessing
from training.checkpoint import CheckpointFolder, backbone_from_checkpoint
from training.distributed import choose_device
from training.evaluation.results import ModelDescription
from training.heldout import NoDirection, autocast

_BATCH = 128


class Model(ABC):
    """Aligned chips in, embeddings out.

    preprocessing: the template and size of the chips, and whether mirror images count.
    describe: for the report. detector_pack: whose detector finds faces in photos.
    """

    def __init__(
        self, preprocessing: Preprocessing, describe: ModelDescription, detector_pack: Pack
    ) -> None:
        self.preprocessing = preprocessing
        self.describe = describe
        self.detector_pack = detector_pack
        self.onnx_device = "auto"

    @property
    def target(self) -> tuple[str, int]:
        """Template and size of the chips that the model takes."""
        return self.preprocessing.template, self.preprocessing.input_size

    @cached_property
    def detector(self) -> Detector:
        """The detector of ``detector_pack``, loaded when first needed."""
        self.detector_pack.verify()
        threads, device = available_threads(), resolve_device(self.onnx_device)
        return load_detector(self.detector_pack, device, threads, Workers(threads))

    @abstractmethod
    def features(self, chips: RGBImage) -> FloatArray:
        """(N, d) float32 embeddings of (N, S, S, 3) uint8 RGB chips, of the network's own length;
        the mean over chip and mirror image where flip averaging is on."""

    def embed(self, chips: RGBImage) -> FloatArray:
        """:meth:`features` at unit length. Raises ModelError for one that is not finite or 0."""
        return unit_length(self.features(chips), self.describe.name)


def unit_length(features: FloatArray, name: str) -> FloatArray:
    """Rows of (n, d) divided by their length. Raises NoDirection where that cannot be."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise NoDirection(f"{name}: gave NaN, infinity or zero for a face")
    unit: FloatArray = features / norms
    return unit


class PackModel(Model):
    """A pack's embedder. flip: None for the pack's own setting.

    Raises ModelError for a pack whose files are missing, damaged or do not load.
    """

    def __init__(self, pack: Pack, *, flip: bool | None = None, device: str = "auto") -> None:
        if flip is not None and flip != pack.contract.flip:
            embedder = pack.manifest.embedder.model_copy(update={"flip": flip})
            manifest = pack.manifest.model_copy(update={"embedder": embedder})
            pack = Pack(pack.folder, manifest)
        pack.verify()
        device, threads, contract = resolve_device(device), available_threads(), pack.contract
        network = Network(pack.embedder_path, device, threads)
        self._embedder = Embedder(pack, network, Workers(threads))
        preprocessing = Preprocessing(
            contract.template,
            contract.input_size,
            contract.colour,
            contract.mean,
            contract.scale,
            contract.flip,
        )
        describe = ModelDescription(
            name=pack.name,
            kind="pack",
            path=str(pack.folder),
            sha256=contract.embedder_sha256,
            contract_id=contract.contract_id,
            template=contract.template,
            input_size=contract.input_size,
            dim=contract.dim,
            flip=contract.flip,
            runs_on=f"onnxruntime, {device}",
        )
        super().__init__(preprocessing, describe, pack)
        self.onnx_device = device

    def features(self, chips: RGBImage) -> FloatArray:
        return self._embedder.features(chips)

    def embed(self, chips: RGBImage) -> FloatArray:
        return self._embedder.embed(chips)


class TorchModel(Model):
    """A network of :mod:`training.backbones`, on the device where it is.

    flip: average with the mirror image; None for the preprocessing's own setting. It is in
    evaluation mode while it embeds, and as it was afterwards. detector_pack: None for the bundled
    one. precision: see :func:`training.heldout.autocast`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str = "network",
        path: str = "",
        sha256: str | None = None,
        flip: bool | None = None,
        detector_pack: Pack | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        self.backbone, self.precision = backbone, precision
        self.flip = backbone.preprocessing.flip if flip is None else flip
        device = next(backbone.parameters()).device
        describe = ModelDescription(
            name=name,
            kind="checkpoint",
            path=path,
            sha256=sha256,
            contract_id=None,
            template=backbone.template,
            input_size=backbone.input_size,
            dim=backbone.embedding_dim,
            flip=self.flip,
            runs_on=f"torch {torch.__version__}, {device}",
        )
        super().__init__(backbone.preprocessing, describe, detector_pack or find_pack("bundled"))

    @torch.no_grad()
    def features(self, chips: RGBImage) -> FloatArray:
        device = next(self.backbone.parameters()).device
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            # (N, S, S, 3) uint8 -> (N, 3, S, S) float32 -> (N, d) float32
            pixels = torch.from_numpy(np.ascontiguousarray(chips)).permute(0, 3, 1, 2).to(device)
            images = self.preprocessing.apply(pixels)
            with autocast(device, self.precision):
                found = self.backbone(images).float()
                if self.flip:
                    found = (found + self.backbone(images.flip(3)).float()) / 2
        finally:
            self.backbone.train(was_training)
        result: FloatArray = found.cpu().numpy()
        return result


def open_model(
    ref: str | Path,
    *,
    flip: bool | None = None,
    device: str = "auto",
    detector: str | None = None,
) -> Model:
    """A pack by name or folder, a training run's folder, or a checkpoint file.

    Of a run its best checkpoint counts, where no evaluation chose one the newest. flip: average
    with the mirror image; None for the model's own setting (on for ElasticFace's and all other
    backbones here). device: auto, cpu or cuda. detector: of photos, a pack's name or folder; None
    for the pack itself, and for a checkpoint the bundled one.

    Raises ModelError where there is none of these, or it cannot be used.
    """
    settings = load_settings()
    where = {"search": settings.packs, "cache": settings.cache}
    given = find_pack(detector, **where) if detector else None
    path = Path(ref)
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        if path.exists() and not (path / MANIFEST_NAME).is_file():
            raise ModelError(
                f"{ref}: neither a pack (no {MANIFEST_NAME} in it), nor a training run (no "
                "checkpoints/step-*.pt in it), nor a checkpoint (a .pt file)"
            )
        model = PackModel(find_pack(str(ref), **where), flip=flip, device=device)
        model.detector_pack = given or model.detector_pack
        return model
    backbone = backbone_from_checkpoint(checkpoint).to(choose_device(device))
    run = checkpoint.parent.parent.name if checkpoint.parent.name == "checkpoints" else ""
    return TorchModel(
        backbone,
        name=f"{run}/{checkpoint.name}" if run else checkpoint.name,
        path=str(checkpoint),
        sha256=sha256_file(checkpoint),
        flip=flip,
        detector_pack=given,
    )


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a file or a run's folder stands for: its best, else its newest."""
    if path.is_file():
        return path if path.suffix == ".pt" else None
    folder = CheckpointFolder(path / "checkpoints")
    return folder.best or folder.newest()


@dataclass(frozen=True, eq=False)
class Chips:
    """Some images of a set, in its order. chips: (k, S, S, 3) uint8 RGB of those that have one.

    present: (b,) bool, k of them True. An image without a face, or that cannot be read, has none.
    """

    chips: RGBImage
    present: NDArray[np.bool_]


def regrouped(batches: Iterable[Chips], size: int = _BATCH) -> Iterator[Chips]:
    """The same chips in batches of ``size`` images, the last one shorter."""
    waiting: list[Chips] = []
    for batch in batches:
        waiting.append(batch)
        while sum(len(b.present) for b in waiting) >= size:
            joined = _joined(waiting)
            kept = int(joined.present[:size].sum())
            yield Chips(joined.chips[:kept], joined.present[:size])
            waiting = [Chips(joined.chips[kept:], joined.present[size:])]
    if sum(len(b.present) for b in waiting):
        yield _joined(waiting)


def _joined(batches: list[Chips]) -> Chips:
    if len(batches) == 1:
        return batches[0]
    return Chips(
        np.concatenate([b.chips for b in batches]), np.concatenate([b.present for b in batches])
    )


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a set. rows: (n, d) float32 of unit length, zeros where there is no face.

    found: (n,) bool. seconds: that finding and embedding the faces took.
    """

    rows: FloatArray
    found: NDArray[np.bool_]
    seconds: float


def embed_chips(
    model: Model, batches: Iterable[Chips], count: int, progress: Progress | None = None
) -> Embedded:
    """Embed ``count`` images; progress(done, total) is called after each batch."""
    rows = np.zeros((count, model.describe.dim), np.float32)
    found = np.zeros(count, dtype=np.bool_)
    began, at = time.perf_counter(), 0
    for batch in regrouped(batches):
        end = at + len(batch.present)
        found[at:end] = batch.present
        if len(batch.chips):
            rows[np.flatnonzero(batch.present) + at] = model.embed(batch.chips)
        at = end
        if progress is not None:
            progress(at, count)
    return Embedded(rows, found, time.perf_counter() - began)
