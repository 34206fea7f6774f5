"""What a model pack says about itself: ``pack.toml``, typed and checked.

A pack is a folder with ``pack.toml`` and the model files that it names. This
module reads and validates; finding and fetching packs is ``registry`` and
``download``. Imports the core and pydantic only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from facerec.errors import ModelError
from facerec.types import EmbeddingContract, ThresholdTable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST_NAME = "pack.toml"


class _Section(BaseModel):
    """A table of pack.toml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_SHA256 = r"^[0-9a-f]{64}$"
_HTTP_URL = r"^https?://"


class _ModelFile(_Section):
    file: str
    """Path of the ONNX file, relative to the pack's folder, with forward slashes."""
    sha256: str | None = Field(default=None, pattern=_SHA256)
    """Of the file; computed when absent (a pack written by hand)."""
    url: str | None = Field(default=None, pattern=_HTTP_URL)
    """Where ``facerec packs pull`` fetches the file from, if it may."""
    size_bytes: int | None = Field(default=None, ge=1)
    licence: str | None = None
    source: str | None = None

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, value: str) -> str:
        """No manifest names a file outside its pack, on any system."""
        parts = PurePosixPath(value).parts
        if not parts or value.startswith("/") or ".." in parts or set(value) & set("\\:\0"):
            raise ValueError("must be a path inside the pack's folder, such as 'embedder.onnx'")
        return value


class DetectorSpec(_ModelFile):
    """The ``[detector]`` table."""

    kind: Literal["centerface", "scrfd", "yunet"]
    max_side: int = Field(default=640, ge=32, le=8192)
    """Longer images are shrunk to this many pixels before detection; none is enlarged."""
    score_threshold: float = Field(default=0.5, gt=0, lt=1)
    nms_iou: float = Field(default=0.4, gt=0, lt=1)


class EmbedderSpec(_ModelFile):
    """The ``[embedder]`` table: the network gets ``(pixel - mean) * scale``."""

    template: str
    """Name of the alignment template: see :mod:`facerec.alignment`."""
    input_size: int = Field(ge=16, le=1024)
    colour: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    flip: bool = False
    """Average the embeddings of the chip and its mirror image."""
    dim: int = Field(ge=2, le=65536)

    @field_validator("mean", "scale", mode="before")
    @classmethod
    def _one_for_all_channels(cls, value: object) -> object:
        return (value, value, value) if isinstance(value, (int, float)) else value


class ArchiveSpec(_Section):
    """The ``[archive]`` table: one zip that holds both files, under any folder."""

    url: str = Field(pattern=_HTTP_URL)
    sha256: str = Field(pattern=_SHA256)
    size_bytes: int = Field(ge=1)


class ThresholdsSpec(_Section):
    """The ``[thresholds]`` table, one entry of each list per operating point."""

    measured_on: str
    fmr: tuple[float, ...]
    cosine: tuple[float, ...]
    fnmr: tuple[float, ...]

    @model_validator(mode="after")
    def _is_a_table(self) -> ThresholdsSpec:
        self.table()
        return self

    def table(self) -> ThresholdTable:
        """The same as the core's value type."""
        return ThresholdTable(self.fmr, self.cosine, self.fnmr, self.measured_on)


class TrainingDataSpec(_Section):
    """The ``[training.data]`` table: what the embedder was trained on."""

    sha256: str | None = Field(default=None, pattern=_SHA256)
    """Of every image and its identity's name; see ``training.data.FaceSource.digest``."""
    images: int | None = Field(default=None, ge=1)
    identities: int | None = Field(default=None, ge=1)
    origin: str | None = None
    """The set's name: no path, which would say where its maker keeps things."""

    @field_validator("origin")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or set(value) & set("/\\")):
            raise ValueError("must be a name, such as 'my-faces', without the folder it is in")
        return value


class VariantSpec(_Section):
    """The ``[training.variant]`` table: a smaller form of another pack's embedder.

    Accuracy is against the float32 pack, on the same images; None where nothing was measured.
    """

    precision: Literal["float16", "int8"]
    of: str
    """Contract id of the float32 pack."""
    calibration: str | None = None
    """How the ranges of its numbers were chosen or checked, and on how many images."""
    measured_on: str | None = None
    mean_cosine: float | None = Field(default=None, ge=-1, le=1 + 1e-6)
    min_cosine: float | None = Field(default=None, ge=-1, le=1 + 1e-6)
    tar: dict[str, FiniteFloat] = Field(default_factory=dict)
    """True-accept rate by false-accept rate, such as ``"1e-03"``."""
    tar_difference: dict[str, FiniteFloat] = Field(default_factory=dict)
    """``tar`` minus that of the float32 pack."""
    size_bytes_float32: int | None = Field(default=None, ge=1)
    milliseconds: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Of the network alone, per image, by batch; ``milliseconds_float32`` in the same run."""
    milliseconds_float32: dict[str, FiniteFloat] = Field(default_factory=dict)
    timed_on: str | None = None


class TrainingSpec(_Section):
    """The ``[training]`` table, which ``facerec export`` writes: where the embedder comes from."""

    date: str
    facerec: str
    torch: str
    base: str | None = None
    """What it was trained further from."""
    data: TrainingDataSpec | None = None
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    """What was measured while it was trained."""
    notes: dict[str, Any] = Field(default_factory=dict)
    parity: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Largest absolute difference of a unit embedding from torch's, by batch."""
    variant: VariantSpec | None = None
    recipe: dict[str, Any] | None = None
    """The recipe's tables, every default written out."""

    @field_validator("notes", "recipe")
    @classmethod
    def _is_toml(cls, value: dict[str, Any] | None) -> Any:
        return None if value is None else _as_toml(value)

    @field_validator("recipe")
    @classmethod
    def _holds_something(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value or None


def _as_toml(value: Any, where: str = "the table") -> Any:
    """What TOML gives back for ``value``; tables with nothing in them are left out.

    Raises ValueError for what it cannot hold: None, and types of other libraries.
    """
    if isinstance(value, Mapping):
        items = {str(key): _as_toml(item, str(key)) for key, item in value.items()}
        return {key: item for key, item in items.items() if item != {}}
    if isinstance(value, list | tuple):
        return [_as_toml(item, where) for item in value]
    if type(value) not in (str, bool, int, float):
        raise ValueError(f"{where}: {type(value).__name__} is no value of TOML")
    return value


class PackManifest(_Section):
    """A whole ``pack.toml``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    version: str = "1"
    licence: str
    source: str
    description: str = ""
    needs_licence_acceptance: bool = False
    """True where the weights are not free for every use: pulling asks for a yes."""
    lfw_accuracy: float | None = Field(default=None, ge=0, le=1)
    detector: DetectorSpec
    embedder: EmbedderSpec
    archive: ArchiveSpec | None = None
    """Where ``facerec packs pull`` finds the files, if not by a ``url`` each."""
    thresholds: ThresholdsSpec | None = None
    training: TrainingSpec | None = None

    @property
    def files(self) -> tuple[DetectorSpec | EmbedderSpec, ...]:
        """The tables that name a model file."""
        return (self.detector, self.embedder)

    def to_toml(self) -> str:
        """The text of a pack.toml that :meth:`parse` reads back to an equal manifest."""
        import tomlkit

        return tomlkit.dumps(_as_toml(self.model_dump(mode="json", exclude_none=True)))

    @staticmethod
    def parse(text: str, origin: str) -> PackManifest:
        """The manifest in ``text``; ``origin`` names it in errors.

        Raises ModelError for TOML that does not parse, an unknown or missing key
        and a value out of range, naming the key.
        """
        try:
            return PackManifest.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as exc:
            raise ModelError(f"{origin}: not valid TOML: {exc}") from exc
        except ValidationError as exc:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in exc.errors()
            )
            raise ModelError(f"{origin}: {problems}") from exc


class Pack:
    """A pack on disk: its manifest, its folder, and the contract they fix.

    ``Pack.load`` reads the manifest; ``detector_path`` and ``embedder_path`` give
    model files, verified by ``verify``.
    """

    def __init__(self, folder: Path, manifest: PackManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @staticmethod
    def load(folder: Path) -> Pack:
        """The pack in ``folder``. Raises ModelError where pack.toml is missing or wrong."""
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise ModelError(
                f"{folder} is not a model pack: cannot read {MANIFEST_NAME} ({exc.strerror}). "
                "A pack is a folder with pack.toml and the ONNX files that it names."
            ) from exc
        except UnicodeDecodeError as exc:
            raise ModelError(f"{path}: not UTF-8 text") from exc
        return Pack(folder, PackManifest.parse(text, str(path)))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def detector_path(self) -> Path:
        return self._model_path(self.manifest.detector)

    @property
    def embedder_path(self) -> Path:
        return self._model_path(self.manifest.embedder)

    @cached_property
    def contract(self) -> EmbeddingContract:
        """What this pack's embeddings mean. Hashes the embedder where the manifest does not."""
        spec = self.manifest.embedder
        return EmbeddingContract(
            embedder_sha256=spec.sha256 or sha256_file(self.embedder_path),
            template=spec.template,
            input_size=spec.input_size,
            colour=spec.colour,
            mean=spec.mean,
            scale=spec.scale,
            flip=spec.flip,
            dim=spec.dim,
        )

    @property
    def thresholds(self) -> ThresholdTable | None:
        """The pack's threshold table, or None where none was measured yet."""
        return self.manifest.thresholds.table() if self.manifest.thresholds else None

    def verify(self) -> None:
        """Hash both model files. Raises ModelError for the first that is not what it should be."""
        for spec in self.manifest.files:
            path = self._model_path(spec)
            if spec.sha256 is None:
                continue
            actual = sha256_file(path)
            if actual != spec.sha256:
                raise ModelError(
                    f"{path}: SHA-256 is {actual}, but {self.folder / MANIFEST_NAME} says "
                    f"{spec.sha256}. The file is damaged or was replaced: fetch it again with "
                    f"'facerec packs pull {self.name}'."
                )

    def _model_path(self, spec: _ModelFile) -> Path:
        path = self.folder / spec.file
        if not path.is_file():
            raise ModelError(
                f"pack {self.name!r}: {path} is missing. Put the file there, or fetch the pack "
                f"with 'facerec packs pull {self.name}'."
            )
        return path


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises ModelError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    return digest.hexdigest()
