"""Checkpoint files: whole or absent, checked when read, and complete in what they hold."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec.errors import ConfigError, ModelError

torch = pytest.importorskip("torch")

from tests.training_runs import REPOSITORY, blobs, losses_of, one_thread, tiny  # noqa: E402
from training.checkpoint import (  # noqa: E402
    CheckpointFolder,
    backbone_from_checkpoint,
    load_checkpoint,
    load_network,
    random_state,
    redistribute,
    restore_random_state,
    save_network,
    seed_all,
    undisturbed_randomness,
)
from training.ema import MovingAverage  # noqa: E402
from training.trainer import train  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


CPU = torch.device("cpu")


def content(step: int) -> dict[str, Any]:
    network = dict.fromkeys(("backbone_arguments", "backbone", "ema"))
    weight = torch.full((64, 64), float(step))
    return {"format": 1, "recipe": {}, "step": step, "weight": weight, **network}


# --- files ---------------------------------------------------------------------------------


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", keep_last=2)
    assert folder.newest() is None and folder.best is None
    for step, best in [(5, False), (10, True), (15, False), (20, False)]:
        folder.save(content(step), best=best)
    assert [p.name for p in folder.all()] == ["step-000000015.pt", "step-000000020.pt"]
    assert folder.newest() == folder.all()[-1]
    assert folder.best is not None
    assert load_checkpoint(folder.best)["step"] == 10
    folder.save(content(25), best=True)
    assert load_checkpoint(folder.best)["step"] == 25
    assert sorted(p.name for p in folder.folder.iterdir()) == [
        "best.pt",
        "step-000000020.pt",
        "step-000000025.pt",
    ]


def test_the_best_is_copied_where_links_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(content(1), best=True)
    folder.save(content(2))
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_dying_at_any_moment_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(content(1))
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os if moment == "fsync" else Path, moment, die)
        with pytest.raises(ModelError, match="No space left on device") as error:
            folder.save(content(2))
    assert "step-000000001.pt, is intact" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert load_checkpoint(tmp_path / "step-000000001.pt")["step"] == 1


def test_remains_of_a_killed_process_are_ignored_and_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(content(3))
    (tmp_path / ".step-000000004.pt.123.part").write_bytes(b"half")
    assert folder.newest() == tmp_path / "step-000000003.pt"
    folder.remove_remains()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003.pt"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    """One flipped bit among the weights, which torch.load alone would hand over."""
    path = CheckpointFolder(tmp_path).save(content(1))
    whole = path.read_bytes()
    at = whole.index(np.full(64, 1.0, np.float32).tobytes()) + 100
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
    assert not torch.equal(torch.load(path)["weight"], torch.ones(64, 64))
    with pytest.raises(ModelError, match="checksum"):
        load_checkpoint(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="delete it to resume from the one before"):
        load_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="not a checkpoint of a training run"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({**content(1), "format": 99}, tmp_path / "newer.pt")
    with pytest.raises(ModelError, match="format 99"):
        load_checkpoint(tmp_path / "newer.pt")

    torch.save({"format": 1, "recipe": {}, "step": 3}, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"not a whole checkpoint.*backbone_arguments.*is missing"):
        load_checkpoint(tmp_path / "part.pt")

    class Code:
        def __reduce__(self) -> Any:
            return (os.getcwd, ())

    torch.save({**content(1), "code": Code()}, tmp_path / "code.pt")
    with pytest.raises(ModelError, match="damaged, or not a checkpoint"):
        load_checkpoint(tmp_path / "code.pt")


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.training_runs import blobs, tiny
from training.trainer import train
from facerec.errors import ModelError

def evaluate(backbone):
    evaluate.calls += 1
    if evaluate.calls == 2:  # the disk fills up: no file may grow beyond 20 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return {"accuracy": float(evaluate.calls)}

evaluate.calls = 0
try:
    train(tiny(run__epochs=3), blobs(), Path(sys.argv[1]), evaluate=evaluate)
except ModelError as exc:
    print(exc)
    raise SystemExit(exc.exit_code)
"""


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    reference = train(tiny(run__epochs=3), blobs(), tmp_path / "a")
    run = tmp_path / "b"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(run)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 4, done.stderr
    assert "step-000000008.pt: the checkpoint cannot be saved: File too large" in done.stdout
    assert "step-000000008.pt, is intact" in done.stdout  # as it was before its evaluation
    left = sorted(p.name for p in (run / "checkpoints").iterdir())
    steps = [f"step-{step:09d}.pt" for step in (0, 4, 8)]
    assert left == ["best.pt", *steps]
    assert [load_checkpoint(run / "checkpoints" / name)["step"] for name in steps] == [0, 4, 8]
    # With room again the run goes on as if nothing had happened.
    assert train(tiny(run__epochs=3), blobs(), run).step == reference.step
    assert losses_of(run) == losses_of(reference.run_dir)


# --- content -------------------------------------------------------------------------------


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [
            *(random.random(), random.gauss(0, 1)),
            *(float(np.random.rand()), float(np.random.randn())),  # noqa: NPY002
            *torch.rand(3).tolist(),
        ]

    with undisturbed_randomness(CPU):
        seed_all(1, 2)
        random.gauss(0, 1)  # leaves the second half of a pair behind, as NumPy's randn does
        np.random.randn()  # noqa: NPY002
        torch.save(random_state(CPU), tmp_path / "state.pt")
        expected = draw()
        seed_all(3)
        assert draw() != expected
        restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
        assert draw() == expected
        seed_all(1, 3)
        assert draw() != expected


def test_randomness_inside_leaves_the_outside_alone() -> None:
    with undisturbed_randomness(CPU):
        seed_all(1)
        expected = torch.rand(1)
        seed_all(1)
        with undisturbed_randomness(CPU):
            torch.rand(100)
            seed_all(7)
        assert torch.equal(torch.rand(1), expected)


def test_a_network_alone_survives_the_file(tmp_path: Path) -> None:
    backbone = backbone_from_checkpoint(train(tiny(), blobs(), tmp_path / "run").checkpoint)
    save_network(tmp_path / "net.pt", backbone)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(load_network(tmp_path / "net.pt")(images), backbone(images))
    torch.save({"arguments": {"name": "none"}, "state": {}}, tmp_path / "no.pt")
    with pytest.raises(ModelError, match="is no network of this program"):
        load_network(tmp_path / "no.pt")


def test_a_checkpoint_holds_the_average_and_the_weights(tmp_path: Path) -> None:
    result = train(tiny(optim__ema=0.5), blobs(), tmp_path)
    state = load_checkpoint(result.checkpoint)
    averaged = backbone_from_checkpoint(result.checkpoint)
    plain = backbone_from_checkpoint(result.checkpoint, averaged=False)
    name = "embedding.fc.weight"
    assert torch.equal(averaged.state_dict()[name], state["ema"][name])
    assert torch.equal(plain.state_dict()[name], state["backbone"][name])
    assert not torch.equal(state["ema"][name], state["backbone"][name])


def test_the_average_is_the_formula() -> None:
    from training.backbones import create_backbone

    backbone = create_backbone("mobilefacenet-paper", 8, width=0.25, input_size=32)
    average = MovingAverage(backbone, 0.3)
    weight = backbone.embedding.fc.weight
    expected = weight.detach().double().clone()
    for step in range(6):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
            backbone.embedding.norm.running_mean.fill_(step)
        average.update(backbone)
        keep = min(0.3, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight.detach().double()
    torch.testing.assert_close(average.backbone.embedding.fc.weight.double(), expected)
    assert 4 < float(average.backbone.embedding.norm.running_mean[0]) < 5


@pytest.mark.parametrize(("old", "new"), [(2, 1), (1, 2), (3, 2), (2, 3), (2, 4)])
def test_queues_are_dealt_out_in_the_order_of_time(old: int, new: int) -> None:
    length = 5
    ages = torch.arange(length)
    queues = [(torch.stack([ages, torch.full((length,), r)], 1), ages) for r in range(old)]
    dealt = redistribute(queues, new)
    assert len({len(part[0]) for part in dealt}) == 1
    assert len(dealt[0][0]) == old * length // new
    kept = torch.cat([part[0] for part in dealt])
    assert len({tuple(row) for row in kept.tolist()}) == len(kept)  # nothing twice
    for entries, times in dealt:
        assert torch.equal(entries[:, 0], times)
        assert (times.diff() >= 0).all()  # oldest first
    lost = old * length - len(kept)
    assert int((kept[:, 0] == 0).sum()) == old - lost  # only the oldest went


def test_an_unfit_checkpoint_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(tiny(), blobs(), tmp_path)
    with pytest.raises(ConfigError, match=r"backbone.name was 'mobilefacenet-paper', is 'iresnet"):
        train(tiny(backbone__name="iresnet10"), blobs(), tmp_path)
    with pytest.raises(ConfigError, match=r"optim.lr was 0.05, is 0.1.*recipe.toml"):
        train(tiny(optim__lr=0.1), blobs(), tmp_path)
    with pytest.raises(ConfigError, match="class weights of 8 identities, the data has 9"):
        train(tiny(), blobs(9), tmp_path)
    with pytest.raises(ConfigError, match=r"other data: 64 images \(blobs\), here are 56"):
        train(tiny(), blobs(8, 7), tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny(), blobs(), tmp_path, resume=False)
    (newest := sorted((tmp_path / "checkpoints").glob("step-*"))[-1]).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=f"{newest.name}: damaged"):
        train(tiny(), blobs(), tmp_path)
    newest.unlink()  # what the message says to do
    assert train(tiny(), blobs(), tmp_path).finished
