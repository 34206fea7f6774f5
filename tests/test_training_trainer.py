"""The loop: what a step computes, what a run leaves, and that stopping it changes nothing."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facerec.errors import ConfigError, ImageError, ModelError
from facerec.types import Failure

torch = pytest.importorskip("torch")

from tests.training_runs import (  # noqa: E402
    REPOSITORY,
    SIZE,
    blob_chips,
    blobs,
    command,
    finish,
    log_of,
    losses_of,
    one_thread,
    start,
    stop_at,
    tiny,
    write_blobs,
)
from training.backbones import create_backbone  # noqa: E402
from training.checkpoint import load_checkpoint, load_network  # noqa: E402
from training.data import ArraySource, RecordFile, open_source, write_face_records  # noqa: E402
from training.heads import create_head  # noqa: E402
from training.heldout import HeldOutVerification, embed  # noqa: E402
from training.logs import COLUMNS  # noqa: E402
from training.recipe import load_recipe  # noqa: E402
from training.step import Figures, Stepper  # noqa: E402
from training.trainer import train  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


EVERYTHING = {
    "backbone__dropout": 0.2,
    "head__name": "elastic-cos+",
    "broadface__queue_size": 24,
    "augmentation__crop": 0.5,
    "augmentation__occlusion": 0.5,
    "optim__ema": 0.9,
    "run__batch_size": 12,
    "run__epochs": 14,
    "run__checkpoint_every": 3,
}
"""Whatever has a state of its own: two generators, a queue, an average, dropout, augmentation."""


# --- it learns -------------------------------------------------------------------------------


def test_a_run_learns_people_and_recognises_strangers(tmp_path: Path) -> None:
    recipe = tiny(run__epochs=6, head__name="elastic-arc", head__sigma=0.02, optim__ema=0.8)
    result = train(recipe, blobs(12, 10), tmp_path, held_out=blobs(8, 8, seed=9))
    losses = losses_of(tmp_path)
    assert result.finished and len(losses) == result.step == 45
    assert np.mean(losses[-8:]) < 0.35 * np.mean(losses[:8])
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert result.best is not None
    assert history[0]["metrics"]["held_out_tar_at_far_0.001"] < 0.2
    assert result.best["metrics"]["held_out_tar_at_far_0.001"] > 0.35
    assert result.best["metrics"]["held_out_eer"] < 0.15


def test_a_run_further_from_its_own_network(tmp_path: Path) -> None:
    """start.checkpoint with class means: the first loss is far below that of random weights."""
    people = blobs(8, 10)
    first = train(tiny(run__epochs=6), people, tmp_path / "first")
    start_from = {"start__checkpoint": str(first.checkpoint), "backbone__name": None}
    start_from |= {f"backbone__{k}": None for k in ("width", "input_size", "embedding_dim")}
    scored: list[int] = []

    def evaluate(_: Any) -> dict[str, float]:
        scored.append(1)
        return {"score": -len(scored)}

    fresh = train(tiny(**start_from), people, tmp_path / "fresh")
    means = tiny(**start_from, start__class_weights="class-means", start__distil=1.0)
    result = train(means, people, tmp_path / "means", evaluate=evaluate)
    assert losses_of(tmp_path / "means")[0] < 0.5 * losses_of(tmp_path / "fresh")[0]
    assert fresh.finished
    # The base was evaluated too, it was the best by this score, and it is kept.
    assert result.best == {"step": 0, "epoch": 0, "metrics": {"score": -1.0}, "metric": "score"}
    assert result.best_checkpoint is not None
    base = load_checkpoint(first.checkpoint)["backbone"]["stem.0.0.weight"]
    assert torch.equal(load_checkpoint(result.best_checkpoint)["backbone"]["stem.0.0.weight"], base)
    kept = load_network(tmp_path / "means" / "start.pt").state_dict()["stem.0.0.weight"]
    assert torch.equal(kept, base)


def test_class_means_are_the_means_at_the_length_of_random_weights(tmp_path: Path) -> None:
    people = blobs(5, 6)
    first = train(tiny(run__epochs=1), people, tmp_path / "first")
    recipe = tiny(start__checkpoint=str(first.checkpoint), start__class_weights="class-means")
    train(recipe, people, tmp_path / "second")
    weight = load_checkpoint(_zero(tmp_path / "second", recipe, people))["head"]["head.weight"]
    embeddings, rows = embed(load_network(tmp_path / "second/start.pt"), people)
    means = torch.stack(
        [embeddings[torch.from_numpy(people.labels[rows] == person)].mean(0) for person in range(5)]
    )
    for person in range(5):
        mean = means[person] - means.mean(0)  # what all have in common tells nobody apart
        cosine = torch.nn.functional.cosine_similarity(mean, weight[person], dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)
    assert weight.norm(dim=1).tolist() == pytest.approx([0.01 * 16**0.5] * 5, rel=1e-4)


def _zero(run_dir: Path, recipe: Any, people: ArraySource) -> Path:
    """The checkpoint before the first step, of the same run with room for all of them."""
    again = run_dir.with_name("kept")
    train(recipe.changed(**{"run.keep_last": 100}), people, again)
    return again / "checkpoints/step-000000000.pt"


def test_starting_points_that_do_not_fit(tmp_path: Path) -> None:
    first = train(tiny(), blobs(), tmp_path / "first")
    start_from = {"start__checkpoint": str(first.checkpoint)}
    other = tiny(**start_from, backbone__name="iresnet10", backbone__width=0.5)
    with pytest.raises(ConfigError, match="another backbone: name is 'mobilefacenet-paper' there"):
        train(other, blobs(), tmp_path / "a")
    keep = tiny(**start_from, start__class_weights="keep")
    with pytest.raises(ConfigError, match="class weights of 8 identities, the data has 9"):
        train(keep, blobs(9), tmp_path / "b")
    renamed = blobs()
    renamed.identities = [f"other {i}" for i in range(8)]
    with pytest.raises(ConfigError, match="other identities"):
        train(keep, renamed, tmp_path / "c")
    with pytest.raises(ModelError, match="no such file"):
        train(tiny(start__checkpoint=str(tmp_path / "none.pt")), blobs(), tmp_path / "d")
    kept = train(keep, blobs(), tmp_path / "e")
    assert losses_of(tmp_path / "e")[0] < losses_of(tmp_path / "first")[0]
    assert kept.finished


# --- a step ----------------------------------------------------------------------------------


def test_the_first_step_against_plain_autograd(tmp_path: Path) -> None:
    """One step of the trainer against the same step written out with dense cross-entropy."""
    recipe = tiny(
        run__batch_size=64,
        run__epochs=1,
        augmentation__flip=0,
        run__keep_last=9,
        optim__weight_decay=0.01,
        optim__head_lr_scale=3.0,
        optim__head_weight_decay=0.02,
        optim__clip=0.5,
        schedule__kind="constant",
        run__channels_last=False,
    )
    people = blobs(8, 8)
    train(recipe, people, tmp_path)
    before = load_checkpoint(tmp_path / "checkpoints/step-000000000.pt")
    after = load_checkpoint(tmp_path / "checkpoints/step-000000001.pt")
    backbone = create_backbone(**before["backbone_arguments"])
    backbone.load_state_dict(before["backbone"])
    head = create_head("arcface", 16, 8, margin=0.2, scale=16.0)
    head.load_full_weight(before["head"]["head.weight"])
    images = torch.from_numpy(people.chips).permute(0, 3, 1, 2)
    labels = torch.from_numpy(people.labels)
    embeddings = backbone.train()(backbone.preprocessing.apply(images))
    loss = torch.nn.functional.cross_entropy(head.logits(embeddings, labels), labels)
    loss.backward()
    (row,) = log_of(tmp_path)
    assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-4)
    trained = [(k, p) for k, p in backbone.named_parameters() if p.requires_grad]
    norm = torch.cat([p.grad.flatten() for _, p in trained]).norm()
    assert float(row["backbone_gradient"]) == pytest.approx(norm.item(), rel=1e-3)
    assert float(row["head_gradient"]) == pytest.approx(head.weight.grad.norm().item(), rel=1e-3)
    assert norm > 0.5
    for name, p in trained:  # clipped, decayed, at the plain rate
        expected = p - 0.05 * (p.grad * 0.5 / norm + 0.01 * p)
        torch.testing.assert_close(after["backbone"][name], expected, rtol=2e-3, atol=2e-5)
    w = head.weight  # neither clipped nor at the plain rate or decay
    expected = w - 3 * 0.05 * (w.grad + 0.02 * w)
    torch.testing.assert_close(after["head"]["head.weight"], expected, rtol=2e-3, atol=2e-5)


def test_clipping_backbone_and_class_weights_together(tmp_path: Path) -> None:
    recipe = tiny(optim__clip=0.1, optim__clip_scope="together", optim__weight_decay=0.0)
    train(recipe.changed(**{"run.batch_size": 64, "run.epochs": 1}), blobs(), tmp_path)
    momentum = load_checkpoint(tmp_path / "checkpoints/step-000000001.pt")["momentum"]
    assert any(name.startswith("head.") for name in momentum)
    squares = sum(float(v.square().sum()) for v in momentum.values() if v is not None)
    assert squares**0.5 == pytest.approx(0.1, rel=1e-3)


def test_decay_spares_vectors_on_demand() -> None:
    from training.build import build_optimizer

    backbone = create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE)
    head = create_head("arcface", 16, 8)
    spared = build_optimizer(tiny(optim__decay="matrices"), backbone, head).param_groups
    decays = {p.ndim > 1: group["weight_decay"] for group in spared for p in group["params"]}
    assert decays == {True: 5e-4, False: 0.0}
    every = build_optimizer(tiny(), backbone, head).param_groups
    assert {group["weight_decay"] for group in every} == {5e-4}
    for groups in (spared, every):
        held = sum(len(group["params"]) for group in groups)
        assert held == 1 + sum(p.requires_grad for p in backbone.parameters())


def test_accumulation_changes_the_memory_and_not_the_course(tmp_path: Path) -> None:
    """Exact where BatchNorm does not look at the batch, which the parts are."""
    frozen = tiny(backbone__batch_norm="frozen", optim__lr=0.01)
    train(frozen, blobs(), tmp_path / "whole")
    train(frozen.changed(**{"run.accumulate": 4}), blobs(), tmp_path / "parts")
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    result = train(tiny(backbone__batch_norm="frozen", optim__lr=0.01), blobs(), tmp_path)
    state = load_checkpoint(result.checkpoint)["backbone"]
    means = [v for k, v in state.items() if k.endswith("running_mean")]
    assert means and all(float(mean.abs().max()) == 0 for mean in means)


def test_bfloat16_computes_the_backbone_and_leaves_the_loss_in_float32(tmp_path: Path) -> None:
    train(tiny(), blobs(), tmp_path / "full")
    result = train(tiny(run__amp="bf16"), blobs(), tmp_path / "half")
    full, half = losses_of(tmp_path / "full"), losses_of(tmp_path / "half")
    assert full != half
    # The first of the same weights. How far the two part later is the processor's affair.
    assert half[0] == pytest.approx(full[0], rel=0.05)
    state = load_checkpoint(result.checkpoint)
    kept = [*state["backbone"].values(), *state["momentum"].values(), *state["head"].values()]
    floats = {v.dtype for v in kept if v is not None and v.is_floating_point()}
    assert floats == {torch.float32}


def test_compiled_and_plain_agree(tmp_path: Path) -> None:
    """With the compiler's reference backend: torch.compile's own code generation is torch's."""
    import training.trainer as module

    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda network: real(network, backend="eager"))
        assert module.torch is torch
        train(tiny(run__compile=True, run__epochs=1), blobs(), tmp_path / "compiled")
    train(tiny(run__epochs=1), blobs(), tmp_path / "plain")
    compiled = losses_of(tmp_path / "compiled")
    assert compiled == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-3)


def test_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'fp16' needs CUDA"):
        train(tiny(run__amp="fp16"), blobs(), tmp_path)


def test_an_overflow_leaves_the_step_out_and_lowers_the_scale() -> None:
    class Recorder:
        steps = 0

        def step(self) -> None:
            self.steps += 1

    class Part:
        pass

    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    training: Any = Part()
    training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    training.optimizer = optimizer
    training.average, training.backbone = None, None
    stepper = Stepper(training, torch.nn.Identity(), torch.float16)
    figures = Figures(1.0, 1.0, 1.0, float("inf"), 1.0, True, (0, 0))
    for expected in (512, 256):
        optimizer.zero_grad()
        training.scaler.scale((parameter * 3e38).sum()).backward()
        training.scaler.unscale_(optimizer)
        stepper.update(figures)
        assert training.scaler.get_scale() == expected
        assert parameter.tolist() == [1, 1, 1]
    training.scaler.update(1.0)
    with pytest.raises(ModelError, match=r"loss scale is down to 0.5"):
        stepper.update(figures)


# --- a run's folder ------------------------------------------------------------------------


def test_a_run_folder_says_what_was_run(tmp_path: Path) -> None:
    recipe = tiny(run__tensorboard=True, run__log_every=3)
    result = train(recipe, blobs(), tmp_path, evaluate=lambda _: {"a": 1.0, "b": 2.0})
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    (environment,) = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["processes"] == 1 and environment["precision"] == "float32"
    data = json.loads((tmp_path / "data.json").read_text())
    assert data["sha256"] == blobs().digest()
    assert (data["images"], data["classes"]) == (64, 8)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["finished"] and metrics["step"] == metrics["total_steps"] == 8
    assert metrics["best"] == {
        "step": 4,
        "epoch": 1,
        "metrics": {"a": 1.0, "b": 2.0},
        "metric": "a",
    }
    with (tmp_path / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == [3, 6, 8]
    state = load_checkpoint(result.checkpoint)
    assert state["recipe"] == json.loads(json.dumps(recipe.model_dump(exclude_none=True)))
    assert state["data"]["sha256"] == data["sha256"]
    assert state["metrics"] == {"a": 1.0, "b": 2.0}


def test_what_was_left_out_when_the_data_was_opened_is_said_and_noted(tmp_path: Path) -> None:
    """A damaged set trains as a whole one does: who runs the command must hear of it."""
    chips, labels = blob_chips(16, 8)
    images = [cv2.imencode(".png", chip[:, :, ::-1])[1].tobytes() for chip in chips]
    path = tmp_path / "train.rec"
    write_face_records(path, zip(labels.tolist(), images, strict=True), header=False)
    content = bytearray(path.read_bytes())
    damaged = (3, 40, 41)
    for offset in RecordFile(path).offsets[list(damaged)].tolist():
        content[offset : offset + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny(run__epochs=1, data__holdout=0.3).to_toml())
    words = command(recipe, path, tmp_path / "run")
    words.remove("--quiet")
    for _ in range(2):  # the second start has nothing left to do, and says it too
        (said,) = finish([start(words)])
        assert "3 images were left out (the reasons are in data.json)" in said
        assert f"the first: {path}, record 3 at byte" in said
        found = json.loads((tmp_path / "run" / "data.json").read_text())
        assert found["left_out"]["count"] == 3 and len(found["sha256"]) == 64
        for key, reason in zip(damaged, found["left_out"]["reasons"], strict=True):
            assert f"record {key} at byte" in reason and "damaged" in reason


def test_data_json_names_the_first_hundred_reasons(tmp_path: Path) -> None:
    people = blobs()
    people.failures = tuple(Failure(f"{i}.jpg", "no_face", f"{i}.jpg: none") for i in range(130))
    train(tiny(run__epochs=1), people, tmp_path)
    noted = json.loads((tmp_path / "data.json").read_text())["left_out"]
    assert noted == {"count": 130, "reasons": [f"{i}.jpg: none" for i in range(100)]}


def test_tensorboard_has_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny(run__tensorboard=True)
    calls = []

    def stop_in_the_second(_: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise ModelError("as if it had died")
        return {"score": float(len(calls))}

    with pytest.raises(ModelError, match="as if it had died"):
        train(recipe, blobs(), tmp_path, evaluate=stop_in_the_second)
    assert [int(row["step"]) for row in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    train(recipe, blobs(), tmp_path, evaluate=lambda _: {"score": 5.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(
        losses_of(tmp_path)
    )
    assert [event.value for event in board.Scalars("evaluation/score")] == [1.0, 5.0]


def test_the_metric_that_chooses_the_best(tmp_path: Path) -> None:
    scores = iter([{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 2.0}])
    recipe = tiny(run__best_metric="b")
    result = train(recipe, blobs(), tmp_path, evaluate=lambda _: next(scores))
    assert result.best is not None and result.best["step"] == 8
    with pytest.raises(ConfigError, match="best_metric is 'c'; the evaluation gives a, b"):
        recipe = tiny(run__best_metric="c")
        train(recipe, blobs(), tmp_path / "c", evaluate=lambda _: {"a": 1.0, "b": 1.0})


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(1).item(), random.random())
    torch.manual_seed(5)
    random.seed(5)
    train(tiny(run__epochs=1), blobs(), tmp_path)
    assert (torch.rand(1).item(), random.random()) == expected


def test_an_evaluation_that_draws_changes_nothing(tmp_path: Path) -> None:
    """Not even the dropout of the next step."""
    recipe = tiny(backbone__dropout=0.3)

    def greedy(backbone: Any) -> dict[str, float]:
        torch.rand(1000)
        assert not backbone.training
        return {"score": random.random()}

    train(recipe, blobs(), tmp_path / "with", evaluate=greedy)
    train(recipe, blobs(), tmp_path / "without")
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")


def test_held_out_verification_against_every_pair() -> None:
    backbone = create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE)
    people = blobs(6, 5)
    metric = HeldOutVerification(people, far=0.05, batch_size=7)
    found = metric(backbone)
    embeddings, rows = embed(backbone, people, batch_size=30)
    assert rows.tolist() == list(range(30))
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 30, abs=1e-5)
    same, other = [], []
    for i in range(30):
        for j in range(i):
            cosine = float(embeddings[i] @ embeddings[j])
            (same if people.labels[i] == people.labels[j] else other).append(cosine)
    threshold = sorted(other, reverse=True)[int(0.05 * len(other))]
    expected = float(np.mean([s > threshold for s in same]))
    assert found["held_out_tar_at_far_0.05"] == pytest.approx(expected, abs=0.02)
    assert 0 < found["held_out_eer"] < 0.5
    with pytest.raises(ConfigError, match="with two photos"):
        HeldOutVerification(blobs(4, 1))


# --- images in memory ------------------------------------------------------------------------


def _one_person_unreadable(tmp_path: Path) -> Any:
    data = write_blobs(tmp_path / "faces", 8, 6)
    for path in (data / "person02").iterdir():
        path.write_bytes(b"damaged")
    return open_source(data, template="arcface-112", size=SIZE)


def test_in_memory_a_person_without_a_readable_photo_takes_no_class_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are the class means stay those of their people: the loss starts low."""
    first = train(tiny(run__epochs=6), blobs(8, 6), tmp_path / "first")
    people = _one_person_unreadable(tmp_path)
    recipe = tiny(
        start__checkpoint=str(first.checkpoint),
        start__class_weights="class-means",
        data__in_memory=True,
        optim__lr=0.02,
    )
    result = train(recipe, people, tmp_path / "held", show=True)
    said = capsys.readouterr().err
    assert "6 images were left out" in said and "person02" in said
    streamed = recipe.changed(**{"data.in_memory": False})
    train(streamed, people, tmp_path / "streamed")
    # Of the fresh order of fewer images other losses, but of weights that are as right.
    assert losses_of(tmp_path / "held")[0] < 1.5 * losses_of(tmp_path / "streamed")[0]
    state = load_checkpoint(result.checkpoint)
    assert (state["data"]["classes"], state["data"]["images"]) == (7, 42)
    assert len(state["head"]["head.weight"]) == 7
    again = train(recipe.changed(**{"run.keep_last": 3}), people, tmp_path / "held")
    assert again.finished and again.step == result.step


def test_in_memory_no_more_images_fail_than_the_recipe_allows(tmp_path: Path) -> None:
    people = _one_person_unreadable(tmp_path)
    with pytest.raises(ImageError, match="6 images cannot be read, more than the limit of 5"):
        train(tiny(data__in_memory=True, data__max_failures=5), people, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- bad input -----------------------------------------------------------------------------


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    empty = ArraySource(np.zeros((0, SIZE, SIZE, 3), np.uint8), [], "arcface-112", origin="empty")
    with pytest.raises(ConfigError, match="empty: 0 identity; training tells people apart"):
        train(tiny(), empty, tmp_path)
    with pytest.raises(ConfigError, match="1 identity"):
        train(tiny(), blobs(1), tmp_path)
    with pytest.raises(ConfigError, match="single image"):
        train(tiny(), blobs(4, 1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        train(tiny(), blobs(), tmp_path / "file" / "run")


def test_divergence_is_diagnosed_and_the_last_good_checkpoint_kept(tmp_path: Path) -> None:
    recipe = tiny(optim__lr=1e25, run__checkpoint_every=1, schedule__kind="constant")
    with pytest.raises(ModelError, match="training diverged at step") as error:
        train(recipe, blobs(), tmp_path)
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    message = str(error.value)
    assert f"at step {diagnosis['step']}" in message and "Learning rate 1e+25" in message
    assert "blobs, image" in message and "Lower optim.lr" in message
    assert diagnosis["learning_rate"] == 1e25
    assert len(diagnosis["batch"]) == 16
    assert {row["label"] for row in diagnosis["batch"]} <= set(range(8))
    assert set(diagnosis["embedding_norms"]) == {"smallest", "median", "largest", "not_finite"}
    kept = load_checkpoint(Path(diagnosis["checkpoint"]))
    assert kept["step"] == diagnosis["step"] - 1
    assert diagnosis["checkpoint"] in message
    assert len(losses_of(tmp_path)) == kept["step"]


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is fine and only the gradient is not: nothing of it reaches the weights."""
    original = Stepper.gradients

    def poisoned(self: Stepper, batch: Any, signals: Any = (0, 0)) -> Figures:
        if self.training.step == 5:
            weight = self.training.backbone.embedding.fc.weight
            hook = weight.register_hook(lambda grad: grad * float("nan"))
            try:
                return original(self, batch, signals)
            finally:
                hook.remove()
        return original(self, batch, signals)

    monkeypatch.setattr(Stepper, "gradients", poisoned)
    with pytest.raises(ModelError, match=r"at step 6: the loss is [\d.]+, the gradient's norm nan"):
        train(tiny(), blobs(), tmp_path)
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [row["step"] for row in diagnosis["recent"]] == [1, 2, 3, 4, 5]
    assert diagnosis["embedding_norms"]["not_finite"] == 0
    monkeypatch.setattr(Stepper, "gradients", original)
    result = train(tiny(), blobs(), tmp_path)  # from the checkpoint at the end of epoch 1
    assert result.finished
    reference = train(tiny(), blobs(), tmp_path / "reference")
    assert log_of(tmp_path) == log_of(reference.run_dir)


def test_divergence_that_an_evaluation_notices_is_diagnosed_too(tmp_path: Path) -> None:
    """Losses are finite to the end of the epoch, and the network is of no use after it."""
    recipe = tiny(run__epochs=3, run__keep_last=1)
    calls: list[int] = []
    measure = HeldOutVerification(blobs(4, 6, seed=9))

    def evaluate(backbone: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:  # as where running statistics overflowed
            backbone = create_backbone(**backbone.arguments)
            backbone.embedding.fc.weight.data.fill_(float("nan"))
        return measure(backbone)

    with pytest.raises(ModelError, match="diverged at step 8: mobilefacenet-paper: gave NaN"):
        train(recipe, blobs(), tmp_path, evaluate=evaluate)
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert diagnosis["step"] == 8 and len(diagnosis["batch"]) == 16
    assert [row["step"] for row in diagnosis["recent"]] == list(range(1, 9))
    assert Path(diagnosis["checkpoint"]).name == "step-000000004.pt"  # the last good one
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["best.pt", "step-000000004.pt"]
    assert train(recipe, blobs(), tmp_path, evaluate=measure).finished


def test_a_starting_network_without_a_direction_is_no_divergence(tmp_path: Path) -> None:
    first = train(tiny(run__epochs=1), blobs(), tmp_path / "first")
    state = load_checkpoint(first.checkpoint)
    for weight in state["backbone"].values():
        weight.zero_()
    torch.save(state, tmp_path / "zero.pt")
    recipe = tiny(start__checkpoint=str(tmp_path / "zero.pt"))
    with pytest.raises(ModelError, match=r"^mobilefacenet-paper: gave NaN, infinity or zero"):
        train(recipe, blobs(), tmp_path / "run", held_out=blobs(4, 6, seed=9))


# --- an evaluation that does not come to its end -------------------------------------------


def test_an_evaluation_that_fails_costs_no_epoch_and_is_made_up_for(tmp_path: Path) -> None:
    def damaged(_: Any) -> dict[str, float]:
        raise ImageError("set.bin, image 3: damaged")

    for _ in range(2):
        with pytest.raises(ImageError, match="image 3"):
            train(tiny(), blobs(), tmp_path, evaluate=damaged)
        newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
        assert load_checkpoint(newest)["step"] == 4
    assert not json.loads((tmp_path / "metrics.json").read_text())["history"]
    scores = iter([{"a": 2.0}, {"a": 1.0}])
    result = train(tiny(), blobs(), tmp_path, evaluate=lambda _: next(scores))
    assert result.best is not None and result.best["step"] == 4
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [4, 8]
    reference = train(tiny(), blobs(), tmp_path / "reference")
    assert log_of(tmp_path) == log_of(reference.run_dir)


def test_a_last_evaluation_that_failed_is_made_up_for(tmp_path: Path) -> None:
    scores = iter([{"a": 1.0}])
    with pytest.raises(StopIteration):
        train(tiny(), blobs(), tmp_path, evaluate=lambda _: next(scores))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["step"] == 8 and not summary["finished"]
    result = train(tiny(), blobs(), tmp_path, evaluate=lambda _: {"a": 3.0})
    assert result.best is not None and result.best["step"] == 8
    assert json.loads((tmp_path / "metrics.json").read_text())["finished"]
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["best.pt", "step-000000004.pt", "step-000000008.pt"]


def test_a_metric_that_no_evaluation_gives_is_said_before_the_first_step(tmp_path: Path) -> None:
    recipe = tiny(run__best_metric="held_out_err")
    with pytest.raises(ConfigError, match="'held_out_err'; the evaluation gives held_out_tar_at"):
        train(recipe, blobs(), tmp_path, held_out=blobs(4, 6, seed=9))
    assert not list(tmp_path.iterdir())
    metric = HeldOutVerification(blobs(4, 6, seed=9))
    assert tuple(metric(create_backbone(**tiny().backbone.arguments()))) == metric.names


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training_runs import blobs, tiny
from training.checkpoint import CheckpointFolder
from training.trainer import train

moment, scores = sys.argv[2], iter([0.5, 0.9, 0.6])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
original = CheckpointFolder.mark_best

def mark_best(self, path):
    if moment == "naming" and path.name == "step-000000008.pt":
        kill()
    original(self, path)

def evaluate(backbone):
    score = next(scores)
    if moment == "evaluating" and score == 0.9:
        kill()
    return {"score": score}

CheckpointFolder.mark_best = mark_best
train(tiny(run__epochs=3, run__keep_last=1), blobs(), Path(sys.argv[1]), evaluate=evaluate)
"""


@pytest.mark.parametrize(("moment", "left"), [("evaluating", [0.9, 0.6]), ("naming", [0.6])])
def test_killed_around_an_evaluation_nothing_of_it_is_lost(
    moment: str, left: list[float], tmp_path: Path
) -> None:
    """During it, and between its checkpoint's last byte and its being called best.pt."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), moment],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL
    scores = iter(left)
    recipe = tiny(run__epochs=3, run__keep_last=1)
    result = train(recipe, blobs(), tmp_path, evaluate=lambda _: {"score": next(scores)})
    assert next(scores, None) is None
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert [(e["step"], e["metrics"]["score"]) for e in history] == [(4, 0.5), (8, 0.9), (12, 0.6)]
    assert result.best is not None and result.best["step"] == 8
    assert result.best_checkpoint is not None
    assert load_checkpoint(result.best_checkpoint)["step"] == 8


# --- stopping and going on -----------------------------------------------------------------


def test_killed_at_any_step_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Real processes, killed at random moments, one asked to stop by Ctrl-C."""
    recipe = tmp_path / "everything.toml"
    recipe.write_text(tiny(**EVERYTHING).to_toml())
    data = write_blobs(tmp_path / "faces", 10, 6)
    source = open_source(data, template="arcface-112", size=SIZE)
    train(load_recipe(recipe), source, tmp_path / "whole")
    expected = log_of(tmp_path / "whole")
    assert len(expected) == 70
    run = tmp_path / "killed"
    chance = random.Random(20)
    stops = [
        (chance.randint(1, 8), signal.SIGKILL, -signal.SIGKILL),
        (chance.randint(12, 20), signal.SIGKILL, -signal.SIGKILL),
        (chance.randint(24, 30), signal.SIGINT, 130),
        (chance.randint(34, 42), signal.SIGKILL, -signal.SIGKILL),
    ]
    for step, number, code in stops:
        process = start(command(recipe, data, run))
        assert stop_at([process], run, step, number, chance.uniform(0, 0.05)) == [code]
        if number == signal.SIGINT:  # it was asked, so nothing is lost
            newest = sorted((run / "checkpoints").glob("step-*"))[-1]
            assert load_checkpoint(newest)["step"] == len(log_of(run)) >= step
    finish([start(command(recipe, data, run))])
    assert log_of(run) == expected  # every figure of every step, to the last bit
    ours, theirs = (
        load_checkpoint(sorted((folder / "checkpoints").glob("step-*"))[-1])
        for folder in (run, tmp_path / "whole")
    )
    for part in ("backbone", "ema", "head"):
        assert all(torch.equal(ours[part][key], value) for key, value in theirs[part].items())


def test_sigterm_saves_and_says_so_by_its_code(tmp_path: Path) -> None:
    def ask(_: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {"score": 1.0}

    with pytest.raises(SystemExit) as ended:
        train(tiny(run__checkpoint_every=100), blobs(), tmp_path, evaluate=ask)
    assert ended.value.code == 143
    assert len(losses_of(tmp_path)) == 5  # asked at the end of step 4, answered by step 5
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert load_checkpoint(newest)["step"] == 5
    train(tiny(), blobs(), tmp_path)
    train(tiny(), blobs(), tmp_path / "whole")
    assert log_of(tmp_path) == log_of(tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait() -> None:
    from training.interruption import Interruption

    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.counts == (1, 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_line(tmp_path: Path) -> None:
    """Recipes listed, an error as a sentence with its code, held-out people on demand."""
    listed = finish([start(["training", "recipes"])])[0]
    assert "elasticface-arc-ms1mv2-r100" in listed and "fine-tune" in listed
    data = write_blobs(tmp_path / "faces", 16, 4)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny(run__epochs=1).to_toml())
    wrong = start(command(recipe, data, tmp_path / "run", "--set", "optim.lrr=1"))
    assert "unknown key 'optim.lrr'; did you mean 'lr'?" in wrong.communicate()[0]
    assert wrong.returncode == 2
    words = command(recipe, data, tmp_path / "run", "--set", "data.holdout=0.3")
    said = finish([start(words)])[0]
    assert "best.pt" in said and "held_out_tar_at_far_0.001" in said
