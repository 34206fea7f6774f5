"""Evaluation reports, the command, what is wrong with models and sets, and the schedule."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from facerec.errors import ConfigError, FacerecError, ImageError, ModelError
from tests.evaluation_oracles import (
    STORED,
    png,
    save_checkpoint,
    tiny_network,
    write_ijb,
    write_pairs_bin,
)
from tests.training_runs import (
    SIZE,
    blob_chips,
    blobs,
    finish,
    one_thread,
    start,
    tiny,
    write_blobs,
)
from training.backbones import Backbone, create_backbone
from training.commands import app
from training.data import write_verification_bin
from training.evaluate import SetOptions, evaluate, open_model
from training.evaluation.models import Model, TorchModel
from training.evaluation.report import to_html
from training.evaluation.schedule import ScheduledEvaluation
from training.evaluation.summary import format_text
from training.trainer import train


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def network() -> Backbone:
    return tiny_network()


@pytest.fixture(scope="module")
def model(network: Backbone) -> Model:
    return TorchModel(network, name="tiny")


# --- reports -----------------------------------------------------------------------------


class _Page(HTMLParser):
    """Names, references and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in ("meta", "link", "br", "img", "path", "circle", "polyline", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_every_set_and_refers_to_nothing_outside(tmp_path, model: Model):
    write_pairs_bin(tmp_path / "one&two.bin")
    write_ijb(tmp_path / "templates", "ijbb")
    people = write_blobs(tmp_path / "people", 60, 4)
    report = evaluate(
        model,
        [tmp_path / "one&two.bin", tmp_path / "templates", people],
        STORED,
        command=["python", "<x>"],
    )
    html = to_html(report)
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.references == ["#set0", "#set1", "#set2"]
    assert not re.search(r"url\(|@import|<script|<link|https?://", html)
    text = " ".join(page.text)
    for name in ("one_two", "ijbb", "people", "tiny", "python '<x>'", report.date):
        assert name in text
    assert 'name="viewport"' in html and "prefers-color-scheme:dark" in html
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html)]
    assert len(pictures) == 2 + 2 + 4  # ROC and similarities; people also CMC and open set
    for picture in pictures:
        for line in picture.iter("polyline"):
            places = [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
            assert len(places) > 1
            assert all(0 <= x <= 460 and 0 <= y <= 300 for x, y in places)
    raw = json.loads(report.to_json())
    assert [item["name"] for item in raw["sets"]] == ["one_two", "ijbb", "people"]
    assert raw["sets"][0]["accuracy"]["mean"] == report.sets[0].accuracy.mean
    lines = format_text(report).splitlines()
    assert lines[2].split() == [
        "set",
        "images",
        "accuracy",
        "TAR@1e-3",
        "TAR@1e-4",
        "EER",
        "rank",
        "1",
    ]
    assert [line.split()[0] for line in lines[3:6]] == ["one_two", "ijbb", "people"]


def test_the_command_writes_both_reports(tmp_path, network: Backbone):
    save_checkpoint(tmp_path / "run", network)
    write_pairs_bin(tmp_path / "pairs.bin")
    words = ["evaluate", str(tmp_path / "run"), str(tmp_path / "pairs.bin"), "--device", "cpu"]
    words += ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"), "--no-flip"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    raw = json.loads((tmp_path / "r.json").read_text())
    assert raw["model"]["flip"] is False
    assert f"{100 * raw['sets'][0]['accuracy']['mean']:.2f} ±" in done.stdout
    assert "Evaluation of run/step-000000007.pt" in (tmp_path / "r.html").read_text()


# --- what is wrong is said ---------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_exits_as_the_others(tmp_path):
    process = start(["training", "evaluate", "bundled", str(tmp_path / "nothing.bin")])
    said = process.communicate()[0]
    assert process.returncode == 2
    assert "nothing.bin: cannot be read" in said and "Traceback" not in said


def test_wrong_models_and_sets(tmp_path, network: Backbone, model: Model):
    def refused(error: type[FacerecError], message: str, path: Path, **options) -> None:
        with pytest.raises(error, match=message):
            evaluate(model, [path], SetOptions(**options) if options else STORED)

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"neither a pack.*nor a training run.*nor a checkpoint"):
        open_model(tmp_path / "empty")
    with pytest.raises(ModelError, match=r"there is no pack 'bundeld'. Did you mean"):
        open_model("bundeld")
    (tmp_path / "broken.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match="damaged, or not a checkpoint"):
        open_model(tmp_path / "broken.pt")
    refused(ConfigError, "no such file or folder; a set is", tmp_path / "nowhere")
    refused(ConfigError, "no images", tmp_path / "empty")
    (tmp_path / "no.bin").write_bytes(b"x")
    refused(ConfigError, "not a verification set", tmp_path / "no.bin")
    image = png(blob_chips(1, 1)[0][0])
    write_verification_bin(tmp_path / "few.bin", [image] * 18, [True, False, True] * 3)
    refused(ConfigError, "6 genuine and 3 impostor pairs.*needs 10", tmp_path / "few.bin")
    write_verification_bin(tmp_path / "one.bin", [image] * 24, [True] * 12)
    refused(ConfigError, "12 genuine and 0 impostor pairs", tmp_path / "one.bin")
    write_verification_bin(tmp_path / "bad.bin", [image] * 23 + [b"?"], [True, False] * 6)
    refused(ImageError, "bad.bin, image 23: not an image", tmp_path / "bad.bin")
    wide = png(np.zeros((20, 30, 3), np.uint8))
    write_verification_bin(tmp_path / "wide.bin", [wide] * 24, [True, False] * 6)
    refused(ImageError, "wide.bin, image 0: 30x20 pixels", tmp_path / "wide.bin")
    write_ijb(tmp_path / "ijb")
    refused(
        ConfigError,
        "weights: detector, norm or none, got size",
        tmp_path / "ijb",
        weights=("size",),
    )
    alone = write_blobs(tmp_path / "alone", 5, 1)
    refused(ConfigError, "5 people with at most 1 photos each", alone)
    zero = create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE)
    for parameter in zero.parameters():
        torch.nn.init.zeros_(parameter)
    write_pairs_bin(tmp_path / "fine.bin")
    with pytest.raises(ModelError, match="zeros: gave NaN, infinity or zero"):
        evaluate(TorchModel(zero, name="zeros"), [tmp_path / "fine.bin"])


# --- on schedule -------------------------------------------------------------------------


def test_a_run_follows_sets_and_one_of_them_chooses_the_best(tmp_path: Path):
    write_pairs_bin(tmp_path / "agedb_30.bin", seed=1)
    people = write_blobs(tmp_path / "others", 6, 4, seed=2)
    recipe = tiny(run__best_metric="agedb_30_accuracy", run__epochs=3)
    seen = ScheduledEvaluation(
        recipe,
        create_backbone(**recipe.backbone.arguments()).preprocessing,
        [tmp_path / "agedb_30.bin", people],
        held_out=blobs(5, 4, seed=3),
        options=STORED,
    )
    (tmp_path / "gone").mkdir()
    result = train(recipe, blobs(), tmp_path / "run", evaluate=seen)
    (tmp_path / "agedb_30.bin").rename(tmp_path / "gone" / "agedb_30.bin")  # decoded once, kept
    train(recipe, blobs(), tmp_path / "second", evaluate=seen)
    (tmp_path / "gone" / "agedb_30.bin").rename(tmp_path / "agedb_30.bin")
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads((tmp_path / "second" / "metrics.json").read_text()) == summary
    figures = [entry["metrics"] for entry in summary["history"]]
    assert len(figures) == 3
    for name in (
        *("held_out_tar_at_far_0.001", "held_out_eer"),
        *("agedb_30_accuracy", "agedb_30_tar_at_far_0.001", "agedb_30_eer"),
        *("others_tar_at_far_0.001", "others_eer", "others_rank_1"),
    ):
        assert all(0 <= entry[name] <= 1 for entry in figures)
    accuracies = [entry["agedb_30_accuracy"] for entry in figures]
    assert summary["best"]["metric"] == "agedb_30_accuracy"
    assert summary["best"]["metrics"]["agedb_30_accuracy"] == max(accuracies)
    assert result.best_checkpoint is not None
    [bin_set, people_set] = evaluate(
        open_model(tmp_path / "run", device="cpu"), [tmp_path / "agedb_30.bin", people], STORED
    ).sets
    best = summary["best"]["metrics"]
    assert bin_set.accuracy is not None and people_set.closed_set is not None
    assert bin_set.accuracy.mean == pytest.approx(best["agedb_30_accuracy"])
    assert people_set.pairs[0].rates.eer == pytest.approx(best["others_eer"], abs=1e-6)
    assert people_set.closed_set.cmc[0] == pytest.approx(best["others_rank_1"])


def test_a_schedule_refuses_what_it_cannot_follow(tmp_path: Path, network: Backbone, model: Model):
    write_pairs_bin(tmp_path / "a.bin")
    (tmp_path / "sub").mkdir()
    write_pairs_bin(tmp_path / "sub" / "a.bin")
    write_ijb(tmp_path / "ijb")
    with pytest.raises(ConfigError, match=r"sub/a.bin: .*a.bin is called 'a' too"):
        ScheduledEvaluation(
            tiny(), network.preprocessing, [tmp_path / "a.bin", tmp_path / "sub" / "a.bin"]
        )
    with pytest.raises(ConfigError, match="IJB takes too long to be measured on schedule"):
        ScheduledEvaluation(tiny(), network.preprocessing, [tmp_path / "ijb"])


def test_the_training_command_follows_sets(tmp_path: Path):
    write_pairs_bin(tmp_path / "pairs.bin")
    data = write_blobs(tmp_path / "faces", 8, 4)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny(run__epochs=1).to_toml())
    words = ["training", "train", str(recipe), "--data", str(data), "--quiet"]
    words += ["--run-dir", str(tmp_path / "run"), "--template", "arcface-112", "--size", str(SIZE)]
    words += ["--evaluate", str(tmp_path / "pairs.bin")]
    said = finish([start([*words, "--set", "run.best_metric=pairs_accuracy"])])[0]
    assert "best.pt" in said and "pairs_accuracy" in said
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert summary["best"]["metric"] == "pairs_accuracy"
