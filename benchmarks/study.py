"""The experiments of docs/results.md: what each loss is worth on real faces.

    python benchmarks/study.py run --faces celeba112 --lfw lfw --work study
    python benchmarks/study.py list --work study
    python benchmarks/study_report.py --work study      # tables and pictures of what is there

``run`` does every experiment that has no result yet, ``--jobs`` at a time with one thread each.
Stop it with Ctrl-C, or kill it: what was finished stays, what was running goes on from its last
epoch. ``--only heads`` does one group:

heads      a small network from scratch: seven losses, each with and without BroadFace, three
           seeds, one recipe.
queue      BroadFace's queue size over ArcFace, with and without compensation, three seeds.
sweep      ElasticFace-Cos over margin and sigma, one seed.
plane      two-dimensional embeddings of eight people, for a picture.
finetune   the bundled embedder trained further, and interpolated with where it came from.

Identities are split three ways by a hash of their names, whatever the experiment: 80 % train, 7 %
select an interpolation, 13 % test. ``WORK/results/NAME.json`` has an experiment's figures and its
recipe, ``WORK/embeddings/NAME.npz`` the test embeddings, for paired comparisons.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study_sets import SMALL_SIZE, Sets, load_sets, prepare  # noqa: E402 - after the path

SEEDS = (0, 1, 2)
QUEUE = 4096
QUEUES = (1024, 4096, 16384)
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "cosface": {"margin": 0.35},
    "arcface": {"margin": 0.5},
    "elastic-cos": {"margin": 0.35, "sigma": 0.05},
    "elastic-cos+": {"margin": 0.35, "sigma": 0.025},
    "elastic-arc": {"margin": 0.5, "sigma": 0.05},
    "elastic-arc+": {"margin": 0.5, "sigma": 0.0175},
}
"""The papers' margins and spreads."""
MARGINS, SIGMAS = (0.2, 0.35, 0.5), (0.0, 0.05, 0.1)
PLANE = ("softmax", "normface", "cosface", "arcface", "elastic-cos", "elastic-arc")
FINETUNE = {
    "elastic-cos+ broadface": ("elastic-cos+", QUEUE),
    "elastic-cos+": ("elastic-cos+", 0),
    "cosface": ("cosface", 0),
}
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0)
ENDS = (0.0, 0.5, 1.0)
"""Where the runs that are only compared with are looked at."""

SMALL: dict[str, Any] = {
    "name": "study",
    "backbone": {
        "name": "iresnet10",
        "embedding_dim": 128,
        "width": 0.25,
        "input_size": SMALL_SIZE,
    },
    "data": {"workers": 0},
    "augmentation": {"flip": 0.5},
    "optim": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "clip": 5.0},
    "schedule": {"kind": "cosine", "warmup_epochs": 0.5},
    "run": {
        "epochs": 4,
        "batch_size": 128,
        "evaluate_every": 0,
        "keep_last": 1,
        "log_every": 20,
        "tensorboard": False,
    },
}
"""The one recipe of heads, queue and sweep; loss, queue and seed are what differs."""
SCALE = 32.0


@dataclass(frozen=True)
class Experiment:
    """One training run: ``recipe`` as nested tables; ``data`` says which photos it learns from."""

    name: str
    group: str
    data: str
    recipe: dict[str, Any]


def plan() -> Iterator[Experiment]:
    """Every experiment, the most telling first."""
    for seed in SEEDS:
        for loss in LOSSES:
            for queue in (0, QUEUE):
                yield small("heads", loss, queue, seed)
    for loss in PLANE:
        yield plane(loss)
    for margin in MARGINS:
        for sigma in SIGMAS:
            if (margin, sigma) not in ((0.35, 0.05), (0.35, 0.0)):  # among the heads already
                yield small("sweep", "elastic-cos", 0, 0, margin=margin, sigma=sigma)
    for seed in SEEDS:
        for queue in QUEUES:
            for compensate in (True, False):
                if not (compensate and queue == QUEUE):  # likewise
                    yield small("queue", "arcface", queue, seed, compensate=compensate)
    for label, (loss, queue) in FINETUNE.items():
        yield Experiment(f"finetune {label}", "finetune", "all", fine(loss, queue))


def small(
    group: str, loss: str, queue: int, seed: int, *, compensate: bool = True, **margins: float
) -> Experiment:
    """The small network with one loss."""
    head = {"name": loss, **LOSSES[loss], **margins}
    if loss != "softmax":
        head["scale"] = SCALE
    name = loss + "".join(f" {k}={v:g}" for k, v in margins.items())
    name += f" queue={queue}" if queue else ""
    name += "" if compensate else " uncompensated"
    recipe = {
        **SMALL,
        "head": head,
        "broadface": {"queue_size": queue, "compensate": compensate, "warmup_steps": 200},
        "run": {**SMALL["run"], "seed": seed},
    }
    return Experiment(f"{name} seed={seed}", group, "small", recipe)


def plane(loss: str) -> Experiment:
    """Eight people in two dimensions, learnt by heart."""
    head: dict[str, Any] = {"name": loss}
    if loss not in ("softmax", "normface"):
        head |= LOSSES[loss]
    if loss != "softmax":
        head["scale"] = 16.0
    recipe = {
        **SMALL,
        "backbone": {**SMALL["backbone"], "embedding_dim": 2},
        "head": head,
        "optim": {**SMALL["optim"], "lr": 0.02},
        "run": {**SMALL["run"], "epochs": 120, "batch_size": 32},
    }
    return Experiment(f"plane {loss}", "plane", "plane", recipe)


def fine(loss: str, queue: int) -> dict[str, Any]:
    """The shipped recipe ``fine-tune`` with another loss or without the queue."""
    from training.recipe import load_recipe

    recipe = load_recipe("fine-tune")
    head = {"name": loss, "margin": 0.25, "scale": 32.0}
    if loss.startswith("elastic"):
        head["sigma"] = 0.025
    tables: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    tables["head"] = head
    tables["broadface"]["queue_size"] = queue
    tables["data"] |= {"workers": 0, "holdout": 0.0}
    tables["run"] |= {"evaluate_every": 0, "keep_last": 1, "log_every": 20, "tensorboard": False}
    tables["run"] |= {"checkpoint_every": 100, "epochs": 2}
    return tables


# Figures.


def embed(backbone: Any, source: Any, *, flip: bool = True) -> np.ndarray:
    """Unit embeddings (n, d) float32; flip: of each chip and its mirror image, averaged."""
    import torch
    from torch.nn import functional as F

    rows = []
    with torch.inference_mode():
        for start in range(0, len(source), 128):
            stop = min(start + 128, len(source))
            chips = np.stack([source.chip(i) for i in range(start, stop)])
            images = backbone.preprocessing.apply(torch.from_numpy(chips).permute(0, 3, 1, 2))
            images = images.contiguous(memory_format=torch.channels_last)
            embeddings = backbone(images)
            if flip:
                embeddings = embeddings + backbone(images.flip(3))
            rows.append(F.normalize(embeddings.float()).numpy())
    return np.concatenate(rows)


def verification(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """TAR at FARS over every pair, with 95 % intervals over people, and the EER."""
    from facerec import metrics
    from facerec.intervals import bootstrap_tar_all_pairs
    from facerec.pairs import genuine_subjects, pair_scores, top_impostors

    genuine, impostor = pair_scores(embeddings, labels)
    fars = FARS[1:]  # at 1e-1 an interval takes a million pairs and tells nothing
    top = top_impostors(embeddings, labels, metrics.threshold_for_fmr(impostor, 2 * fars[0]))
    intervals = bootstrap_tar_all_pairs(genuine, genuine_subjects(labels), top, fars, seed=0)
    tars = metrics.tar_at_fars(genuine, impostor, FARS)
    return {
        "tar": {f"{far:g}": float(tar) for far, tar in zip(FARS, tars, strict=True)},
        "interval": {f"{far:g}": [i.low, i.high] for far, i in zip(fars, intervals, strict=True)},
        "eer": float(metrics.eer(genuine, impostor)),
        "people": len(np.unique(labels)),
        "photos": len(labels),
        "genuine": len(genuine),
        "impostor": len(impostor),
    }


def lfw_accuracy(embeddings: np.ndarray, protocol: Any) -> dict[str, Any]:
    """View 2: mean and deviation over ten folds, and each fold."""
    from facerec.metrics import kfold_accuracy

    scores = np.einsum("ij,ij->i", embeddings[protocol.left], embeddings[protocol.right])
    result = kfold_accuracy(scores.clip(-1, 1), protocol.same, protocol.fold)
    return {
        "accuracy": float(result.mean),
        "std": float(result.std),
        "folds": [float(value) for value in result.per_fold],
    }


def figures_of(backbone: Any, sets: Sets) -> tuple[dict[str, Any], np.ndarray]:
    """Test and LFW figures of a network, and its test embeddings."""
    backbone.eval()
    rows = embed(backbone, sets.test)
    return {
        "test": verification(rows, sets.test.labels),
        "lfw": lfw_accuracy(embed(backbone, sets.lfw), sets.protocol),
    }, rows


# Running.


def run_one(name: str, work: Path) -> None:
    """Train and measure one experiment; what it left half-done is taken up."""
    import torch

    from training.checkpoint import backbone_from_checkpoint
    from training.recipe import recipe_from
    from training.trainer import train

    experiment = next(e for e in plan() if e.name == name)
    sets = load_sets(work, experiment.data)
    recipe = recipe_from(experiment.recipe, name)
    run_dir = work / "runs" / slug(name)
    result = train(recipe, sets.train, run_dir)
    backbone = backbone_from_checkpoint(result.checkpoint)
    log = np.genfromtxt(run_dir / "log.csv", delimiter=",", names=True)
    report: dict[str, Any] = {
        "name": name,
        "group": experiment.group,
        "recipe": experiment.recipe,
        "train_images": len(sets.train),
        "train_identities": sets.train.num_classes,
        "steps": result.step,
        "last_loss": float(np.atleast_1d(log["loss"])[-3:].mean()),
        "images_per_second": float(np.median(np.atleast_1d(log["images_per_second"]))),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    embeddings = work / "embeddings"
    embeddings.mkdir(exist_ok=True)
    if experiment.group == "plane":
        rows = raw_embeddings(backbone.eval(), sets.train)
        weights = torch.load(result.checkpoint, weights_only=False)
        report["people"] = sets.train.num_classes
        np.savez(
            embeddings / f"{slug(name)}.npz",
            rows=rows,
            labels=sets.train.labels,
            weights=_class_weights(weights),
        )
    elif experiment.group == "finetune":
        alphas = ALPHAS if experiment.recipe["broadface"]["queue_size"] else ENDS
        report["path"] = interpolations(run_dir, backbone, sets, embeddings / slug(name), alphas)
    else:
        figures, rows = figures_of(backbone, sets)
        report |= figures
        np.savez(
            embeddings / f"{slug(name)}.npz", rows=rows.astype(np.float16), labels=sets.test.labels
        )
    target = work / "results" / f"{slug(name)}.json"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(target)
    if experiment.group != "finetune":
        shutil.rmtree(run_dir / "checkpoints")


def raw_embeddings(backbone: Any, source: Any) -> np.ndarray:
    """Embeddings (n, d) float32 as they come, neither flipped nor normalised."""
    import torch

    chips = np.stack([source.chip(i) for i in range(len(source))])
    with torch.inference_mode():
        images = backbone.preprocessing.apply(torch.from_numpy(chips).permute(0, 3, 1, 2))
        rows: np.ndarray = backbone(images).float().numpy()
    return rows


def _class_weights(state: Any) -> np.ndarray:
    """(C, d) float32 of a checkpoint's head."""
    weights: np.ndarray = state["head"]["head.weight"].float().numpy()
    return weights


def interpolations(
    run_dir: Path, result: Any, sets: Sets, target: Path, alphas: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Figures at ``alphas`` from the start (0) to the result (1) of a run; WiSE-FT."""
    from training.checkpoint import load_network
    from training.interpolate import interpolate
    from training.setup import START

    base = load_network(run_dir / START)
    points: list[dict[str, Any]] = []
    for alpha in alphas:
        known = target.parent.parent / "base.json"
        if alpha == 0 and known.exists():  # the same for all of them
            points.append(json.loads(known.read_text(encoding="utf-8")))
            continue
        backbone = interpolate(base, result, alpha)
        figures, rows = figures_of(backbone, sets)
        select = verification(embed(backbone, sets.select, flip=False), sets.select.labels)
        points.append({"alpha": alpha, **figures, "select": select})
        if alpha == 0:
            known.write_text(json.dumps(points[0]), encoding="utf-8")
        np.savez(
            target.with_name(f"{target.name}_alpha={alpha:g}.npz"),
            rows=rows.astype(np.float16),
            labels=sets.test.labels,
        )
        print(
            f"alpha {alpha:g}: TAR {figures['test']['tar']['0.001']:.4f}, "
            f"LFW {figures['lfw']['accuracy']:.4f}",
            flush=True,
        )
    return points


def slug(name: str) -> str:
    """A file's name without spaces."""
    return name.replace(" ", "_")


def run_all(work: Path, jobs: int, only: list[str]) -> None:
    """Every experiment without a result, ``jobs`` processes at a time, one thread each."""
    wanted = [e for e in plan() if not only or e.group in only]
    waiting = [e for e in wanted if not (work / "results" / f"{slug(e.name)}.json").exists()]
    total, began, done = len(waiting), time.monotonic(), 0
    (work / "logs").mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0).name
                command = [sys.executable, __file__, "one", name, "--work", str(work)]
                with (work / "logs" / f"{slug(name)}.log").open("ab") as log:
                    running[name] = subprocess.Popen(
                        command, stdout=log, stderr=log, env=surroundings
                    )
            time.sleep(0.5)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                done += 1
                if process.returncode:
                    failed.append(name)
                minutes = (time.monotonic() - began) / 60
                state = "FAILED" if process.returncode else "done"
                print(f"{done}/{total} {state} {name}, {minutes:.1f} min", flush=True)
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise SystemExit(130) from None
    if failed:
        raise SystemExit(f"failed, see {work / 'logs'}: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "list", "one"))
    parser.add_argument("name", nargs="?", help="of one experiment")
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--lfw", type=Path)
    parser.add_argument("--work", type=Path, default=Path("study"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", default=[])
    args = parser.parse_args()
    if args.command == "list":
        for experiment in plan():
            there = (args.work / "results" / f"{slug(experiment.name)}.json").exists()
            print(f"{'done' if there else '    '} {experiment.group:9} {experiment.name}")
        return
    if args.command == "one":
        run_one(args.name, args.work)
        return
    if not (args.faces and args.lfw):
        parser.error("run needs --faces and --lfw")
    prepare(args.faces, args.lfw, args.work)
    run_all(args.work, args.jobs, args.only)


if __name__ == "__main__":
    main()
