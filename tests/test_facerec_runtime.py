"""Devices, sessions and the worker pool."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from facerec.errors import ConfigError, ModelError
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.runtime import Network, Workers, available_threads, resolve_device

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _doubling_network(
    path: Path,
    shape: list[int | str],
    *,
    inputs: int = 1,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """y = x + x (or the sum of all inputs)."""
    names = [f"x{i}" for i in range(inputs)]
    nodes = [helper.make_node("Sum", names if inputs > 1 else ["x0", "x0"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


# Devices


def test_cpu_is_cpu() -> None:
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:0", "", "mps"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        resolve_device(name)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime was built with CUDA")
def test_without_cuda_auto_is_cpu_and_cuda_says_what_is_missing(bundled_pack: Pack) -> None:
    assert resolve_device("auto") == "cpu"
    assert Pipeline.load(bundled_pack, device="auto", threads=1).device == "cpu"
    with pytest.raises(ModelError, match=r"built without CUDA.*facerec\[gpu\]"):
        resolve_device("cuda")
    with pytest.raises(ModelError, match="built without CUDA"):
        Pipeline.load(bundled_pack, device="cuda")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime was built with CUDA")
def test_a_network_never_falls_back_in_silence(bundled_pack: Pack) -> None:
    """Even if asked behind resolve_device's back."""
    with pytest.raises(ModelError, match="CUDA was asked for"), pytest.warns(UserWarning):
        Network(bundled_pack.embedder_path, "cuda", 1)


def test_threads_are_the_cores_of_this_process() -> None:
    assert available_threads() >= 1
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = os.sched_getaffinity(0)
    assert available_threads() == len(cores)
    code = (
        f"import os; os.sched_setaffinity(0, {{{min(cores)}}})\n"
        "from facerec.runtime import available_threads; print(available_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert done.stdout.strip() == "1"


# Networks


@pytest.mark.parametrize(
    ("shape", "batch", "size_hw"),
    [
        (["n", 3, "h", "w"], None, None),
        ([1, 3, "h", "w"], 1, None),
        ([4, 3, 112, 96], 4, (112, 96)),
        (["n", 3, 112, "w"], None, None),
    ],
)
def test_what_a_graph_demands_is_read_from_it(
    tmp_path: Path, shape: list[int | str], batch: int | None, size_hw: tuple[int, int] | None
) -> None:
    network = Network(_doubling_network(tmp_path / "n.onnx", shape), "cpu", 1)
    assert network.fixed_batch == batch
    assert network.fixed_size_hw == size_hw


def test_wide_and_narrow_sessions_answer_alike_and_are_kept(tmp_path: Path) -> None:
    network = Network(_doubling_network(tmp_path / "n.onnx", ["n", 3, "h", "w"]), "cpu", 2)
    batch = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    for wide in (True, False):
        [doubled] = network.run(batch, wide=wide)
        np.testing.assert_array_equal(doubled, batch * 2)
        assert network.session(wide=wide) is network.session(wide=wide)
    assert network.session(wide=True) is not network.session(wide=False)


def test_a_session_is_made_once_by_many_threads(tmp_path: Path) -> None:
    network = Network(_doubling_network(tmp_path / "n.onnx", ["n", 3, "h", "w"]), "cpu", 2)
    ready = threading.Barrier(8)
    sessions = []

    def ask() -> None:
        ready.wait()
        sessions.append(network.session(wide=False))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(session) for session in sessions}) == 1


def test_a_wrong_batch_is_a_model_error_that_names_shape_and_file(tmp_path: Path) -> None:
    network = Network(_doubling_network(tmp_path / "n.onnx", [1, 3, 8, 8]), "cpu", 1)
    with pytest.raises(ModelError, match=r"n\.onnx: failed on a batch of shape \(2, 3, 8, 8\)"):
        network.run(np.zeros((2, 3, 8, 8), np.float32), wide=True)


def test_a_network_of_another_number_type_is_a_model_error(tmp_path: Path) -> None:
    path = _doubling_network(tmp_path / "n.onnx", ["n", 3, 8, 8], kind=TensorProto.FLOAT16)
    with pytest.raises(ModelError, match=r"n\.onnx.*float16"):
        Network(path, "cpu", 1).run(np.zeros((1, 3, 8, 8), np.float32), wide=True)


def test_files_that_are_no_image_network_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\x08\x07 not a model")
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for path, reason in [
        (tmp_path / "absent.onnx", "no such model file"),
        (tmp_path, "no such model file"),
        (junk, "not a model that onnxruntime can load"),
        (empty, "not a model that onnxruntime can load"),
        (
            _doubling_network(tmp_path / "two.onnx", ["n", 3, 8, 8], inputs=2),
            "expected one input, got 2",
        ),
        (_doubling_network(tmp_path / "flat.onnx", ["n", 8]), "expected an NCHW input"),
    ]:
        with pytest.raises(ModelError, match=reason) as caught:
            Network(path, "cpu", 1)
        assert str(path) in str(caught.value)


# Workers


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    workers = Workers(threads)
    for count in (0, 1, 2, 17):
        assert workers.map(slow_first, list(range(count))) == [i * i for i in range(count)]


def test_items_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=5)  # breaks if the second waits for the first
    Workers(2).map(lambda _: meeting.wait(), [0, 1])


def test_one_item_or_one_thread_runs_inline() -> None:
    here = threading.get_ident()
    assert Workers(4).map(lambda _: threading.get_ident(), [0]) == [here]
    assert Workers(1).map(lambda _: threading.get_ident(), [0, 1, 2]) == [here] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_is_raised_as_it_is_and_the_pool_lives_on(threads: int) -> None:
    def fail_on_odd(i: int) -> int:
        if i % 2:
            raise ModelError(f"item {i}")
        return i

    workers = Workers(threads)
    with pytest.raises(ModelError, match="item 1"):
        workers.map(fail_on_odd, [0, 1, 2, 3])
    assert workers.map(fail_on_odd, [0, 2, 4]) == [0, 2, 4]


def test_many_threads_share_a_pool() -> None:
    workers = Workers(2)
    answers: dict[int, list[int]] = {}

    def ask(k: int) -> None:
        answers[k] = workers.map(lambda i: i + k, list(range(20)))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert answers == {k: [i + k for i in range(20)] for k in range(8)}
