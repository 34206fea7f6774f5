"""Evaluation of pairs, people and LFW folders against scalar oracles, by packs and checkpoints."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facerec.evaluation import evaluate_lfw
from facerec.identification import search_first_photos, single_photos
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from tests.evaluation_oracles import (
    STORED,
    accuracy_bounds,
    embedding,
    png,
    save_checkpoint,
    tar_oracle,
    tiny_network,
    unit,
    write_pairs_bin,
)
from tests.training_runs import (
    SIZE,
    blob_chips,
    blobs,
    one_thread,
    tiny,
    write_blobs,
)
from training.backbones import Backbone, create_backbone
from training.data import MemorySource, write_verification_bin
from training.evaluate import evaluate, open_model
from training.evaluation.identification import identify
from training.evaluation.models import Chips, Model, TorchModel, embed_chips, regrouped
from training.evaluation.people import PeopleSet, some_people
from training.evaluation.schedule import ScheduledEvaluation
from training.evaluation.sets import PairSet


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


def test_people_in_memory_are_measured_without_a_folder(model: Model):
    source = blobs(4, 3)
    held = MemorySource(source, np.arange(12), source.chips, source.template)
    result = PeopleSet(Path("blobs"), "blobs", held).measure(model)
    assert result.sha256 == source.digest()
