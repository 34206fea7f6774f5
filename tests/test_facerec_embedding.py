"""The embedder: made-up networks against float64 NumPy, and the bundled one for consistency."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from facerec.embedding import Embedder
from facerec.errors import ModelError
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.runtime import Network, Workers

SIZE = 32
DIM = 24
MEAN = (120.0, 110.5, 99.25)
SCALE = (1 / 50, 1 / 60, 1 / 70)
POOL = 8
_FEATURES = 3 * (SIZE // POOL) ** 2


def _weights(dim: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(_FEATURES, dim)).astype(np.float32)


def _network(
    path: Path,
    *,
    batch: int | str = "n",
    side: int | str = SIZE,
    dim: int = DIM,
    factor: float = 1.0,
    kind: int = TensorProto.FLOAT,
    ending: str = "",
) -> None:
    """Average pooling, a fixed matrix, times ``factor``; ``ending`` alters the output."""
    matrix = helper.make_tensor(
        "w", TensorProto.FLOAT, [_FEATURES, dim], (_weights(dim) * factor).ravel()
    )
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [0, dim, 1, 1])
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[POOL] * 2, strides=[POOL] * 2),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
    ]
    if ending == "four axes":
        nodes.append(helper.make_node("Reshape", ["m", "shape"], ["y"]))
    elif ending == "one for all":
        nodes.append(helper.make_node("ReduceMean", ["m"], ["y"], axes=[0], keepdims=1))
    else:
        nodes.append(helper.make_node("Cast", ["m"], ["y"], to=kind))
    graph = helper.make_graph(
        nodes,
        "made-up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", kind, None)],
        [matrix, shape],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def _embedder(
    folder: Path, manifest: dict[str, object] | None = None, **network: object
) -> Embedder:
    """An embedder of a pack written by hand around a made-up network."""
    _network(folder / "embedder.onnx", **network)
    table = {
        "template": '"arcface-112"',
        "input_size": SIZE,
        "colour": '"RGB"',
        "mean": list(MEAN),
        "scale": list(SCALE),
        "flip": "false",
        "dim": DIM,
        **(manifest or {}),
    }
    lines = "\n".join(f"{key} = {value}" for key, value in table.items())
    (folder / "pack.toml").write_text(
        'name = "made-up"\nlicence = "MIT"\nsource = "a test"\n'
        '[detector]\nkind = "yunet"\nfile = "absent.onnx"\n'
        f'[embedder]\nfile = "embedder.onnx"\n{lines}\n'
    )
    pack = Pack.load(folder)
    return Embedder(pack, Network(pack.embedder_path, "cpu", 2), Workers(2))


def _chips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _oracle(chips: np.ndarray, *, colour: str = "RGB", flip: bool = False) -> np.ndarray:
    """The same in float64, one chip after the other."""
    rows = []
    for chip in chips:
        views = [chip, chip[:, ::-1]] if flip else [chip]
        total = np.zeros(DIM)
        for view in views:
            pixels = view.astype(np.float64)
            if colour == "BGR":
                pixels = pixels[..., [2, 1, 0]]
            planes = [(pixels[..., c] - MEAN[c]) * SCALE[c] for c in range(3)]
            cells = [p.reshape(SIZE // POOL, POOL, SIZE // POOL, POOL).mean((1, 3)) for p in planes]
            total += np.concatenate([c.ravel() for c in cells]) @ _weights(DIM).astype(np.float64)
        rows.append(total / np.sqrt((total**2).sum()))
    return np.array(rows).reshape(-1, DIM)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("side", [SIZE, "s"])
def test_any_embedder_a_pack_describes(
    tmp_path: Path, batch: int | str, side: int | str, colour: str, flip: bool
) -> None:
    embedder = _embedder(
        tmp_path,
        {"colour": f'"{colour}"', "flip": str(flip).lower()},
        batch=batch,
        side=side,
    )
    for count in (1, 2, 4, 5, 19):
        chips = _chips(count, seed=count)
        embeddings = embedder.embed(chips)
        assert embeddings.dtype == np.float32
        assert embeddings.shape == (count, DIM)
        np.testing.assert_allclose(embeddings, _oracle(chips, colour=colour, flip=flip), atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_one_number_stands_for_all_channels(tmp_path: Path) -> None:
    embedder = _embedder(tmp_path, {"mean": 127.5, "scale": 0.0078125})
    assert embedder.contract.mean == (127.5, 127.5, 127.5)
    assert embedder.contract.scale == (0.0078125, 0.0078125, 0.0078125)


def test_no_chip_gives_no_embedding(tmp_path: Path) -> None:
    embeddings = _embedder(tmp_path).embed(_chips(0))
    assert embeddings.shape == (0, DIM)
    assert embeddings.dtype == np.float32


def test_flip_makes_a_chip_and_its_mirror_image_the_same(tmp_path: Path) -> None:
    embedder = _embedder(tmp_path, {"flip": "true"})
    chips = _chips(3)
    mirrored = np.ascontiguousarray(chips[:, :, ::-1])
    np.testing.assert_allclose(embedder.embed(chips), embedder.embed(mirrored), atol=1e-6)


def test_an_output_of_four_axes_is_flattened(tmp_path: Path) -> None:
    chips = _chips(5)
    embeddings = _embedder(tmp_path, ending="four axes").embed(chips)
    np.testing.assert_allclose(embeddings, _oracle(chips), atol=2e-6)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_embeddings_are_float32_whatever_the_network_gives(tmp_path: Path, kind: int) -> None:
    chips = _chips(3)
    embeddings = _embedder(tmp_path, kind=kind, factor=0.1).embed(chips)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, _oracle(chips), atol=2e-3)


def test_a_wrong_dimension_is_refused(tmp_path: Path) -> None:
    embedder = _embedder(tmp_path, {"dim": DIM + 1})
    with pytest.raises(ModelError, match=f"gives {DIM} numbers a face.*dim = {DIM + 1}"):
        embedder.embed(_chips(2))


def test_a_wrong_input_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes chips of \(32, 32\).*input_size = 48"):
        _embedder(tmp_path, {"input_size": 48})


def test_an_unknown_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no alignment template 'mtcnn'"):
        _embedder(tmp_path, {"template": '"mtcnn"'})


@pytest.mark.parametrize("factor", [0.0, np.nan, np.inf, 1e30])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_has_no_direction_is_refused(tmp_path: Path, factor: float) -> None:
    """1e30 is finite, but its square is not: it would come out as a zero vector."""
    embedder = _embedder(tmp_path, factor=factor)
    with pytest.raises(ModelError, match=r"embedder\.onnx: gave NaN, infinity or zero"):
        embedder.embed(_chips(2))


def test_one_output_for_many_chips_is_refused(tmp_path: Path) -> None:
    embedder = _embedder(tmp_path, ending="one for all")
    with pytest.raises(ModelError, match="expected one embedding a chip"):
        embedder.embed(_chips(6))


@pytest.mark.parametrize(
    "chips",
    [
        np.zeros((2, SIZE, SIZE, 3), np.float32),
        np.zeros((2, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((2, 3, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((2, SIZE, SIZE), np.uint8),
    ],
)
def test_chips_are_checked(tmp_path: Path, chips: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"chips: expected \(N, 32, 32, 3\) uint8"):
        _embedder(tmp_path).embed(chips)


def test_chips_are_not_written_to(tmp_path: Path) -> None:
    chips = _chips(5)
    chips.flags.writeable = False
    _embedder(tmp_path, {"flip": "true", "colour": '"BGR"'}).embed(chips)


# The bundled embedder


@pytest.fixture(scope="module")
def real_chips(group_photo: np.ndarray, pipeline: Pipeline) -> np.ndarray:
    """33 chips: the group photo's faces, moved and mirrored."""
    [found] = pipeline.detector.detect([group_photo])
    chips = [pipeline.align(group_photo, found)]
    for shift in range(1, 4):
        chips.append(np.roll(chips[0], shift, axis=2))
        chips.append(chips[0][:, :, ::-1])
    return np.ascontiguousarray(np.concatenate(chips)[:33])


def test_neither_batch_size_nor_order_changes_an_embedding(
    pipeline: Pipeline, real_chips: np.ndarray
) -> None:
    embed = pipeline.embedder.embed
    expected = np.concatenate([embed(real_chips[i : i + 1]) for i in range(33)])
    for count in (2, 7, 8, 16, 33):
        np.testing.assert_allclose(embed(real_chips[:count]), expected[:count], atol=1e-5)
    order = np.random.default_rng(0).permutation(33)
    np.testing.assert_allclose(embed(real_chips[order]), expected[order], atol=1e-5)


def test_eight_threads_get_what_one_gets(pipeline: Pipeline, real_chips: np.ndarray) -> None:
    embed = pipeline.embedder.embed
    jobs = [real_chips[i : i + 1 + i % 9] for i in range(16)]
    expected = [embed(job) for job in jobs]
    ready = threading.Barrier(8)

    def work(i: int) -> list[np.ndarray]:
        ready.wait()
        return [embed(jobs[k]) for k in (i, i + 8)]

    with ThreadPoolExecutor(8) as pool:
        for i, pair in enumerate(pool.map(work, range(8))):
            for k, found in zip((i, i + 8), pair, strict=True):
                np.testing.assert_allclose(found, expected[k], atol=1e-5)
