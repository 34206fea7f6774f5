"""A network as an ONNX file: the same numbers in any batch, smaller forms, nothing left over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from facerec.errors import ModelError
from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from facerec.runtime import Network
from tests.export_samples import SMALL, network, noise, of_torch, save, unit
from tests.training_runs import one_thread
from training.backbones import BACKBONES, Backbone, backbone_from_pack, create_backbone
from training.onnx_graph import OPSET, check_parity, to_onnx
from training.onnx_variants import to_float16, to_int8

NAMES = sorted(BACKBONES.keys() - {"iresnet34", "iresnet100"})  # more of the same blocks


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@cache
def exported(name: str) -> tuple[Backbone, bytes]:
    """A network and its ONNX file, made once."""
    backbone = network(name)
    backbone.train()  # as a caller may have left it
    model = to_onnx(backbone)
    assert backbone.training
    return backbone.eval(), model.SerializeToString()


def parsed(name: str) -> tuple[Backbone, onnx.ModelProto]:
    """A network and its ONNX model, to do with as one likes."""
    backbone, content = exported(name)
    return backbone, onnx.load_from_string(content)


# The graph


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_computes_the_same_in_any_batch(name: str, tmp_path: Path) -> None:
    backbone, model = parsed(name)
    path = save(model, tmp_path / "network.onnx")
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    onnx.checker.check_model(str(path), full_check=True)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,), (embedding,) = session.get_inputs(), session.get_outputs()
    size = backbone.input_size
    assert (image.name, image.shape) == ("image", ["batch", 3, size, size])
    assert (embedding.name, embedding.shape) == ("embedding", ["batch", backbone.embedding_dim])
    for batch in (1, 7, 33):
        chips = noise(batch, size, seed=batch)
        pixels = backbone.preprocessing.apply(torch.from_numpy(chips).permute(0, 3, 1, 2))
        got = session.run(None, {"image": pixels.numpy()})[0]
        np.testing.assert_allclose(unit(got), unit(of_torch(backbone, chips)), atol=2e-6)

    parities = check_parity(backbone, path, noise(9, size))
    assert [p.batch for p in parities] == [1, 7]
    assert all(p.embeddings < 1e-5 for p in parities)


@pytest.mark.parametrize("name", ["mobilefacenet-paper", "iresnet18", "dlib_resnet29"])
def test_a_single_changed_weight_is_noticed(name: str, tmp_path: Path) -> None:
    backbone, model = parsed(name)
    chips = noise(7, backbone.input_size)
    assert check_parity(backbone, save(model, tmp_path / "true.onnx"), chips)
    tampered = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    values = numpy_helper.to_array(tampered).copy()
    values[(0, 0, *(side // 2 for side in values.shape[2:]))] += 0.5
    tampered.CopyFrom(numpy_helper.from_array(values, tampered.name))
    with pytest.raises(ModelError, match="is not torch's"):
        check_parity(backbone, save(model, tmp_path / "false.onnx"), chips)


def test_wrong_scale_shape_and_nan_are_noticed(tmp_path: Path) -> None:
    """Unit embeddings hide a common factor; the outputs do not."""
    backbone, model = parsed("mobilefacenet-paper")
    chips, last = noise(7, 32), model.graph.node[-1]
    weight, bias = (next(t for t in model.graph.initializer if t.name == n) for n in last.input[1:])
    for factor in (1.5, np.nan):
        for tensor in (weight, bias):
            grown = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(grown, tensor.name))
        with pytest.raises(ModelError, match="is not torch's"):
            check_parity(backbone, save(model, tmp_path / f"{factor}.onnx"), chips)
    other = to_onnx(create_backbone("mobilefacenet-paper", **{**SMALL, "embedding_dim": 8}))
    with pytest.raises(ModelError, match=r"\(1, 8\)"):
        check_parity(backbone, save(other, tmp_path / "other.onnx"), chips)


def test_the_exporter_says_nothing_and_leaves_no_trace(tmp_path: Path) -> None:
    """Neither on the terminal, nor in the process, nor of this machine in the file."""
    script = """
import sys, warnings, logging
from pathlib import Path
from tests.export_samples import network, save
from training.onnx_graph import to_onnx
from training.onnx_variants import to_float16, to_int8
import numpy as np
before = list(sys.path), list(warnings.filters), logging.root.manager.disable
backbone = network("iresnet10")
model = to_onnx(backbone)
images = np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
made = [model, to_float16(model, images)[0], to_int8(model, images).model]
for number, form in enumerate(made):
    save(form, Path(sys.argv[1]) / f"{number}.onnx")
assert before == (list(sys.path), list(warnings.filters), logging.root.manager.disable)
"""
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    load = (
        "import sys, onnxruntime as o; s = o.SessionOptions(); s.log_severity_level = 2\n"
        "for p in sys.argv[1:]: o.InferenceSession(p, s, providers=['CPUExecutionProvider'])"
    )
    files = sorted(map(str, tmp_path.glob("*.onnx")))
    assert len(files) == 3
    loaded = subprocess.run(
        [sys.executable, "-c", load, *files], capture_output=True, text=True, check=True
    )
    assert (loaded.stdout, loaded.stderr) == ("", "")
    for file in files:
        content = Path(file).read_bytes()
        assert str(repository).encode() not in content
        assert b"site-packages" not in content and b".py" not in content
        model = onnx.load(file)
        assert model.producer_name == "facerec" and not model.metadata_props
        assert "arcface-112" in model.doc_string and "RGB" in model.doc_string
        assert not any(t.external_data for t in model.graph.initializer)


# Variants


def test_float16_refuses_what_it_cannot_hold() -> None:
    _, model = parsed("mobilefacenet-paper")
    grown = model.graph.initializer[0]
    values = numpy_helper.to_array(grown) * np.float32(1e6)
    grown.CopyFrom(numpy_helper.from_array(values, grown.name))
    with pytest.raises(ModelError, match="beyond float16"):
        to_float16(model, np.zeros((1, 3, 32, 32), np.float32))


def test_int8_needs_images_and_says_how_it_chose() -> None:
    _, model = parsed("mobilefacenet-paper")
    images = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
    made = to_int8(model, images)
    assert made.images == 32
    assert set(made.cosines) == {"MinMax", "Percentile", "Entropy"}
    assert made.cosines[made.method] == max(made.cosines.values()) > 0.9
    assert made.method in str(made)
    with pytest.raises(ModelError, match="at least 10 images"):
        to_int8(model, images[:9])


def test_the_bundled_network_keeps_its_accuracy(
    tmp_path: Path, group_photo: np.ndarray, astronaut: np.ndarray, pipeline: Pipeline
) -> None:
    """Real faces, a pretrained network: calibrated on variations of them."""
    chips = np.concatenate(
        [pipeline.align(i, pipeline.detector.detect([i])[0]) for i in (group_photo, astronaut)]
    )
    assert len(chips) == 7
    backbone = backbone_from_pack(find_pack("bundled"))
    model = to_onnx(backbone)
    parity = check_parity(backbone, save(model, tmp_path / "float32.onnx"), chips)
    assert all(p.embeddings < 1e-6 for p in parity)
    exact = pipeline.embedder.network.run(_prepared(backbone, chips), wide=True)[0]
    rng = np.random.default_rng(0)
    varied = [chips[i % 7][:, :: 1 - 2 * (i % 2)] * rng.uniform(0.6, 1.0) for i in range(40)]
    images = _prepared(backbone, np.stack(varied).astype(np.uint8))
    made = {
        "float32": model,
        "float16": to_float16(model, images[:4])[0],
        "int8": to_int8(model, images).model,
    }
    least = {"float32": 0.999999, "float16": 0.9999, "int8": 0.995}
    for form, variant in made.items():
        path = save(variant, tmp_path / f"{form}.onnx")
        got = Network(path, "cpu", 1).run(_prepared(backbone, chips), wide=True)[0]
        assert (unit(got) * unit(exact)).sum(1).min() > least[form], form
        # Every pair is as alike as before, on the scale that thresholds lie on.
        change = unit(got) @ unit(got).T - unit(exact) @ unit(exact).T
        assert np.abs(change).max() < {"float32": 1e-6, "float16": 1e-3, "int8": 0.02}[form]


def _prepared(backbone: Backbone, chips: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(chips)).permute(0, 3, 1, 2)
    return np.ascontiguousarray(backbone.preprocessing.apply(pixels).numpy())
