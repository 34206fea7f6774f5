"""Retraining: who is kept aside, which coefficient is chosen, and whether the verdict is true.

The base is a tiny network trained on people made of colour blobs. Its new people are seen through
another camera, which shades every photo in its own way: something to learn, and held-out people
on whom it shows.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facerec.errors import ConfigError, FacerecError, ImageError, ModelError
from facerec.intervals import Interval
from facerec.packs import find_pack
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline

torch = pytest.importorskip("torch")

from tests.training_runs import (  # noqa: E402
    SIZE,
    blob_chips,
    blobs,
    one_thread,
    start,
    stop_at,
    tiny,
)
from training.backbones import backbone_from_pack  # noqa: E402
from training.build import preprocessing_of  # noqa: E402
from training.checkpoint import (  # noqa: E402
    CheckpointFolder,
    backbone_from_checkpoint,
    load_checkpoint,
    load_network,
)
from training.data import ArraySource  # noqa: E402
from training.data.pairs import write_verification_bin  # noqa: E402
from training.guard import MAX_PHOTOS, GuardSet, measurable_far, open_guard  # noqa: E402
from training.heldout import HeldOutVerification, embed  # noqa: E402
from training.plan import choose_recipe, scaled, split_people  # noqa: E402
from training.recipe import load_recipe  # noqa: E402
from training.retrain import Options, retrain  # noqa: E402
from training.trainer import train  # noqa: E402
from training.verdict import (  # noqa: E402
    Judgement,
    Part,
    RetrainReport,
    verdict_of,
)

QUICK: dict[str, Any] = {"run.epochs": 6, "optim.lr": 0.02, "run.device": "cpu", "run.amp": "off"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that knows people in even light."""
    folder = tmp_path_factory.mktemp("base")
    return train(tiny(run__epochs=8), blobs(40, 8, seed=50), folder).checkpoint


def slopes(count: int, seed: int) -> np.ndarray:
    """(count, S, S, 3) float32: light that changes from corner to corner, each in its own way."""
    corners = np.random.default_rng(seed).uniform(-110, 110, (count, 2, 2, 3)).astype(np.float32)
    return np.stack([cv2.resize(c, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for c in corners])


def shaded(people: int, each: int = 8, seed: int = 0) -> ArraySource:
    """Blob people, each photo under light of its own."""
    chips, labels = blob_chips(people, each, seed)
    seen = (chips + slopes(len(chips), seed + 1)).clip(0, 255).astype(np.uint8)
    names = [f"person{i:03d}" for i in range(people)]
    return ArraySource(seen, labels, "arcface-112", names, origin=f"shaded {seed}")


def lights(people: int, each: int, seed: int) -> ArraySource:
    """People who are nothing but such light, which a retrain on shaded people learns to ignore."""
    labels = np.repeat(np.arange(people), each)
    noise = np.random.default_rng(seed).normal(0, 25, (len(labels), SIZE, SIZE, 3))
    chips = 128 + slopes(people, seed + 1)[labels] + noise
    return ArraySource(chips.clip(0, 255).astype(np.uint8), labels, "arcface-112")


def written(source: ArraySource, folder: Path, side: int = SIZE) -> Path:
    """A source as files, a folder per person; at 112 pixels it is seen to be aligned chips."""
    for i in range(len(source)):
        path = folder / source.identities[source.labels[i]] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        chip = cv2.resize(source.chips[i], (side, side), interpolation=cv2.INTER_CUBIC)
        path.write_bytes(cv2.imencode(".png", chip[:, :, ::-1])[1].tobytes())
    return folder


def options(base: Path, **changes: Any) -> Options:
    return replace(Options(start=str(base), overrides=QUICK, report_only=True), **changes)


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RetrainReport]:
    """A retrain on 60 people under the new light."""
    folder = tmp_path_factory.mktemp("done")
    report = retrain(
        shaded(60), folder / "mine", options(base, alpha=1.0, report_only=False, variants=())
    )
    return folder, report


def again(base: Path, done: tuple[Path, RetrainReport], tmp_path: Path, **changes: Any) -> Options:
    """Options that take up a copy of the finished run instead of training anew."""
    shutil.copytree(done[0] / "mine.run", tmp_path / "run")
    return options(base, run_dir=tmp_path / "run", **changes)


# --- the verdict is true ---------------------------------------------------------------------


def test_a_retrain_on_new_light_is_better_and_says_by_how_much(
    base: Path, done: tuple[Path, RetrainReport]
) -> None:
    folder, report = done
    assert report.verdict == "better", report.to_text()
    found = report.judgement
    assert found is not None and found.interval is not None and found.probability is not None
    assert 0 < found.interval.low < found.difference < found.interval.high < 1
    assert found.probability > 0.99
    # The figures are those of the networks, measured here by other means.
    split = split_people(shaded(60), 0)
    assert split.test is not None
    new = backbone_from_pack(Pack.load(folder / "mine"))
    old = load_network(folder / "mine.run/start.pt")
    for network, figure in ((old, found.base), (new, found.result)):
        embeddings, rows = embed(network, split.test, flip=True)
        measured = _tar(embeddings.numpy(), split.test.labels[rows], found.far)
        assert measured == pytest.approx(figure, abs=1e-6)
    text = report.to_text()
    assert "BETTER" in text and f"{100 * found.difference:+.1f} points" in text


def _tar(rows: np.ndarray, labels: np.ndarray, far: float) -> float:
    """TAR at FAR by sorting every pair."""
    scores = rows @ rows.T
    above = np.triu(np.ones(scores.shape, bool), 1)
    same = labels[:, None] == labels[None, :]
    impostor = np.sort(scores[above & ~same])[::-1]
    return float((scores[above & same] > impostor[int(far * len(impostor))]).mean())


def test_the_pack_works_and_can_be_trained_further(
    done: tuple[Path, RetrainReport], astronaut: np.ndarray
) -> None:
    folder, report = done
    pack = find_pack(str(folder / "mine"))
    pipeline = Pipeline.load(pack, device="cpu", threads=1)
    [[face]] = pipeline.extract([astronaut])
    assert face.embedding.shape == (16,)
    assert pack.thresholds is not None and "shaded" in pack.thresholds.measured_on
    spec = pack.manifest.training
    assert spec is not None and spec.recipe is not None
    assert spec.notes["interpolation"] == 1.0
    assert spec.base is not None and "checkpoints/step-" in spec.base
    for place in (folder / "mine", folder / "mine.run"):
        assert json.loads((place / "report.json").read_text())["verdict"] == "better"
        assert (place / "report.txt").read_text() == report.to_text() + "\n"
    further = retrain(
        shaded(9, 4, seed=70),
        folder / "again",
        options(folder / "mine", start=str(folder / "mine")),
    )
    assert further.base.startswith("pack mine")


def test_noise_for_names_is_not_called_better(base: Path, tmp_path: Path) -> None:
    people = shaded(60, 6, seed=3)
    shuffled = np.random.default_rng(0).permutation(people.labels)
    noise = ArraySource(people.chips, shuffled, "arcface-112", people.identities, "noise")
    report = retrain(noise, tmp_path / "mine", options(base, alpha=1.0))
    assert report.verdict in ("no better", "worse", "cannot tell"), report.to_text()
    assert "BETTER:" not in report.to_text().replace("NO BETTER:", "")


@pytest.mark.parametrize(
    ("low", "high", "alpha", "verdict"),
    [
        (0.01, 0.2, 0.5, "better"),
        (-0.2, -0.01, 0.5, "worse"),
        (-0.1, 0.1, 0.5, "cannot tell"),
        (0.0, 0.1, 0.5, "cannot tell"),
        (-0.01, 0.004, 0.5, "no better"),
        (0.0, 0.0, 0.0, "no better"),
    ],
)
def test_the_verdict_follows_the_whole_interval(
    low: float, high: float, alpha: float, verdict: str
) -> None:
    found = Judgement(1e-3, 0.5, 0.5 + (low + high) / 2, Interval(low, high, 0.95), 0.5)
    assert verdict_of(alpha, found) == verdict
    assert verdict_of(0.5, None) == "cannot tell"
    assert verdict_of(0.5, replace(found, interval=None)) == "cannot tell"


def test_in_doubt_it_says_how_many_people_would_do(done: tuple[Path, RetrainReport]) -> None:
    _, report = done
    wide = Judgement(1e-2, 0.50, 0.52, Interval(-0.04, 0.08, 0.95), 0.7)
    text = replace(report, verdict="cannot tell", judgement=wide, test=Part(20, 100)).to_text()
    # Half the interval is three times the difference: nine times the people, and a tenth more.
    assert "CANNOT TELL: +2.0 points" in text and "About 198 people" in text


# --- the coefficient -------------------------------------------------------------------------


def test_the_guard_set_limits_the_coefficient(base: Path, tmp_path: Path) -> None:
    """What tells the guard set's people apart is what the retrain unlearns."""
    guard = written(lights(40, 6, seed=90), tmp_path / "guard", side=112)
    people = shaded(60)
    run = tmp_path / "run"
    found = []
    for tolerance in (1.0, 0.005):
        chosen = options(
            base,
            guard=guard,
            tolerance=tolerance,
            run_dir=run,
        )
        found.append(retrain(people, tmp_path / f"pack-{tolerance}", chosen))
    free, held = found
    assert free.guard is not None and held.guard is not None
    assert free.guard.base - free.guard.result > 0.01, free.to_text()
    assert held.alpha < free.alpha
    assert held.guard.base - held.guard.result <= 0.005
    assert held.alpha == 0 or "the guard set allows" in held.reason
    best = max(free.candidates, key=lambda c: (c.selection or 0, -c.alpha))
    assert best.alpha == free.alpha and len(free.candidates) == 11


def test_without_a_guard_set_half_way_is_the_limit_and_it_says_so(
    base: Path, done: tuple[Path, RetrainReport], tmp_path: Path
) -> None:
    report = retrain(shaded(60), tmp_path / "mine", again(base, done, tmp_path))
    assert 0 < report.alpha <= 0.5
    assert [c.alpha for c in report.candidates] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert report.guard is None
    assert "was not measured: give a guard set" in report.to_text()
    assert report.cosine_to_base is not None and 0 < report.cosine_to_base < 1


def test_nothing_learnt_nothing_written(
    base: Path, done: tuple[Path, RetrainReport], tmp_path: Path
) -> None:
    chosen = again(base, done, tmp_path, alpha=0.0, report_only=False)
    report = retrain(shaded(60), tmp_path / "mine", chosen)
    assert (report.verdict, report.pack) == ("no better", None)
    assert not (tmp_path / "mine").exists()
    assert report.judgement is not None and report.judgement.difference == 0
    assert "No pack was written" in (tmp_path / "run/report.txt").read_text()


def test_distillation_keeps_the_embeddings_near_the_base(
    base: Path, done: tuple[Path, RetrainReport], tmp_path: Path
) -> None:
    held = retrain(shaded(60), tmp_path / "held", options(base, alpha=1.0, distil=20.0))
    free = done[1].cosine_to_base
    assert free is not None and held.cosine_to_base is not None
    assert held.cosine_to_base > free + 0.02


# --- guard sets ------------------------------------------------------------------------------


def guard_of(path: Path) -> GuardSet:
    return open_guard(
        path,
        preprocessing=preprocessing_of(tiny()),
        pack=find_pack("bundled"),
        cache=path.parent / "cache",
    )


def test_a_guard_of_pairs_as_bin_and_in_lfw_layout_agree(base: Path, tmp_path: Path) -> None:
    """The same pairs of the same chips, stored both ways, have the same accuracy."""
    chips, labels = blob_chips(40, 4, seed=91)
    chips = np.stack([cv2.resize(c, (112, 112), interpolation=cv2.INTER_CUBIC) for c in chips])
    encoded = [cv2.imencode(".jpg", c[:, :, ::-1])[1].tobytes() for c in chips]
    names = [f"P{label:02d}" for label in labels]
    for i, (data, name) in enumerate(zip(encoded, names, strict=True)):
        path = tmp_path / "lfw" / name / f"{name}_{i % 4 + 1:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    lines, images, same = ["10\t4"], [], []
    for fold in range(10):
        mine = [4 * fold + k for k in range(4)]
        for a, b in [(m, m) for m in mine] + [(m, (m + 5) % 40) for m in mine]:
            photos = (4 * a, 4 * b + (1 if a == b else 2))
            images += [encoded[p] for p in photos]
            same.append(a == b)
            second = f"{names[4 * b]}\t" if a != b else ""
            lines.append(f"{names[4 * a]}\t1\t{second}{photos[1] % 4 + 1}")
    (tmp_path / "lfw" / "pairs.txt").write_text("\n".join(lines) + "\n")
    write_verification_bin(tmp_path / "pairs.bin", images, same)
    network = backbone_from_checkpoint(base)
    figures = []
    for path in (tmp_path / "lfw", tmp_path / "pairs.bin"):
        guard = guard_of(path)
        assert guard.measure == "accuracy on 80 pairs" and guard.tolerance == 0.003
        embeddings, rows = embed(network, guard.source)
        figures.append(guard.figure(embeddings.numpy(), rows))
        # A photo without a face matches nobody: its genuine pair is lost.
        fewer = guard.figure(embeddings.numpy()[1:], rows[1:])
        assert fewer != figures[-1] or fewer < 1
    assert figures[0] == figures[1]
    assert 0.5 < figures[0] <= 1


def test_a_guard_of_people_is_capped_and_measured_where_it_can_be(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(blobs(30, 6, seed=92), tmp_path / "guard", side=112)
    sizes = []
    for most in (MAX_PHOTOS, 60):
        monkeypatch.setattr("training.guard.MAX_PHOTOS", most)
        guard = guard_of(folder)
        sizes.append(len(guard.source))
        assert guard.tolerance == 0.01
        embeddings, rows = embed(backbone_from_checkpoint(base), guard.source)
        plain = HeldOutVerification(guard.source, far=guard.far)(backbone_from_checkpoint(base))
        assert guard.figure(embeddings.numpy(), rows) == next(iter(plain.values()))
    assert sizes[0] == 180 and 48 <= sizes[1] <= 60


def test_the_far_is_one_that_the_pairs_can_show() -> None:
    assert measurable_far(np.repeat(np.arange(50), 4)) == 1e-3
    assert measurable_far(np.repeat(np.arange(12), 4)) == 1e-2
    assert measurable_far(np.repeat(np.arange(5), 4)) == 1e-1
    assert measurable_far(np.repeat(np.arange(2), 4)) is None
    assert measurable_far(np.arange(500)) is None
    assert measurable_far(np.zeros(0, np.int64)) is None


# --- whom it keeps aside ---------------------------------------------------------------------


@pytest.mark.parametrize("people", [2, 7, 8, 12, 39, 40, 60, 400])
def test_the_parts_have_nobody_in_common(people: int) -> None:
    chips = np.zeros((4 * people, 4, 4, 3), np.uint8)
    names = [f"p{i}" for i in range(people)]
    source = ArraySource(chips, np.repeat(np.arange(people), 4), "arcface-112", names)
    split = split_people(source, 0)
    parts = [set(p.identities) for p in (split.train, split.val, split.test) if p is not None]
    assert set.union(*parts) == set(names)
    assert sum(map(len, parts)) == people
    assert (split.test is None) == (people < 8)
    assert (split.val is None) == (people < 40)
    assert len(parts[0]) >= people / 3


def test_people_of_too_few_photos_to_choose_by_learn() -> None:
    chips = np.zeros((88, 4, 4, 3), np.uint8)
    names = [f"p{i}" for i in range(44)]
    split = split_people(ArraySource(chips, np.repeat(np.arange(44), 2), "arcface-112", names), 0)
    assert split.val is None and split.test is not None
    assert split.train.num_classes + split.test.num_classes == 44


@pytest.mark.parametrize("place", ["file/pack", "file/further/pack"])
def test_a_place_where_no_pack_can_be_is_refused_before_the_training(
    base: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"no pack can be written in .*file; name another"):
        retrain(shaded(4), tmp_path / place, replace(options(base), run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_more_people_move_nobody() -> None:
    def parts(people: int) -> dict[str, str]:
        chips = np.zeros((people, 4, 4, 3), np.uint8)
        names = [f"p{i:04d}" for i in range(people)]
        split = split_people(ArraySource(chips, np.arange(people), "arcface-112", names), 0)
        found = {"train": split.train, "val": split.val, "test": split.test}
        return {n: k for k, s in found.items() if s is not None for n in s.identities}

    few, many = parts(100), parts(300)
    assert all(many[name] == part for name, part in few.items())


def test_with_few_people_it_says_what_is_missing(base: Path, tmp_path: Path) -> None:
    alone = retrain(shaded(4), tmp_path / "four", options(base))
    assert (alone.verdict, alone.test, alone.judgement) == ("cannot tell", None, None)
    assert alone.alpha == 0.5
    assert "from about 40 on" in alone.to_text()
    some = retrain(shaded(20, seed=5), tmp_path / "twenty", options(base))
    assert some.verdict == "cannot tell" and some.selection is None and some.alpha == 0.5
    assert some.judgement is not None and some.judgement.interval is None
    assert "too few for an interval" in some.to_text()


# --- the recipe ------------------------------------------------------------------------------


def test_class_weights_start_from_the_class_means(done: tuple[Path, RetrainReport]) -> None:
    folder, _ = done
    recipe, _ = choose_recipe(None, str(folder / "mine.run"), {})
    assert recipe.start.class_weights == "class-means"
    assert recipe.start.checkpoint is not None and "mine.run" in recipe.start.checkpoint
    bundled, start_of = choose_recipe(None, None, {})
    assert bundled.start.pack == "bundled" and start_of.flip is True
    assert choose_recipe("small-data", None, {})[0].start.class_weights == "class-means"


@pytest.mark.parametrize("images", [4, 20, 300, 5_000, 100_000])
def test_the_recipe_is_scaled_to_the_data(images: int) -> None:
    recipe = load_recipe("fine-tune")
    made = scaled(recipe, images, in_memory=True, overrides={})
    assert made.run.batch_size <= min(64, images)
    steps = made.run.epochs * images / made.run.batch_size
    assert 5 <= made.run.epochs <= 40
    assert steps >= 60 or made.run.epochs == 40
    assert made.broadface.queue_size <= images
    assert made.broadface.warmup_steps < steps
    mine = scaled(
        recipe.changed(**{"run.epochs": 2, "run.batch_size": 3}),
        images,
        in_memory=True,
        overrides={"run.epochs": 2, "run.batch_size": 3},
    )
    assert (mine.run.epochs, mine.run.batch_size) == (2, 3)


# --- stopping and going on -------------------------------------------------------------------


def command(base: Path, data: Path, target: Path) -> list[str]:
    words = ["training", "retrain", "--data", str(data), "--from", str(base), "-o", str(target)]
    words += [
        "--template",
        "arcface-112",
        "--size",
        str(SIZE),
        "--report-only",
        "--quiet",
        "--json",
    ]
    for key, value in {**QUICK, "run.checkpoint_every": 2}.items():
        words += ["--set", f"{key}={value}"]
    return words


def test_killed_and_started_again_it_ends_the_same(base: Path, tmp_path: Path) -> None:
    data = written(shaded(45, 6), tmp_path / "data")
    reports = []
    for name in ("whole", "killed"):
        words = command(base, data, tmp_path / name)
        if name == "killed":
            [code] = stop_at([start(words)], tmp_path / "killed.run", 5)
            assert code == -signal.SIGKILL
            assert not (tmp_path / "killed").exists()
        process = start(words)
        output = process.communicate(timeout=240)[0]
        report = json.loads(output)
        assert process.returncode == (0 if report["verdict"] == "better" else 1), output
        reports.append(report)
    for key in ("alpha", "judgement", "candidates", "cosine_to_base", "steps", "verdict"):
        assert reports[0][key] == reports[1][key]
    runs = [CheckpointFolder(tmp_path / f"{n}.run" / "checkpoints") for n in ("whole", "killed")]
    first, second = (load_checkpoint(run.newest() or run.folder)["backbone"] for run in runs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- bad input -------------------------------------------------------------------------------


def refused(
    data: Any, target: Path, chosen: Options, *words: str, kind: type = ConfigError
) -> None:
    with pytest.raises(FacerecError) as error:
        retrain(data, target, chosen)
    assert isinstance(error.value, kind), error.value
    for word in words:
        assert word in str(error.value), error.value
    assert not target.exists()
    assert not target.with_name(f"{target.name}.run").exists()


def test_data_that_cannot_be_learnt_from(base: Path, tmp_path: Path) -> None:
    target, chips = tmp_path / "mine", options(base, template="arcface-112", size=SIZE)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, target, chips, str(empty), "no images")
    refused(tmp_path / "nowhere", target, chips, "no such folder")
    refused(written(shaded(1), tmp_path / "one"), target, chips, "1 identity")
    singles = written(shaded(12, 1), tmp_path / "singles")
    refused(singles, target, chips, "single image")
    broken = written(shaded(12, 4), tmp_path / "broken")
    for path in broken.rglob("*.png"):
        path.write_bytes(b"no image")
    refused(broken, target, chips, "cannot be read", kind=ImageError)
    refused(broken, target, options(base), "none of 48 photos")


def test_a_few_unreadable_photos_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    data = written(shaded(10, 6), tmp_path / "data")
    bad = sorted(data.rglob("*.png"))[3]
    bad.write_bytes(b"no image")
    chosen = options(base, template="arcface-112", size=SIZE)
    report = retrain(data, tmp_path / "mine", chosen)
    assert any("1 photos were left out" in note and bad.name in note for note in report.notes)


def test_packs_and_checkpoints_that_are_no_starting_point(
    base: Path, tmp_path: Path, shared_pack: Path
) -> None:
    people, target = shaded(8), tmp_path / "mine"
    refused(
        people,
        target,
        Options(start=str(shared_pack)),
        "cannot be a starting point",
        "backbone.pt",
        kind=ModelError,
    )
    refused(people, target, Options(start="bundeld"), "Did you mean", kind=ModelError)
    refused(people, target, Options(start=str(tmp_path)), "starting point", kind=ModelError)
    refused(people, target, Options(start="no.pt"), "no checkpoint", kind=ModelError)
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    refused(people, target, Options(start=str(junk)), "not a checkpoint", kind=ModelError)
    refused(people, target, options(base, recipe="small-data"), "holds another backbone")


@pytest.fixture
def shared_pack(tmp_path: Path) -> Path:
    """A pack like those that others make: ONNX files for inference, nothing to train from."""
    bundled = find_pack("bundled")
    folder = tmp_path / "foreign"
    shutil.copytree(bundled.folder, folder)
    import onnx

    path = folder / bundled.manifest.embedder.file
    model = onnx.load(str(path))
    model.graph.name = "somebody else's"
    onnx.save(model, str(path))
    text = (folder / "pack.toml").read_text()
    (folder / "pack.toml").write_text(text.replace(bundled.contract.embedder_sha256, _sha256(path)))
    return folder


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_options_that_cannot_work(base: Path, tmp_path: Path) -> None:
    people, target = shaded(8), tmp_path / "mine"
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(ConfigError, match="exists"):
        retrain(people, there, options(base))
    refused(people, tmp_path / "no name", options(base), "no name for a pack")
    refused(people, target, options(base, alpha=1.5), "[0, 1]")
    refused(people, target, options(base, guard=tmp_path / "none"), "no such guard set")
    few = written(blobs(2, 2), tmp_path / "few", side=112)
    refused(people, target, options(base, guard=few), "too few for a guard set")
    refused(people, target, options(base, recipe="fine-tun"), "did you mean")
    refused(people, target, options(base, overrides={"optim.rl": 1}), "unknown key")


@pytest.mark.parametrize("program", ["facerec", "training"])
def test_both_commands_say_what_is_wrong(
    program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import importlib

    module = "facerec.cli" if program == "facerec" else "training.commands"
    words = [program, "retrain", "--data", str(tmp_path), "-o", str(tmp_path / "mine"), "--quiet"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main()
    assert stopped.value.code == 2
    assert "a folder per person" in " ".join(capsys.readouterr().err.split())
