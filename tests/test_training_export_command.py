"""``facerec export``, and the exported pack in every command of the pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facerec import cli
from facerec.errors import ConfigError, ModelError
from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from tests.training_runs import one_thread, tiny
from training.backbones import STARTING_POINT, backbone_from_pack
from training.build import build_backbone
from training.commands import training_data
from training.export import load_trained
from training.recipe import recipe_from
from training.run_data import reopen_data
from training.trainer import train


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``facerec`` with the given words in this process."""

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["facerec", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)

    return call


@dataclass(frozen=True)
class Trained:
    """A run that trained the bundled embedder on a little, and the folder of its chips."""

    run: Path
    data: Path


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline, group_photo: np.ndarray
) -> Trained:
    """Six people of a photo, each as several chips; a third of them are kept aside."""
    folder = tmp_path_factory.mktemp("run")
    chips = pipeline.align(group_photo, pipeline.detector.detect([group_photo])[0])
    rng = np.random.default_rng(0)
    for person, chip in enumerate(chips):
        (folder / "chips" / f"person{person}").mkdir(parents=True)
        for number in range(6):
            varied = (chip * rng.uniform(0.6, 1)).astype(np.uint8)[:, :: 1 - 2 * (number % 2)]
            path = folder / "chips" / f"person{person}" / f"{number}.png"
            cv2.imwrite(str(path), varied[:, :, ::-1])
    recipe = recipe_from(
        {
            "start": {"pack": "bundled", "class_weights": "class-means"},
            "head": {"name": "arcface"},
            "optim": {"lr": 1e-5},
            "data": {"holdout": 0.3, "holdout_seed": 2, "workers": 0},
            "run": {"epochs": 1, "batch_size": 12, "device": "cpu", "tensorboard": False},
        },
        "further",
    )
    path = str(folder / "chips")
    learnt, kept_aside = training_data(recipe, path, template=None, size=None, pack="bundled")
    assert kept_aside is not None
    train(recipe, learnt, folder / "run", held_out=kept_aside)
    return Trained(folder / "run", folder / "chips")


@pytest.fixture(scope="module")
def pack(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``facerec export`` makes of it, with both variants."""
    folder = tmp_path_factory.mktemp("packs") / "mine"
    words = ["facerec", "export", str(trained.run), "-o", str(folder)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", words)
        cli.main()
    assert not stopped.value.code
    return folder


def test_packs_knows_the_pack(run: Run, pack: Path, trained: Trained) -> None:
    for folder, name in ((pack, "mine"), (pack / "int8", "mine-int8")):
        assert run("packs", "verify", folder).code == 0
        info = run("packs", "info", folder)
        assert info.code == 0
        contract = find_pack(str(folder)).contract.contract_id
        for words in (name, contract, "pack bundled (contract", "chips: ", "held_out_eer"):
            assert words in info.out, words
        assert "whose licence applies too" in info.out
    assert "int8 of contract" in run("packs", "info", pack / "int8").out
    as_json = json.loads(run("packs", "info", pack, "--json").out)
    data = json.loads((trained.run / "data.json").read_text())
    assert as_json["training"]["data"]["sha256"] == data["sha256"]
    assert as_json["training"]["recipe"]["start"]["pack"] == "bundled"
    (pack / "embedder.onnx").chmod(0o644)
    with (pack / "embedder.onnx").open("r+b") as stream:
        before = stream.read(1)
        stream.seek(0)
        stream.write(b"\xff")
    assert run("packs", "verify", pack).code == 4
    with (pack / "embedder.onnx").open("r+b") as stream:
        stream.write(before)
    assert run("packs", "verify", pack).code == 0


@pytest.mark.parametrize("form", ["", "float16", "int8"])
def test_enrol_identify_and_verify(
    run: Run,
    pack: Path,
    form: str,
    group_photo_path: Path,
    astronaut_path: Path,
    close_up_path: Path,
    tmp_path: Path,
) -> None:
    with_pack = ("--pack", pack / form, "--gallery", tmp_path / "gallery")
    assert run("enroll", "Eileen", astronaut_path, *with_pack).code == 0
    # Two people were measured on, too few for a threshold: it says so, and takes a cosine.
    silent = run("identify", astronaut_path, *with_pack)
    assert (silent.code, "no threshold table" in silent.out + silent.err) == (1, True)
    assert "facerec evaluate lfw" in silent.out + silent.err
    asked = ("--threshold", 0.93, *with_pack)
    found = run("identify", astronaut_path, group_photo_path, "--json", *asked)
    assert found.code == 0, found.err
    eileen, group = json.loads(found.out)
    assert [face["name"] for face in eileen["faces"]] == ["Eileen"]
    assert [face["name"] for face in group["faces"]] == [None] * 6
    assert run("verify", astronaut_path, "Eileen", *asked).code == 0
    assert run("verify", close_up_path, astronaut_path, *asked).code == 1
    other = pack if form else pack / "int8"
    mixed = run("identify", astronaut_path, "--pack", other, "--gallery", tmp_path / "gallery")
    assert mixed.code == 6


def test_the_pack_can_be_trained_further_and_its_variants_cannot(
    pack: Path, trained: Trained
) -> None:
    wanted, _ = load_trained(trained.run)
    recipe = tiny().changed(**{"start.pack": str(pack), "backbone": None})
    backbone, state = build_backbone(recipe)
    assert state is None
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], tensor), name
    for form in ("float16", "int8"):
        assert not (pack / form / STARTING_POINT).exists()
        with pytest.raises(ModelError, match=f"it is a {form} variant .* folder above"):
            backbone_from_pack(find_pack(str(pack / form)))
    with pytest.raises(ModelError, match="another ONNX file"):
        shutil.copy(pack / STARTING_POINT, pack / "float16")
        manifest = find_pack(str(pack / "float16")).manifest
        bare = manifest.model_copy(update={"training": None})
        (pack / "float16" / "pack.toml").write_text(bare.to_toml())
        try:
            backbone_from_pack(find_pack(str(pack / "float16")))
        finally:
            (pack / "float16" / STARTING_POINT).unlink()
            (pack / "float16" / "pack.toml").write_text(manifest.to_toml())


def test_data_that_moved_is_named_and_other_data_refused(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    export = ("export", trained.run, "--variants", "none", "--json")
    moved, fewer = tmp_path / "moved", tmp_path / "fewer"
    shutil.copytree(trained.data, moved)
    shutil.copytree(trained.data, fewer)
    learnt, _ = reopen_data(*_of(trained), str(moved))
    (fewer / learnt.identities[0] / "0.png").unlink()
    made = run(*export, "-o", tmp_path / "a", "--data", moved, "--name", "other", "--no-flip")
    assert made.code == 0, made.err
    assert made.err == ""
    report = json.loads(made.out)
    assert report["name"] == "other" and report["measured_on"].startswith("moved: every pair")
    assert [p["precision"] for p in report["packs"]] == ["float32"]
    assert not find_pack(str(tmp_path / "a")).contract.flip
    refused = run(*export, "-o", tmp_path / "b", "--data", fewer)
    assert (refused.code, "not the data" in refused.out) == (2, True)
    gone = run(*export, "-o", tmp_path / "b", "--data", tmp_path / "none")
    assert (gone.code, "--data" in gone.out, "--unmeasured" in gone.out) == (2, True, True)
    without = run(
        *("export", trained.run, "-o", tmp_path / "c", "--unmeasured", "--licence", "MIT, by me")
    )
    assert without.code == 0, without.err
    assert "No thresholds: no faces to measure on." in without.out
    assert f"facerec evaluate lfw DIR --pack {tmp_path / 'c'} --write" in without.out
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.is_dir()) == [
        *("float16", "licences")
    ]
    assert find_pack(str(tmp_path / "c")).manifest.embedder.licence == "MIT, by me"
    assert not (tmp_path / "b").exists()


def _of(trained: Trained) -> tuple:
    _, provenance = load_trained(trained.run)
    return provenance.recipe, provenance.data


def test_a_set_of_photos_is_aligned_again_and_recognised(
    tmp_path: Path, astronaut: np.ndarray, close_up: np.ndarray
) -> None:
    for name, photo in (
        ("eileen", astronaut),
        ("tom", cv2.copyMakeBorder(close_up, 40, 40, 40, 40, cv2.BORDER_REFLECT)),
    ):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, gain in enumerate((1.0, 0.8)):
            path = tmp_path / "photos" / name / f"{number}.png"
            cv2.imwrite(str(path), (photo * gain).astype(np.uint8)[:, :, ::-1])
    recipe, where = tiny(), str(tmp_path / "photos")
    source, _ = training_data(recipe, where, template=None, size=None, pack="bundled")
    assert len(source) == 4
    data = {
        "origin": source.origin,
        "images": len(source),
        "template": source.template,
        "size": source.size,
        "sha256": source.digest(),
    }
    again, kept_aside = reopen_data(recipe, data)
    assert again.digest() == data["sha256"] and kept_aside is None
    with pytest.raises(ConfigError, match="not the data"):
        reopen_data(recipe, {**data, "sha256": "0" * 64})


def test_what_is_no_run_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    text = tmp_path / "notes.pt"
    text.write_text("not a checkpoint")
    target = tmp_path / "pack"
    for ref, code, words in (
        (empty, 4, "no checkpoint in its folder"),
        (text, 4, "not a checkpoint"),
        (tmp_path / "none", 4, "no such file"),
        (find_pack("bundled").folder, 4, "is a model pack already"),
        (trained.run / "start.pt", 4, "not a checkpoint of a training run"),
    ):
        failed = run("export", ref, "-o", target)
        assert (failed.code, words in failed.err) == (code, True), (ref, failed)
        assert "Traceback" not in failed.err
    assert run("export", trained.run, "-o", empty).code == 2
    assert run("export", trained.run, "-o", target, "--variants", "int4").code == 2
    assert run("export", trained.run, "-o", target, "--detector", "nonesuch").code == 4
    assert run("export", trained.run, "-o", target, "--unmeasured", "--variants", "int8").code == 2
    assert not target.exists()
    best = trained.run / "checkpoints" / "best.pt"
    backbone, provenance = load_trained(best)
    assert provenance.notes["checkpoint"] == "best.pt"
    assert provenance.metrics.keys() == {"held_out_tar_at_far_0.001", "held_out_eer"}
    assert not backbone.training


def test_without_torch_it_says_what_to_install(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            missing = run("export", trained.run, "-o", tmp_path / "pack")
        assert missing.code == 2
        assert module in missing.err and "pip install 'facerec[train]'" in missing.err
