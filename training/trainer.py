"""The training loop. Imports torch and the core; never gallery or gradio.

:func:`train` sets up, takes up a checkpoint if there is one, and hands over to ``_loop``, which
reads from top to bottom. A step's arithmetic is in :mod:`training.step`, what is built from the
recipe in :mod:`training.build` and :mod:`training.setup`, what moves in :mod:`training.state`,
what stays behind in :mod:`training.logs`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facerec.errors import ModelError
from training.checkpoint import undisturbed_randomness
from training.data import Batch, FaceSource
from training.diagnosis import diagnose
from training.distributed import joined_ranks
from training.heldout import NoDirection
from training.interruption import Interruption, leave
from training.logs import Display, RunLog, write_json
from training.recipe import Recipe
from training.setup import START, Evaluate, Run, require_metric, set_up
from training.state import Training, left_out_line
from training.step import Diverged, Figures

__all__ = ["START", "Evaluate", "TrainResult", "train"]

_REMEMBERED = 20
Recent = deque[dict[str, Any]]
"""The last lines of the log."""


@dataclass(frozen=True)
class TrainResult:
    """Where a run has got to. metrics: of the last evaluation; best: the entry of the best."""

    run_dir: Path
    step: int
    total_steps: int
    checkpoint: Path
    best_checkpoint: Path | None
    metrics: dict[str, float]
    best: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether every epoch of the recipe is done."""
        return self.step >= self.total_steps


def train(
    recipe: Recipe,
    source: FaceSource,
    run_dir: Path,
    *,
    held_out: FaceSource | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = True,
    show: bool = False,
) -> TrainResult:
    """Train on ``source`` as ``recipe`` says; go on where the run in ``run_dir`` stopped.

    Args:
        source: aligned chips of the people to learn; nobody is kept aside here.
        run_dir: of this run alone; see :mod:`training.logs` for what will lie there.
        held_out: other people, to verify during training unless ``evaluate`` is given.
        evaluate: called on rank 0 with the network (the averaged one if there is an average),
            every ``run.evaluate_every`` epochs and at the end, and at the start of a run that
            trains a network further. Its first figure, or ``run.best_metric``, decides which
            checkpoint is the best: larger is better.
        resume: take up the newest checkpoint; False: a folder with a run in it is an error.
        show: progress on standard error.

    Under torchrun every process calls this with the same arguments and sees the same folder.

    Raises:
        ConfigError: the recipe contradicts itself, the data or the run in the folder.
        ModelError: training diverged (RUN/diagnosis.json says how), a checkpoint cannot be
            written or read, or the device or the pack cannot be used.
        ImageError: too many images cannot be read.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written. SIGTERM exits with 143.
    """
    run_dir = Path(run_dir)
    with joined_ranks(recipe.run.device) as ranks, undisturbed_randomness(ranks.device):
        try:
            run = set_up(recipe, source, run_dir, ranks, held_out, evaluate, resume)
            signals = _loop(run, show)
        except OSError as exc:
            raise ModelError(
                f"{run_dir}: cannot be written: {exc.strerror or exc}. Make room or choose another "
                "folder; checkpoints that are there are whole, and the same command resumes."
            ) from exc
    if any(signals):
        leave(signals)
    return _result(run)


def _loop(run: Run, show: bool) -> tuple[int, int]:
    """Step until the recipe is done or somebody asks to stop; the signals that asked."""
    recipe, ranks, training, stepper = run.recipe, run.ranks, run.training, run.stepper
    optim, every, total = recipe.optim, recipe.run, run.total_steps
    signals = (0, 0)
    log = RunLog(run.run_dir, training.step, tensorboard=every.tensorboard) if ranks.main else None
    display = Display(total, training.step, show=show and ranks.main)
    with log or nullcontext(), display, Interruption() as interruption:
        display.say(_headline(run))
        if run.source.failures:
            display.say(left_out_line(run.source))
        if not run.resumed:
            training.evaluation_due = recipe.start.given and run.evaluate is not None
            _save(run)
        recent: Recent = deque(maxlen=_REMEMBERED)
        if training.evaluation_due:  # of the start, or one that did not come to its end
            _evaluate(run, log, display, None, recent)
        clock, images = time.monotonic(), 0
        batches = iter(training.loader)
        while training.step < total:
            # 1. A batch of this rank, and the learning rate of this step.
            epoch = training.loader.epoch  # passes over the data before this batch
            batch = next(batches)  # images (B/R, 3, S, S) uint8, labels and indices (B/R,) int64
            factor = run.schedule.factor(training.step)
            for group in training.optimizer.param_groups:
                group["lr"] = optim.lr * factor * group["lr_scale"]

            # 2. Gradients, a look at them, and the update.
            try:
                figures = stepper.gradients(batch, interruption.counts)
                stepper.update(figures)
            except Diverged as exc:
                raise _diagnosis(run, exc, training.step + 1, batch, recent) from exc
            training.step += 1
            training.pending[0] += figures.loss
            training.pending[1] += 1
            images += every.batch_size

            # 3. Where is the run now?
            finished, epoch_ended = training.step == total, training.loader.epoch > epoch
            signals = figures.signals

            # 4. A line of the log.
            if training.step % every.log_every == 0 or finished:
                now = time.monotonic()
                rate = images / max(now - clock, 1e-9)
                values = _line(training, figures, epoch + 1, optim.lr * factor, rate)
                recent.append(values)
                display.step(values, total)
                if log is not None:
                    log.step(values)
                clock, images, training.pending = now, 0, [0.0, 0.0]

            # 5. A checkpoint, and after it an evaluation: that may fail, and the epoch is kept.
            on_schedule = every.evaluate_every and training.loader.epoch % every.evaluate_every == 0
            wanted = finished or (epoch_ended and on_schedule)
            training.evaluation_due = bool(wanted) and run.evaluate is not None
            due = every.checkpoint_every and training.step % every.checkpoint_every == 0
            if finished or epoch_ended or due or any(signals):
                if log is not None:
                    log.flush()
                _save(run)
                if training.evaluation_due:
                    _evaluate(run, log, display, batch, recent)
                clock = time.monotonic() if images == 0 else clock
            if any(signals):
                display.say(f"stopped after step {training.step:,}; the same command resumes")
                break
        if len(training.loader.failures):
            display.say(str(training.loader.failures))
    return signals


def _evaluate(
    run: Run, log: RunLog | None, display: Display, batch: Batch | None, recent: Recent
) -> None:
    """Evaluate, note it, and write the outcome into the step's checkpoint.

    batch, recent: for the diagnosis of a run whose network has nothing to say any more.
    """
    training = run.training
    if run.evaluate is None:
        return
    try:
        values = _figures(run)
    except Diverged as exc:
        if training.step == 0:
            raise  # the network that the run starts from; nothing was trained yet
        if run.ranks.main:
            run.checkpoints.drop(training.step)
        run.ranks.barrier()
        raise _diagnosis(run, exc, training.step, batch, recent) from exc
    name = run.recipe.run.best_metric or next(iter(values), "")
    require_metric(name, values)
    entry = {"step": training.step, "epoch": training.loader.epoch, "metrics": values}
    training.history = [*training.history, entry]
    known = training.best["metrics"].get(name, -math.inf) if training.best else -math.inf
    best = training.best is None or values[name] > known
    if best:
        training.best = {**entry, "metric": name}
    training.evaluation_due = False
    if log is not None:
        log.metrics(training.step, values)
        log.flush()
    figures = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
    display.say(f"epoch {training.loader.epoch}, step {training.step:,}: {figures}")
    _save(run, best)


def _figures(run: Run) -> dict[str, float]:
    """What the evaluation on rank 0 says; Diverged, on all ranks alike, where it cannot."""
    values, reason = None, None
    if run.ranks.main:
        assert run.evaluate is not None
        backbone = run.training.evaluated()
        was_training = backbone.training
        try:
            with undisturbed_randomness(run.ranks.device), torch.no_grad():
                values = {k: float(v) for k, v in run.evaluate(backbone.eval()).items()}
        except NoDirection as exc:
            reason = str(exc)
        backbone.train(was_training)
    values, reason = run.ranks.from_main((values, reason))
    if reason is not None:
        raise Diverged(reason)
    found: dict[str, float] = values
    return found


def _save(run: Run, best: bool = False) -> None:
    """Checkpoint and metrics.json, by rank 0; the others wait, so that none is ahead of it."""
    training = run.training
    content = training.content()
    if content is not None:
        # Until a network was evaluated, the last one that could be stays.
        run.checkpoints.save(content, best=best, drop_old=not training.evaluation_due)
        summary = {
            "finished": training.step == run.total_steps and not training.evaluation_due,
            "step": training.step,
            "total_steps": run.total_steps,
            "best": training.best,
            "history": training.history,
        }
        write_json(run.run_dir / "metrics.json", summary)
    run.ranks.barrier()


def _line(
    training: Training, figures: Figures, epoch: int, learning_rate: float, rate: float
) -> dict[str, Any]:
    """The values of :data:`training.logs.COLUMNS`."""
    return {
        "step": training.step,
        "epoch": epoch,
        "loss": training.pending[0] / training.pending[1],
        "classifier_loss": figures.classifier_loss,
        "learning_rate": learning_rate,
        "backbone_gradient": figures.backbone_gradient,
        "head_gradient": figures.head_gradient,
        "embedding_norm": figures.embedding_norm,
        "loss_scale": training.scaler.get_scale(),
        "images_per_second": round(rate, 1),
    }


def _diagnosis(
    run: Run, exc: Diverged, step: int, batch: Batch | None, recent: Recent
) -> ModelError:
    return diagnose(
        str(exc),
        run_dir=run.run_dir,
        rank=run.ranks.rank,
        step=step,
        learning_rate=run.recipe.optim.lr * run.schedule.factor(step - 1),
        batch=batch,
        norms=run.stepper.norms,
        source=run.source,
        recent=list(recent),
        checkpoint=run.checkpoints.newest(),
    )


def _headline(run: Run) -> str:
    training, ranks = run.training, run.ranks
    precision = str(run.stepper.precision or torch.float32).removeprefix("torch.")
    processes = f", {ranks.world} processes" if ranks.world > 1 else ""
    resumed = f"; resumed at step {training.step:,}" if run.resumed else ""
    return (
        f"{run.recipe.name}: {training.backbone.name}, {training.data['images']:,} images of "
        f"{training.data['classes']:,} identities, {run.total_steps:,} steps; {ranks.device}, "
        f"{precision}{processes}{resumed}"
    )


def _result(run: Run) -> TrainResult:
    training, newest = run.training, run.checkpoints.newest()
    assert newest is not None  # the first is written before the first step
    metrics = training.history[-1]["metrics"] if training.history else {}
    return TrainResult(
        run.run_dir,
        training.step,
        run.total_steps,
        newest,
        run.checkpoints.best,
        metrics,
        training.best,
    )
