"""Two gloo processes against one on the same data, stopped, resumed, and with other numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facerec.errors import ConfigError

torch = pytest.importorskip("torch")

from tests.training_runs import (  # noqa: E402
    REPOSITORY,
    SIZE,
    command,
    finish,
    free_port,
    log_of,
    losses_of,
    one_thread,
    start,
    stop_at,
    tiny,
    write_blobs,
)
from training.checkpoint import load_checkpoint  # noqa: E402
from training.data import open_source  # noqa: E402
from training.distributed import Ranks, joined_ranks  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from training.state import check_fits, describe_data  # noqa: E402
from training.trainer import train  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# BatchNorm over the batch would see half of it; 9 identities do not divide into two shards.
EXACT: dict[str, Any] = {"backbone__batch_norm": "frozen", "optim__lr": 0.01}
PEOPLE = 9


def faces(tmp_path: Path) -> Path:
    return write_blobs(tmp_path / "faces", PEOPLE, 8)


def written(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    return path


def one_process(recipe: Recipe, data: Path, run_dir: Path) -> Path:
    train(recipe, open_source(data, template="arcface-112", size=SIZE), run_dir)
    return run_dir


def two(words: list[str]) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [start(words, rank, 2, port) for rank in (0, 1)]


def newest(run_dir: Path) -> dict[str, Any]:
    return load_checkpoint(sorted((run_dir / "checkpoints").glob("step-*"))[-1])


def test_torchrun_with_two_processes_is_one_process(tmp_path: Path) -> None:
    """Sharded class weights, margins drawn and sorted over both ranks, uneven shards."""
    recipe = tiny(
        **EXACT, head__name="elastic-cos+", head__sigma=0.05, optim__clip_scope="together"
    )
    data, path = faces(tmp_path), written(recipe, tmp_path)
    words = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    words += ["--master-port", str(free_port()), "-m", *command(path, data, tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    one_process(recipe, data, tmp_path / "one")
    for ours, theirs in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        for key, value in theirs.items():
            assert float(ours[key]) == pytest.approx(float(value), rel=2e-3), key
    ours, theirs = newest(tmp_path / "two"), newest(tmp_path / "one")
    assert ours["world"] == 2 and theirs["world"] == 1
    for part in ("head", "momentum"):
        weight = theirs[part]["head.weight"]
        assert weight.shape[0] == PEOPLE
        torch.testing.assert_close(ours[part]["head.weight"], weight, rtol=2e-3, atol=1e-4)


def test_killed_with_two_resumed_with_two_and_with_one(tmp_path: Path) -> None:
    """BroadFace's queues included: the same number of processes gives the same bits, another
    number the same course, up to rounding. (A queue of whole batches: of a part of a batch,
    one rank keeps other images than two.)"""
    recipe = tiny(**EXACT, broadface__queue_size=32, run__checkpoint_every=2, run__epochs=5)
    data, path = faces(tmp_path), written(recipe, tmp_path)
    words = command(path, data, tmp_path / "killed")
    assert stop_at(two(words), tmp_path / "killed", 5) == [-9, -9]
    saved = newest(tmp_path / "killed")
    assert 4 <= saved["step"] < 22 and saved["world"] == 2

    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "killed", alone)
    one_process(recipe, data, alone)
    expected = losses_of(one_process(recipe, data, tmp_path / "one"))
    assert losses_of(alone) == pytest.approx(expected, rel=2e-3)
    assert newest(alone)["world"] == 1

    finish(two(words))
    finish(two(command(path, data, tmp_path / "whole")))
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert losses_of(tmp_path / "whole") == pytest.approx(expected, rel=2e-3)


def test_dense_class_weights_and_dropout_under_two_processes(tmp_path: Path) -> None:
    """Copies of the class weights stay equal; one image is never on two ranks."""
    recipe = tiny(backbone__dropout=0.3, head__storage="dense", optim__ema=0.9)
    data, path = faces(tmp_path), written(recipe, tmp_path)
    finish(two(command(path, data, tmp_path / "two", "--set", "data.holdout=0.3")))
    state = newest(tmp_path / "two")
    first, second = (part["random"]["torch"] for part in state["ranks"])
    assert not torch.equal(first, second)
    losses = losses_of(tmp_path / "two")
    assert losses[-1] < losses[0]
    assert state["metrics"]["held_out_eer"] < 0.5
    assert len(state["head"]["head.weight"]) == state["data"]["classes"]


def test_another_number_of_processes_is_refused_where_batches_do_not_divide(
    tmp_path: Path,
) -> None:
    recipe = tiny(run__batch_size=12, run__accumulate=2)
    source = open_source(faces(tmp_path), template="arcface-112", size=SIZE)
    state = load_checkpoint(train(recipe, source, tmp_path / "run").checkpoint)
    data = describe_data(source)
    check_fits(state, "here.pt", recipe, data, 3)
    with pytest.raises(ConfigError, match=r"made by 1 processes; 4 cannot take it up.*12 does not"):
        check_fits(state, "here.pt", recipe, data, 4)


def test_an_incomplete_environment_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, but RANK.*torchrun"),
        joined_ranks("cpu"),
    ):
        pass


def test_one_process_talks_to_itself() -> None:
    ranks = Ranks(torch.device("cpu"))
    assert ranks.main and ranks.sum([1.0, 2.0]) == [1.0, 2.0]
    assert ranks.gather("x") == ["x"] and ranks.from_main("y") == "y"
    ranks.barrier()
