"""A backbone as an ONNX file, and whether it computes the same. Imports torch and the core.

onnx and onnxruntime are imported inside the functions that use them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from facerec import __version__
from facerec.errors import ConfigError, ModelError
from facerec.runtime import Blobs, Network
from facerec.types import RGBImage
from training.backbones import Backbone, create_backbone

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""What torch 2.13's exporter writes unless told otherwise; onnxruntime reads it since 1.17."""
INPUT, OUTPUT, BATCH = "image", "embedding", "batch"
PARITY_LIMIT = 1e-4
PARITY_BATCHES = (1, 7)


@dataclass(frozen=True)
class Parity:
    """How far the ONNX file is from torch on one batch: largest absolute differences.

    embeddings: of unit length. outputs: as the network gives them, the largest of which is
    ``largest_output`` in size.
    """

    batch: int
    embeddings: float
    outputs: float
    largest_output: float


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantisers print, log, warn and extend sys.path; none of it stays or shows."""
    path, level = list(sys.path), logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        sys.path[:] = path


def evaluation_copy(backbone: Backbone) -> Backbone:
    """The same network, built anew from its arguments: on the CPU, float32, in evaluation mode.

    Raises ModelError where arguments and weights do not belong together.
    """
    copy = create_backbone(**backbone.arguments, pretrained=False)
    try:
        copy.load_state_dict({k: v.detach().cpu() for k, v in backbone.state_dict().items()})
    except RuntimeError as exc:
        raise ModelError(f"{backbone.name}: its weights are not those it names: {exc}") from exc
    return copy.eval().requires_grad_(False)


def to_onnx(backbone: Backbone) -> onnx.ModelProto:
    """The network in evaluation mode as a checked ONNX model with any batch size.

    Input ``image`` (batch, 3, S, S) float32, preprocessed as ``backbone.preprocessing`` says;
    output ``embedding`` (batch, d) float32, not normalised. Raises ModelError where the exporter
    or the checker refuses, ConfigError where the exporter's package is missing.
    """
    network = evaluation_copy(backbone)
    example = torch.zeros(2, 3, backbone.input_size, backbone.input_size)
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
                external_data=False,
                verbose=False,
            )
    except ImportError as exc:
        raise ConfigError(f"exporting needs {exc.name}: pip install 'facerec[train]'") from exc
    except Exception as exc:  # torch.onnx raises whatever it meets
        raise ModelError(f"{backbone.name}: torch cannot export it to ONNX: {exc}") from exc
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return cleaned(model, backbone.name, describe(backbone))


def describe(backbone: Backbone) -> str:
    """The file's own documentation: what goes in and what comes out."""
    how = backbone.preprocessing
    return (
        f"{backbone.name}, a face encoder.\n"
        f"{INPUT}: chips aligned to {how.template}, {how.input_size} pixels a side, {how.colour}, "
        f"(pixel - {how.mean}) * {how.scale}.\n"
        f"{OUTPUT}: {backbone.embedding_dim} numbers, not normalised."
    )


def cleaned(model: onnx.ModelProto, name: str, doc: str) -> onnx.ModelProto:
    """The model without its maker's stack traces, paths and unused domains; checked in full.

    Raises ModelError where onnx.checker refuses it.
    """
    import onnx

    graph = model.graph
    model.producer_name, model.producer_version = "facerec", __version__
    model.domain, model.doc_string, model.model_version = "", doc, 0
    graph.name, graph.doc_string = name, ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    used = {node.domain for node in graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in {"", *used}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # its own errors, and protobuf's for more than 2 GiB
        raise ModelError(f"{name}: onnx.checker refuses the exported network: {exc}") from exc
    return model


def check_parity(backbone: Backbone, path: Path, chips: RGBImage) -> tuple[Parity, ...]:
    """Compare the file with torch, on the CPU, at batch 1 and at batch 7.

    chips: (7 or more, S, S, 3) uint8 RGB; onnxruntime gets them preprocessed by the pipeline's
    code, torch by ``backbone.preprocessing``. Raises ModelError where a unit embedding differs
    by more than ``PARITY_LIMIT``, or an output by more than that times the larger of 1 and the
    largest output.
    """
    network, runtime = evaluation_copy(backbone), Network(path, "cpu", torch.get_num_threads())
    how, blobs, found = backbone.preprocessing, Blobs(), []
    for batch in PARITY_BATCHES:
        part = np.ascontiguousarray(chips[:batch])
        with torch.no_grad():
            images = how.apply(torch.from_numpy(part).permute(0, 3, 1, 2))
            expected = network(images).numpy()
        blob = blobs.fill(part, bgr=how.colour == "BGR", mean=how.mean, scale=how.scale)
        found.append(_compare(batch, expected, runtime.run(blob, wide=True)[0]))
    for parity in found:
        limit = PARITY_LIMIT * max(1.0, parity.largest_output)
        if not (parity.embeddings <= PARITY_LIMIT and parity.outputs <= limit):  # also for NaN
            raise ModelError(
                f"{backbone.name}: the ONNX network is not torch's: at batch {parity.batch} unit "
                f"embeddings differ by up to {parity.embeddings:.2g} (limit {PARITY_LIMIT:g}), "
                f"outputs by {parity.outputs:.2g} (limit {limit:.2g}). Nothing was written; "
                "another version of torch or onnxruntime may do better."
            )
    return tuple(found)


def _compare(batch: int, expected: NDArray[np.float32], got: NDArray[np.float32]) -> Parity:
    if got.shape != expected.shape:
        raise ModelError(f"the ONNX network gives {got.shape} where torch gives {expected.shape}")
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (expected, got)]
    return Parity(
        batch,
        embeddings=float(np.abs(units[0] - units[1]).max()),
        outputs=float(np.abs(expected - got).max()),
        largest_output=float(np.abs(expected).max()),
    )
