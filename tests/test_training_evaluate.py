"""Evaluation against scalar oracles: .bin files, LFW folders, people, templates, the schedule."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from facerec.alignment import find_template
from facerec.errors import ConfigError, FacerecError, ImageError, ModelError
from facerec.evaluation import evaluate_lfw
from facerec.identification import search_first_photos, single_photos
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
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
from training.checkpoint import CheckpointFolder
from training.commands import app
from training.data import MemorySource, write_verification_bin
from training.evaluate import SetOptions, evaluate, open_model, open_set
from training.evaluation.identification import identify
from training.evaluation.ijb import people_of, read_templates
from training.evaluation.models import Chips, Model, TorchModel, embed_chips, regrouped
from training.evaluation.people import PeopleSet, some_people
from training.evaluation.report import to_html
from training.evaluation.schedule import ScheduledEvaluation
from training.evaluation.sets import PairSet
from training.evaluation.summary import format_text
from training.trainer import train

STORED = SetOptions(template="arcface-112", size=SIZE)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def network() -> Backbone:
    torch.manual_seed(4)
    return create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE).eval()


@pytest.fixture(scope="module")
def model(network: Backbone) -> Model:
    return TorchModel(network, name="tiny")


def png(chip: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(chip[:, :, ::-1]))[1].tobytes()


def write_pairs_bin(path: Path, pairs: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A .bin of blob people; its chips (2p, S, S, 3) and issame (p,)."""
    chips, labels = blob_chips(8, 6, seed)
    rng = np.random.default_rng(seed)
    rows, same = [], []
    for at in range(pairs):
        person, other = rng.choice(8, 2, replace=False)
        genuine = at % 3 > 0
        left, right = rng.choice(np.flatnonzero(labels == person), 2, replace=False)
        rows += [left, right if genuine else rng.choice(np.flatnonzero(labels == other))]
        same.append(genuine)
    write_verification_bin(path, [png(chips[row]) for row in rows], same)
    return chips[rows], np.array(same)


def embedding(network: Backbone, chip: np.ndarray, *, flip: bool) -> np.ndarray:
    """One chip at a time, by the network's own preprocessing; not of unit length."""
    total = np.zeros(network.embedding_dim)
    for view in (chip, chip[:, ::-1]) if flip else (chip,):
        pixels = torch.from_numpy(view.transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            total += network(network.preprocessing.apply(pixels))[0].double().numpy()
    return total


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


def tar_oracle(genuine: list[float], impostor: list[float], far: float) -> float:
    """Of all thresholds with a share of impostors accepted of at most ``far``, the best TAR."""
    best = 0.0
    for threshold in [*genuine, *impostor, 2.0]:
        if sum(i >= threshold for i in impostor) / len(impostor) <= far:
            best = max(best, sum(g >= threshold for g in genuine) / len(genuine))
    return best


def accuracy_bounds(scores: list[float], same: list[bool], folds: int) -> list[set[float]]:
    """Per fold, its accuracy at every threshold that is best on the others."""
    parts = np.array_split(np.arange(len(scores)), folds)
    result = []
    for part in parts:
        rest = [i for i in range(len(scores)) if i not in part]
        cuts = sorted(scores[i] for i in rest)
        middles = [(a + b) / 2 for a, b in itertools.pairwise(cuts)]
        right = {t: sum((scores[i] >= t) == same[i] for i in rest) for t in (*middles, -2.0, 2.0)}
        best = [t for t, count in right.items() if count == max(right.values())]
        result.append({sum((scores[i] >= t) == same[i] for i in part) / len(part) for t in best})
    return result


# --- models ------------------------------------------------------------------------------


def test_flip_averaging_is_of_the_embeddings_before_they_have_unit_length(network: Backbone):
    chips, _ = blob_chips(3, 2)
    both, plain = TorchModel(network), TorchModel(network, flip=False)
    assert both.describe.flip and not plain.describe.flip
    for chip, row, alone in zip(chips, both.embed(chips), plain.embed(chips), strict=True):
        assert row == pytest.approx(unit(embedding(network, chip, flip=True)), abs=1e-5)
        assert alone == pytest.approx(unit(embedding(network, chip, flip=False)), abs=1e-5)
    mirrored = np.ascontiguousarray(chips[:, :, ::-1])
    assert both.embed(mirrored) == pytest.approx(both.embed(chips), abs=1e-5)
    assert np.abs(plain.embed(mirrored) - plain.embed(chips)).max() > 1e-3


def test_embedding_leaves_the_network_as_it_was(network: Backbone):
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    TorchModel(network).embed(blob_chips(2, 2)[0])
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network.eval()


def test_batches_of_any_sizes_are_regrouped_and_rows_stay_in_place(model: Model):
    chips, _ = blob_chips(5, 4)
    present = np.random.default_rng(1).random(20) < 0.7
    parts = [slice(0, 1), slice(1, 9), slice(9, 9), slice(9, 20)]
    batches = [Chips(chips[p][present[p]], present[p]) for p in parts]
    sizes = [len(batch.present) for batch in regrouped(batches, 6)]
    assert sizes == [6, 6, 6, 2]
    seen = []
    embedded = embed_chips(model, batches, 20, lambda done, total: seen.append((done, total)))
    assert seen == [(20, 20)]
    assert embedded.found.tolist() == present.tolist()
    assert not embedded.rows[~present].any()
    assert embedded.rows[present] == pytest.approx(model.embed(chips[present]), abs=1e-6)


def save_checkpoint(folder: Path, backbone: Backbone, *, step: int = 7, best: bool = False) -> Path:
    state = {
        "format": 1,
        "recipe": {},
        "backbone_arguments": backbone.arguments,
        "backbone": backbone.state_dict(),
        "ema": None,
        "step": step,
    }
    return CheckpointFolder(folder / "checkpoints").save(state, best=best)


def test_a_run_stands_for_its_best_checkpoint_else_its_newest(tmp_path, network: Backbone):
    save_checkpoint(tmp_path / "run", network, step=1)
    newest = save_checkpoint(tmp_path / "run", network, step=2)
    opened = open_model(tmp_path / "run")
    assert opened.describe.path == str(newest)
    assert opened.describe.name == "run/step-000000002.pt"
    save_checkpoint(tmp_path / "run", network, step=3, best=True)
    assert open_model(tmp_path / "run").describe.name == "run/best.pt"
    assert open_model(newest, flip=False).describe.flip is False
    chips, _ = blob_chips(2, 2)
    assert np.array_equal(opened.embed(chips), TorchModel(network).embed(chips))


def test_a_pack_with_and_without_the_mirror_image(pipeline: Pipeline, close_up: np.ndarray):
    own, alone = open_model("bundled", device="cpu"), open_model("bundled", flip=False)
    assert own.describe.contract_id == pipeline.contract.contract_id
    assert alone.describe.contract_id != own.describe.contract_id
    chips = cv2.resize(close_up, (150, 150))[None]
    assert np.array_equal(own.embed(chips), pipeline.embedder.embed(chips))
    features = alone.features(np.concatenate([chips, chips[:, :, ::-1]]))
    assert own.embed(chips)[0] == pytest.approx(unit(features.sum(0)), abs=1e-5)


# --- .bin files --------------------------------------------------------------------------


def test_a_bin_file_against_every_threshold(tmp_path, network: Backbone, model: Model):
    chips, same = write_pairs_bin(tmp_path / "made-30.bin", 43)
    rows = [unit(embedding(network, chip, flip=True)) for chip in chips]
    scores = [float(rows[2 * i] @ rows[2 * i + 1]) for i in range(43)]
    genuine = [s for s, g in zip(scores, same, strict=True) if g]
    impostor = [s for s, g in zip(scores, same, strict=True) if not g]

    report = evaluate(model, [tmp_path / "made-30.bin"], command=("test",))
    [result] = report.sets
    assert (result.name, result.kind, result.images) == ("made_30", "pairs", 86)
    assert result.accuracy is not None
    possible = accuracy_bounds(scores, same.tolist(), 10)
    assert len(result.accuracy.per_fold) == 10
    for fold, expected in zip(result.accuracy.per_fold, possible, strict=True):
        assert any(fold == pytest.approx(value) for value in expected)
    assert result.accuracy.mean == pytest.approx(np.mean(result.accuracy.per_fold))
    rates = result.pairs[0].rates
    assert (rates.curve.genuine, rates.curve.impostor) == (28, 15)
    for point in rates.points:
        assert 1 - point.point.fnmr == tar_oracle(genuine, impostor, point.point.fmr)
        assert point.fnmr_interval is not None
        assert point.fnmr_interval.low <= point.point.fnmr <= point.fnmr_interval.high
    wins = [(g > i) + (g == i) / 2 for g in genuine for i in impostor]
    assert rates.auc == pytest.approx(np.mean(wins), abs=1e-6)
    crossing = min(
        max(np.mean([i >= t for i in impostor]), np.mean([g < t for g in genuine])) for t in scores
    )
    assert rates.eer <= crossing + 1e-9
    assert rates.eer >= crossing - 1 / len(impostor)
    assert sum(result.pairs[0].histogram.genuine) == pytest.approx(1, abs=1e-6)
    again = evaluate(model, [tmp_path / "made-30.bin"]).sets[0]
    assert again.pairs == result.pairs, "seeded"


def test_chips_of_another_size_are_warped(tmp_path, model: Model):
    chips, _ = blob_chips(2, 2)
    smooth = [cv2.GaussianBlur(chip, (0, 0), 3) for chip in chips]
    large = [
        cv2.resize(chip, (SIZE * 3, SIZE * 3), interpolation=cv2.INTER_CUBIC) for chip in smooth
    ]
    path = tmp_path / "large.bin"
    write_verification_bin(path, [png(chip) for chip in large] * 5, [True, False] * 5)
    [batch] = PairSet(path, "large").chips(model)
    assert batch.chips.shape == (20, SIZE, SIZE, 3)
    inner = slice(2, -2)
    found, expected = batch.chips[:4, inner, inner].astype(int), np.stack(smooth)[:, inner, inner]
    assert np.abs(found - expected).mean() < 5  # a third of a pixel apart
    assert np.abs(found - expected[[2, 3, 0, 1]]).mean() > 20


# --- people ------------------------------------------------------------------------------


def test_people_against_brute_force(tmp_path, network: Backbone, model: Model):
    folder = write_blobs(tmp_path / "blob people", 9, 4)
    (folder / "person08" / "032.png").write_bytes(b"no image")
    chips, labels = blob_chips(9, 4)
    readable = np.arange(36) != 32
    rows = [unit(embedding(network, chip, flip=True)) for chip in chips[readable]]
    labels = labels[readable]
    genuine, impostor = [], []
    for i in range(35):
        for j in range(i):
            (genuine if labels[i] == labels[j] else impostor).append(float(rows[i] @ rows[j]))

    [result] = evaluate(model, [folder], STORED).sets
    assert (result.name, result.kind, result.images, result.people) == (
        "blob_people",
        "people",
        35,
        9,
    )
    assert [Path(name).name for name in result.left_out] == ["032.png"]
    rates = result.pairs[0].rates
    assert (rates.curve.genuine, rates.curve.impostor) == (len(genuine), len(impostor))
    for point in rates.points:
        assert 1 - point.point.fnmr == pytest.approx(
            tar_oracle(genuine, impostor, point.point.fmr), abs=1.5 / len(genuine)
        )
    enrolled = {int(label): row for row, label in zip(rows[::-1], labels[::-1], strict=True)}
    hits = defaultdict(int)
    probes = [
        (r, label)
        for at, (r, label) in enumerate(zip(rows, labels, strict=True))
        if label in labels[:at]
    ]
    for row, label in probes:
        own = float(row @ enrolled[int(label)])
        hits[sum(float(row @ other) >= own for other in enrolled.values())] += 1
    assert result.closed_set is not None
    assert (result.closed_set.enrolled, result.closed_set.searches) == (9, len(probes) == 26 and 26)
    for rank in (1, 5):
        expected = sum(count for at, count in hits.items() if at <= rank) / len(probes)
        assert result.closed_set.cmc[rank - 1] == pytest.approx(expected, abs=1.5 / len(probes))


def made_rows(labels: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(labels.max() + 1, 24))[labels] + noise * rng.normal(
        size=(len(labels), 24)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_open_set_by_single_photos_against_a_search_at_a_time():
    labels = np.concatenate([np.repeat(np.arange(30), 4), np.arange(30, 150)])
    order = np.random.default_rng(3).permutation(len(labels))
    labels = labels[order]
    rows, found = made_rows(labels, 1.0), np.ones(len(labels), dtype=bool)
    closed, opened = identify(rows, found, labels)
    assert closed is not None and opened is not None
    gallery, mated, strangers = {}, [], []
    for row, label in zip(rows.astype(np.float64), labels, strict=True):
        if label >= 30:
            strangers.append(row)
        elif label in gallery:
            mated.append((row, label))
        else:
            gallery[label] = row
    assert (opened.enrolled, opened.searches, opened.strangers) == (30, 90, 120)
    assert opened.strangers_are == "the people of a single photo"

    def best(row):
        return max((float(row @ other), who) for who, other in gallery.items())

    false = sorted((best(row)[0] for row in strangers), reverse=True)
    [point] = opened.points  # 1 % of 120 strangers is nothing to count
    assert point.fpir == 0.1
    missed = sum(not (best(r)[0] > false[12] and best(r)[1] == who) for r, who in mated)
    assert (point.misses, point.false_positives) == (missed, 12)
    assert 0 < missed < 90
    assert closed.cmc[0] == pytest.approx(np.mean([best(r)[1] == who for r, who in mated]))
    fpirs, fnirs = zip(*opened.curve, strict=True)
    assert sorted(fpirs) == list(fpirs)
    assert sorted(fnirs, reverse=True) == list(fnirs)


def test_without_single_photos_half_of_the_people_are_strangers():
    labels = np.repeat(np.arange(51), 4)
    rows, found = made_rows(labels, 0.5), np.ones(len(labels), dtype=bool)
    closed, opened = identify(rows, found, labels)
    assert closed is not None and closed.enrolled == 51
    assert opened is not None
    assert (opened.enrolled, opened.searches, opened.strangers) == (26, 78, 100)
    assert identify(rows, found, labels) == (closed, opened), "seeded"
    assert "drawn by a fixed seed" in opened.strangers_are
    closed, opened = identify(rows[::4], found[::4], np.arange(51))
    assert closed is None and opened is None


def test_a_probe_without_a_face_finds_nobody():
    labels = np.array([0, 0, 1, 1, 2])
    rows = np.eye(3, dtype=np.float32)[labels]
    found = np.array([True, False, True, True, True])
    searches = search_first_photos(rows, found, labels, single_photos(labels))
    assert searches is not None
    assert searches.mated.tolist() == [-np.inf, 1.0]
    assert searches.cmc[0] == 0.5
    assert searches.strangers.tolist() == [0.0]


def test_of_many_images_whole_people_are_drawn_by_name():
    source = blobs(12, 5)
    chosen = some_people(source, 23)
    assert len(chosen) == 20 and chosen.num_classes == 4
    assert some_people(source, 60) is source
    reordered = source.subset(np.random.default_rng(0).permutation(60))
    again = some_people(reordered, 23)
    assert sorted(again.identities) == sorted(chosen.identities)
    assert len(some_people(source, 4)) == 10, "two people at least"


# --- LFW's layout ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory, pipeline: Pipeline, group_photo: np.ndarray) -> Path:
    """Six people of one photo, three photos each, and one photo without a face."""
    folder, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(3)
    lines = ["2\t4"]
    names = []
    for at, face in enumerate(pipeline.extract([group_photo])[0]):
        x1, y1, x2, y2 = face.box_xyxy
        half = round(1.1 * max(x2 - x1, y2 - y1))
        padded = np.pad(group_photo, ((half, half), (half, half), (0, 0)), mode="edge")
        x, y = round(float(x1 + x2) / 2), round(float(y1 + y2) / 2)
        crop = padded[y : y + 2 * half, x : x + 2 * half]
        names.append(f"P{at}")
        (folder / names[-1]).mkdir()
        for number in (1, 2, 3):
            light = crop * rng.uniform(0.6, 1.2) + rng.normal(0, 6, crop.shape)
            image = light.clip(0, 255).astype(np.uint8)
            if (at, number) == (5, 3):
                image[:] = 90
            (folder / names[-1] / f"{names[-1]}_{number:04d}.jpg").write_bytes(to_jpeg(image))
    for fold in range(2):
        lines += [f"P{p}\t{1 + fold}\t3" for p in (0, 2, 4, 5)]
        lines += [f"P{p}\t{1 + fold}\tP{p + 1}\t2" for p in range(4)]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_an_lfw_folder_as_the_facerec_command_measures_it(album: Path, pipeline: Pipeline):
    expected = evaluate_lfw(pipeline, album)
    [result] = evaluate(open_model("bundled", device="cpu"), [album]).sets
    assert result.kind == "lfw"
    assert result.accuracy == expected.accuracy
    assert [pairs.rates for pairs in result.pairs] == [expected.protocol, expected.all_pairs]
    assert result.left_out == expected.missed == ("P5_0003",)
    assert (result.images, result.people) == (expected.photos, expected.people)


def test_a_pack_and_a_checkpoint_of_the_same_network_agree(album: Path, tmp_path: Path):
    """The bundled pack by onnxruntime, its network by torch: photos, chips and figures."""
    checkpoint = save_checkpoint(tmp_path / "run", create_backbone("dlib_resnet29"))
    faces = []
    for person in sorted(p for p in album.iterdir() if p.is_dir()):
        for photo in sorted(person.iterdir())[:2]:
            image = load_image(photo)
            side = round(len(image) * 0.6)
            start_at = (len(image) - side) // 2
            crop = image[start_at : start_at + side, start_at : start_at + side]
            faces.append(png(cv2.resize(crop, (112, 112), interpolation=cv2.INTER_AREA)))
    pairs = [faces[i] for p in range(12) for i in (p, p + 1 if p % 2 == 0 else (p + 3) % 12)]
    write_verification_bin(tmp_path / "faces.bin", pairs, [p % 2 == 0 for p in range(12)])
    sets = [album, tmp_path / "faces.bin"]
    pack = evaluate(open_model("bundled", device="cpu"), sets)
    trained = evaluate(open_model(checkpoint, device="cpu"), sets)
    assert (pack.model.kind, trained.model.kind) == ("pack", "checkpoint")
    for ours, theirs in zip(pack.sets, trained.sets, strict=True):
        assert ours.accuracy is not None and theirs.accuracy is not None
        assert ours.accuracy.per_fold == theirs.accuracy.per_fold
        assert ours.accuracy.thresholds == pytest.approx(theirs.accuracy.thresholds, abs=1e-4)
        assert ours.left_out == theirs.left_out
        for a, b in zip(ours.pairs, theirs.pairs, strict=True):
            assert a.rates.eer == pytest.approx(b.rates.eer, abs=1e-9)
            assert [p.point.cosine for p in a.rates.points] == pytest.approx(
                [p.point.cosine for p in b.rates.points], abs=1e-4
            )


def test_lfw_itself_as_the_facerec_command_measures_it(
    shared_dir: Path, tmp_path: Path, pipeline: Pipeline
):
    """A part of View 2: forty pairs of its first and last fold."""
    lines = (shared_dir / "data" / "lfw" / "pairs.txt").read_text().splitlines()
    chosen = [lines[1 + at] for at in (*range(10), *range(300, 310))]
    chosen += [lines[1 + 9 * 600 + at] for at in (*range(10), *range(300, 310))]
    folder = tmp_path / "lfw"
    for line in chosen:
        fields = line.split("\t")
        for name in (fields[0], fields[-2] if len(fields) == 4 else fields[0]):
            if not (folder / name).exists():
                folder.mkdir(exist_ok=True)
                (folder / name).symlink_to(shared_dir / "data" / "lfw" / name)
    (folder / "pairs.txt").write_text("\n".join(["2\t10", *chosen]) + "\n")
    expected = evaluate_lfw(pipeline, folder)
    [result] = evaluate(open_model("bundled", device="cpu"), [folder]).sets
    assert result.accuracy == expected.accuracy
    assert result.accuracy is not None and result.accuracy.mean > 0.9
    assert result.pairs[1].rates == expected.all_pairs


# --- templates ---------------------------------------------------------------------------


def write_ijb(folder: Path, prefix: str = "ijbc", templates: int = 12) -> dict:
    """A dozen templates of four people: stills, and videos of several frames."""
    rng = np.random.default_rng(8)
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    points = find_template("arcface-112").scaled_to(SIZE)
    media, landmarks, where = [], [], {}
    for template in range(templates):
        for item in range(2):
            for _ in range(3 if (template + item) % 3 == 0 else 1):
                name = f"{len(media) + 1}.png"
                chip = blob_chips(4, 1, seed=5)[0][template % 4]
                noisy = (chip + rng.normal(0, 30, chip.shape)).clip(0, 255).astype(np.uint8)
                image = np.pad(noisy, ((7, 3), (5, 9), (0, 0)))
                (folder / "loose_crop" / name).write_bytes(png(image))
                at = points + np.array([5, 7])  # the chip, whole pixels away
                score = round(float(rng.uniform(0.5, 1)), 3)
                numbers = " ".join(f"{v:.6f}" for v in at.ravel())
                media.append(f"{name} {100 + template} {10 * template + item}")
                landmarks.append(f"{name} {numbers} {score}")
                where.setdefault(100 + template, {}).setdefault(10 * template + item, []).append(
                    (noisy, score)
                )
    pairs = [(100 + a, 100 + b, int(a % 4 == b % 4)) for a in range(templates) for b in range(a)]
    rng.shuffle(landmarks)
    meta = folder / "meta"
    (meta / f"{prefix}_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (meta / f"{prefix}_name_5pts_score.txt").write_text("\n".join(landmarks) + "\n")
    (meta / f"{prefix}_template_pair_label.txt").write_text(
        "\n".join(" ".join(map(str, pair)) for pair in pairs) + "\n"
    )
    return {"where": where, "pairs": pairs}


@pytest.mark.parametrize("weights", [("detector", "norm"), ("detector",), ("norm",), ()])
def test_templates_against_the_protocol_read_aloud(
    tmp_path, network: Backbone, model: Model, weights
):
    made = write_ijb(tmp_path / "IJB-C")
    features = {}
    for template, items in made["where"].items():
        total = np.zeros(16)
        for frames in items.values():
            mean = np.zeros(16)
            for chip, score in frames:
                vector = embedding(network, chip, flip=True)
                if "norm" not in weights:
                    vector = unit(vector)
                if "detector" in weights:
                    vector = vector * score
                mean += vector / len(frames)
            total += mean
        features[template] = unit(total)
    scores = [(float(features[a] @ features[b]), bool(same)) for a, b, same in made["pairs"]]
    genuine = [score for score, same in scores if same]
    impostor = [score for score, same in scores if not same]

    opened = open_set(
        tmp_path / "IJB-C", model.preprocessing, model.detector_pack, SetOptions(weights=weights)
    )
    found = opened.template_features(model)
    assert found == pytest.approx(np.stack([features[t] for t in sorted(features)]), abs=2e-4)
    result = opened.measure(model)
    assert (result.name, result.kind, result.people) == ("ijbc", "ijb", 4)
    curve = result.pairs[0].rates.curve
    assert (curve.genuine, curve.impostor) == (len(genuine), len(impostor)) == (12, 54)
    for point in result.pairs[0].rates.points:
        assert 1 - point.point.fnmr == pytest.approx(
            tar_oracle(genuine, impostor, point.point.fmr), abs=1.5 / len(genuine)
        )
    assert f"weighted by: {', '.join(weights) or 'nothing'}" in " ".join(result.how)


def test_templates_that_genuine_pairs_join_are_one_person(tmp_path):
    write_ijb(tmp_path)
    protocol = read_templates(tmp_path / "meta", "ijbc")
    assert people_of(protocol).tolist() == [0, 1, 2, 3] * 3
    pairs = tmp_path / "meta" / "ijbc_template_pair_label.txt"
    pairs.write_text("100 108 1\n101 102 0\n\n105 101 1\n108 104 1\n")
    labels = people_of(read_templates(tmp_path / "meta", "ijbc"))
    groups = {frozenset(np.flatnonzero(labels == who).tolist()) for who in labels}
    assert {frozenset({0, 4, 8}), frozenset({1, 5}), frozenset({2})} <= groups
    assert len(groups) == 9


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("face_tid_mid", "\n2.png 100 ", "\n2.png 1x0 ", r"face_tid_mid.txt, line 2: template and"),
        ("face_tid_mid", "\n2.png 100 ", "\n2.png ", r"line 2: expected 'IMAGE TEMPLATE MEDIA'"),
        ("face_tid_mid", "\n2.png", "\n../2.png", r"line 2: '../2.png' is no name of a file"),
        ("face_tid_mid", "\n2.png", "\n2222.png", r"line 2: '2222.png' has no landmarks in"),
        ("name_5pts_score", None, None, r"5pts_score.txt, line 1: expected 'IMAGE X Y"),
        ("template_pair_label", "102 100 0", "102 100 2", r"pair_label.txt, line 2: the label is"),
        ("template_pair_label", "102 100 0", "102 999 0", r"line 2: template 999 has no image"),
        ("template_pair_label", "102 100 0", "102 100", r"line 2: expected 'TEMPLATE TEMPLATE LAB"),
        ("template_pair_label", "102 100 0", "102 x 0", r"line 2: expected 'TEMPLATE TEMPLATE LAB"),
        ("template_pair_label", " 1\n", " 0\n", r"0 of 66 pairs are genuine"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path, model: Model, name, old, new, message):
    write_ijb(tmp_path)
    path = tmp_path / "meta" / f"ijbc_{name}.txt"
    text = path.read_text()
    if old is None:  # the score is missing
        old = text.splitlines()[0]
        new = old.rsplit(" ", 1)[0]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        open_set(tmp_path, model.preprocessing, model.detector_pack)


def test_missing_files_of_templates(tmp_path, model: Model):
    write_ijb(tmp_path)
    (tmp_path / "loose_crop" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of the \d+ images of the protocol.*3.png"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    landmarks = tmp_path / "meta" / "ijbc_name_5pts_score.txt"
    doubled = landmarks.read_text()
    landmarks.write_text(doubled + doubled.splitlines()[0])
    with pytest.raises(ConfigError, match="is listed a second time"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    landmarks.unlink()
    with pytest.raises(ConfigError, match=r"5pts_score.txt: no such file; the template protocol"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    (tmp_path / "meta" / "ijbc_face_tid_mid.txt").unlink()
    with pytest.raises(ConfigError, match=r"no list of images, such as ijbc_face_tid_mid.txt"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)


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


def test_lfw_on_schedule(album: Path, bundled_pack: Pack):
    """The photos are detected once; the held chips give what the photos gave."""
    backbone = create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE)
    schedule = ScheduledEvaluation(tiny(), backbone.preprocessing, [album], detector=bundled_pack)
    name = re.sub(r"\W+", "_", album.name)
    figures = schedule(backbone)
    assert list(figures) == [f"{name}_accuracy", f"{name}_tar_at_far_0.001", f"{name}_eer"]
    assert schedule(backbone) == figures
    [result] = evaluate(TorchModel(backbone), [album]).sets
    assert result.accuracy is not None
    assert figures[f"{name}_accuracy"] == pytest.approx(result.accuracy.mean)


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


def test_people_in_memory_are_measured_without_a_folder(model: Model):
    source = blobs(4, 3)
    held = MemorySource(source, np.arange(12), source.chips, source.template)
    result = PeopleSet(Path("blobs"), "blobs", held).measure(model)
    assert result.sha256 == source.digest()
