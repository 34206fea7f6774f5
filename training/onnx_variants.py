"""Smaller forms of an exported network: float16, and int8 with calibrated ranges.

Both start from the graph as onnxruntime simplifies it, where each BatchNorm behind a convolution
is part of it. Imports NumPy and the core; onnx and onnxruntime inside the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ModelError
from facerec.runtime import Network
from training.onnx_graph import INPUT, cleaned, quiet

if TYPE_CHECKING:
    import onnx

VARIANTS = ("float16", "int8")
METHODS = ("MinMax", "Percentile", "Entropy")
"""Of choosing the range of an activation; the best on images kept back from calibration wins."""
CALIBRATION_IMAGES = 256
JUDGING_IMAGES = 64
"""Kept back from calibration to choose the method by."""
_BATCH = 8
LARGEST_FLOAT16 = 65504.0

Blob = NDArray[np.float32]
"""(n, 3, S, S), preprocessed."""


@dataclass(frozen=True)
class Quantised:
    """An int8 network, and how it was calibrated. cosines: mean, by method, to float32."""

    model: onnx.ModelProto
    method: str
    images: int
    cosines: dict[str, float]

    def __str__(self) -> str:
        others = ", ".join(f"{m} {c:.5f}" for m, c in self.cosines.items() if m != self.method)
        return (
            f"{self.method} on {self.images} training images: mean cosine to float32 "
            f"{self.cosines[self.method]:.5f} on others ({others})"
        )


def to_float16(model: onnx.ModelProto, images: Blob) -> tuple[onnx.ModelProto, float]:
    """Weights and arithmetic in float16, input and output float32; and the largest activation.

    images: (n, 3, S, S) preprocessed, to see how large activations become. That has to be looked
    at in float32: onnxruntime computes much of a float16 graph in float32 on a CPU, where nothing
    overflows that would on a GPU. Raises ModelError for a weight or an activation beyond float16.
    """
    from onnx import TensorProto, numpy_helper

    simple = simplified(model)
    for tensor in simple.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
            _check_float16(f"{model.graph.name}: weight {tensor.name}", largest)
    reached = largest_activation(simple, images)
    _check_float16(f"{model.graph.name}: an activation", reached)
    with quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        half = convert_float_to_float16(simple, keep_io_types=True)
        OnnxModel(half).topological_sort(is_deterministic=True)
    return cleaned(half, model.graph.name, f"{model.doc_string}\nfloat16 inside."), reached


def largest_activation(model: onnx.ModelProto, images: Blob) -> float:
    """The largest absolute value that any node of a float32 model gives for ``images``."""
    import onnx
    import onnxruntime

    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    outputs = [name for node in model.graph.node for name in node.output if name]
    del open_model.graph.output[:]
    open_model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        open_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    largest = 0.0
    for image in images:
        for values in session.run(None, {INPUT: image[None]}):
            largest = max(largest, float(np.abs(values).max(initial=0)))
    return largest


def _check_float16(what: str, largest: float) -> None:
    if not largest <= LARGEST_FLOAT16:  # also for NaN
        raise ModelError(
            f"{what} reaches {largest:.3g}, beyond float16's {LARGEST_FLOAT16:,.0f}. Export "
            "without that variant: --variants int8."
        )


def to_int8(model: onnx.ModelProto, images: Blob) -> Quantised:
    """Weights int8 per channel, activations 8 bit with ranges calibrated on ``images``.

    images: (n, 3, S, S) preprocessed, in random order; the last fifth, ``JUDGING_IMAGES`` at
    most, is kept back to choose among ``METHODS`` by the mean cosine to the float32 network.
    Raises ModelError for fewer than 10 images.
    """
    if len(images) < 10:
        raise ModelError(
            f"int8 needs at least 10 images to calibrate on, got {len(images)}. Export without "
            "that variant: --variants float16."
        )
    kept_back = min(JUDGING_IMAGES, len(images) // 5)
    judge, calibrate = images[-kept_back:], images[:-kept_back]
    with tempfile.TemporaryDirectory(prefix="facerec-int8-") as folder:
        place = Path(folder)
        simple, exact = place / "simplified.onnx", place / "float32.onnx"
        simple.write_bytes(simplified(model).SerializeToString())
        exact.write_bytes(model.SerializeToString())
        wanted = _embed(exact, judge)
        cosines: dict[str, float] = {}
        for method in METHODS:
            path = place / f"{method}.onnx"
            quantise(simple, path, calibrate, method)
            cosines[method] = float((_embed(path, judge) * wanted).sum(1).mean())
        best = max(cosines, key=lambda method: cosines[method])
        quantised = _load(place / f"{best}.onnx")
    doc = f"{model.doc_string}\nint8 inside, ranges by {best}."
    return Quantised(cleaned(quantised, model.graph.name, doc), best, len(calibrate), cosines)


def quantise(simple: Path, target: Path, images: Blob, method: str) -> None:
    """Quantise the file ``simple`` into ``target``, with ranges of ``images`` by ``method``."""
    with quiet():
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        quantize_static(
            simple,
            target,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu", "Pad"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
            extra_options={"CalibStridedMinMax": _BATCH},
        )


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants folded and BatchNorms inside of the convolutions before them."""
    with quiet(), tempfile.TemporaryDirectory(prefix="facerec-onnx-") as folder:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        given, path = Path(folder) / "given.onnx", Path(folder) / "simplified.onnx"
        given.write_bytes(model.SerializeToString())  # a model in memory would be taken apart
        quant_pre_process(given, path, skip_symbolic_shape=True)
        return _load(path)


class _Batches:
    """Images in equal batches, as onnxruntime's calibration asks for them."""

    def __init__(self, images: Blob) -> None:
        self._images = images[: len(images) // _BATCH * _BATCH] if len(images) > _BATCH else images
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Blob] | None:
        if self._next >= self._end:
            return None
        start, self._next = self._next, self._next + _BATCH
        return {INPUT: self._images[start : self._next]}


def _embed(path: Path, images: Blob) -> Blob:
    """Unit embeddings of the network in the file."""
    from facerec.runtime import available_threads

    network = Network(path, "cpu", available_threads())
    parts: Sequence[Any] = [
        network.run(images[i : i + _BATCH], wide=True)[0] for i in range(0, len(images), _BATCH)
    ]
    raw = np.concatenate(parts)
    unit: Blob = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(str(path))
