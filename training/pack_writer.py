"""A pack's files, one after the other, into a folder that becomes the pack.

Imports torch and the core.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from facerec import __version__
from facerec.embedding import Embedder
from facerec.files import write_atomically
from facerec.packs import (
    EmbedderSpec,
    Pack,
    PackManifest,
    ThresholdsSpec,
    TrainingDataSpec,
    TrainingSpec,
    VariantSpec,
)
from facerec.packs.manifest import MANIFEST_NAME, sha256_file
from facerec.runtime import available_threads
from facerec.types import RGBImage, ThresholdTable
from training.backbones import Backbone, save_starting_point
from training.data import FaceSource
from training.export_report import ExportReport, PackReport
from training.onnx_graph import OPSET, PARITY_BATCHES, Parity, check_parity, to_onnx
from training.onnx_variants import (
    CALIBRATION_IMAGES,
    JUDGING_IMAGES,
    LARGEST_FLOAT16,
    to_float16,
    to_int8,
)
from training.pack_measures import (
    Pairs,
    chips_of,
    compare_on,
    describe_measurement,
    load_embedders,
    milliseconds,
    noise_chips,
    set_name,
)
from training.recipe import Recipe

if TYPE_CHECKING:
    import onnx

EMBEDDER = "embedder.onnx"
_FLOAT32 = "float32"
_LICENCES = ("licen[cs]e*", "copying*", "notice*")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Provenance:
    """Where a network comes from; the ``[training]`` table of pack.toml.

    recipe: as it was run. data: ``sha256``, ``images``, ``classes`` or ``identities``, and
    ``origin``, as in a run's data.json. metrics: finite numbers. base: what it was trained
    further from. notes: whatever TOML can hold.
    """

    recipe: Recipe | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    base: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PackWriter:
    """A pack on its way, in the folder ``part``."""

    backbone: Backbone
    part: Path
    detector: Pack
    name: str
    version: str
    licence: str
    source: str
    description: str
    flip: bool
    provenance: Provenance
    say: Say

    def run(
        self,
        measure_on: FaceSource | None,
        calibrate_on: FaceSource | None,
        variants: Sequence[str],
        device: str,
    ) -> ExportReport:
        """Export, check, shrink, measure, and only then write each pack.toml for good."""
        how = self.backbone.preprocessing
        self.say("exporting to ONNX")
        model = to_onnx(self.backbone)
        write_atomically(self.part / EMBEDDER, model.SerializeToString())
        seen = measure_on or calibrate_on
        count = max(PARITY_BATCHES)
        chips = noise_chips(how.input_size, count)
        if seen is not None and len(seen) >= count:
            chips = chips_of(seen, how, count)
        self.say("comparing with torch")
        parity = check_parity(self.backbone, self.part / EMBEDDER, chips)
        calibrations = self._write_variants(model, variants, chips, calibrate_on)
        packs = {form: self._pack(form) for form in (_FLOAT32, *variants)}
        embedders = load_embedders(packs, device, available_threads())
        for embedder in embedders.values():
            embedder.embed(chips)  # raises ModelError for what is not finite
        pairs = self._compare(embedders, measure_on)
        self.say("timing")
        times = milliseconds({n: e.network for n, e in embedders.items()}, how.input_size)
        measured_on = None
        if measure_on is not None:
            measured_on = describe_measurement(measure_on, pairs[_FLOAT32])
        threads = "" if device == "cuda" else f", {available_threads()} threads"
        report = ExportReport(
            name=self.name,
            folder=self.part,
            backbone=self.backbone.name,
            opset=OPSET,
            parity=parity,
            timed_on=f"{device}{threads}",
            measured_on=measured_on,
            packs=tuple(
                _report(form, packs, pairs, times, measured_on, calibrations.get(form))
                for form in packs
            ),
        )
        save_starting_point(self.backbone, self.part, packs[_FLOAT32].contract.embedder_sha256)
        for form, found in zip(packs, report.packs, strict=True):
            self._write_manifest(form, self._training(parity, found, report), found)
        return report

    def _write_variants(
        self,
        model: onnx.ModelProto,
        variants: Sequence[str],
        chips: RGBImage,
        calibrate_on: FaceSource | None,
    ) -> dict[str, str]:
        """The variants' ONNX files; what the ranges of each one's numbers rest on."""
        ranges = {}
        for variant in variants:
            self.say(f"making {variant}")
            if variant == "int8":
                assert calibrate_on is not None
                wanted = CALIBRATION_IMAGES + JUDGING_IMAGES
                drawn = chips_of(calibrate_on, self.backbone.preprocessing, wanted)
                quantised = to_int8(model, _preprocessed(self.backbone, drawn))
                ranges[variant], smaller = str(quantised), quantised.model
            else:
                smaller, largest = to_float16(model, _preprocessed(self.backbone, chips))
                ranges[variant] = (
                    f"largest activation {largest:.3g} on {len(chips)} images, float16 holds "
                    f"{LARGEST_FLOAT16:,.0f}"
                )
            folder = self._folder(variant)
            folder.mkdir()
            write_atomically(folder / EMBEDDER, smaller.SerializeToString())
        return ranges

    def _compare(
        self, embedders: Mapping[str, Embedder], measure_on: FaceSource | None
    ) -> dict[str, Pairs]:
        if measure_on is None:
            return {}

        def progress(done: int, total: int) -> None:
            self.say(f"embedding {done:,} of {total:,} images to measure on")

        return compare_on(embedders, measure_on, self.backbone.preprocessing, progress)

    def _folder(self, form: str) -> Path:
        return self.part if form == _FLOAT32 else self.part / form

    def _pack(self, form: str) -> Pack:
        """The pack as far as it goes: detector, licences, and a manifest without measurements."""
        folder = self._folder(form)
        shutil.copyfile(self.detector.detector_path, folder / self._detector_file)
        _copy_licences(self.detector, folder / "licences" / self.detector.name)
        self._write_manifest(form, None, None)
        return Pack.load(folder)

    @property
    def _detector_file(self) -> str:
        name = PurePath(self.detector.manifest.detector.file).name
        return name if name != EMBEDDER else f"detector-{name}"

    def _write_manifest(
        self, form: str, training: TrainingSpec | None, found: PackReport | None
    ) -> None:
        folder, theirs = self._folder(form), self.detector.manifest
        embedder, detector = folder / EMBEDDER, folder / self._detector_file
        how = self.backbone.preprocessing
        of_detector = theirs.detector.licence or theirs.licence
        manifest = PackManifest(
            name=self.name if form == _FLOAT32 else f"{self.name}-{form}",
            version=self.version,
            licence=f"{of_detector} (detector); {self.licence} (embedder)",
            source=self.source,
            description=self.description,
            needs_licence_acceptance=theirs.needs_licence_acceptance,
            detector=theirs.detector.model_copy(
                update={
                    "file": detector.name,
                    "sha256": sha256_file(detector),
                    "size_bytes": detector.stat().st_size,
                    "url": None,
                    "licence": of_detector,
                    "source": theirs.detector.source or theirs.source,
                }
            ),
            embedder=EmbedderSpec(
                **{**how.to_dict(), "flip": self.flip},
                file=EMBEDDER,
                sha256=sha256_file(embedder),
                size_bytes=embedder.stat().st_size,
                licence=self.licence,
                source=self.source,
                dim=self.backbone.embedding_dim,
            ),
            thresholds=None if found is None else _spec(found.thresholds),
            training=training,
        )
        write_atomically(folder / MANIFEST_NAME, manifest.to_toml().encode())

    def _training(
        self, parity: Sequence[Parity], found: PackReport, report: ExportReport
    ) -> TrainingSpec:
        given = self.provenance
        return TrainingSpec(
            date=time.strftime("%Y-%m-%d"),
            facerec=__version__,
            torch=torch.__version__,
            base=given.base,
            data=_data(given.data),
            metrics={k: float(v) for k, v in given.metrics.items() if np.isfinite(v)},
            notes=dict(given.notes),
            parity={f"batch_{p.batch}": float(f"{p.embeddings:.3g}") for p in parity},
            variant=None if found.precision == _FLOAT32 else _variant(found, report),
            recipe=None if given.recipe is None else _portable(given.recipe),
        )


def _preprocessed(backbone: Backbone, chips: RGBImage) -> NDArray[np.float32]:
    images = backbone.preprocessing.apply(torch.from_numpy(chips).permute(0, 3, 1, 2))
    return np.ascontiguousarray(images.numpy())


def _copy_licences(detector: Pack, target: Path) -> None:
    """Every licence and source note of a pack: files named so, and its folder ``licences``."""
    found = [p for pattern in _LICENCES for p in detector.folder.iterdir() if _is(p, pattern)]
    for path in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    if (detector.folder / "licences").is_dir():
        shutil.copytree(detector.folder / "licences", target, dirs_exist_ok=True)


def _is(path: Path, pattern: str) -> bool:
    return path.is_file() and PurePath(path.name.lower()).match(pattern)


def _report(
    form: str,
    packs: Mapping[str, Pack],
    pairs: Mapping[str, Pairs],
    times: Mapping[str, dict[int, float]],
    measured_on: str | None,
    calibration: str | None,
) -> PackReport:
    pack, own = packs[form], pairs.get(form)
    cosines = None
    if own is not None:
        cosines = (own.embeddings * pairs[_FLOAT32].embeddings).sum(1)
    return PackReport(
        precision=form,
        folder=pack.folder,
        contract_id=pack.contract.contract_id,
        size_bytes=pack.embedder_path.stat().st_size,
        milliseconds=times[form],
        mean_cosine=None if cosines is None else float(cosines.mean()),
        min_cosine=None if cosines is None else float(cosines.min()),
        tar={} if own is None else own.tar(),
        thresholds=own.thresholds(measured_on) if own and measured_on else None,
        calibration=calibration,
    )


def _variant(found: PackReport, report: ExportReport) -> VariantSpec:
    exact = report.packs[0]
    return VariantSpec(
        precision=found.precision,  # type: ignore[arg-type]
        of=exact.contract_id,
        calibration=found.calibration,
        measured_on=report.measured_on,
        mean_cosine=None if found.mean_cosine is None else round(found.mean_cosine, 6),
        min_cosine=None if found.min_cosine is None else round(found.min_cosine, 6),
        tar={f"{far:.0e}": round(tar, 6) for far, tar in found.tar.items()},
        tar_difference={
            f"{far:.0e}": round(tar - exact.tar[far], 6) for far, tar in found.tar.items()
        },
        size_bytes_float32=exact.size_bytes,
        milliseconds={f"batch_{b}": round(ms, 3) for b, ms in found.milliseconds.items()},
        milliseconds_float32={f"batch_{b}": round(ms, 3) for b, ms in exact.milliseconds.items()},
        timed_on=report.timed_on,
    )


def _spec(table: ThresholdTable | None) -> ThresholdsSpec | None:
    if table is None:
        return None
    return ThresholdsSpec(
        measured_on=table.measured_on, fmr=table.fmr, cosine=table.cosine, fnmr=table.fnmr
    )


def _data(data: Mapping[str, Any]) -> TrainingDataSpec | None:
    """What others may know of a run's data.json, where ``identities`` is a hash."""
    if not data:
        return None
    count = data.get("classes", data.get("identities"))
    return TrainingDataSpec(
        sha256=data.get("sha256"),
        images=data.get("images"),
        identities=count if isinstance(count, int) else None,
        origin=set_name(str(data["origin"])) if data.get("origin") else None,
    )


def _portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe's tables, with no path of the machine that it ran on."""
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    start = content["start"]
    if "pack" in start:
        start["pack"] = set_name(start["pack"])
    if "checkpoint" in start:
        start["checkpoint"] = "/".join(PurePath(start["checkpoint"]).parts[-3:])
    return content
