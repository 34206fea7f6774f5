"""Training steps: the trainer's against the plain float32 loop, and whether the losses agree.

    python benchmarks/train.py --json train.json
    python benchmarks/train.py --faces celeba112 --curve-steps 60

A step is forward, backward, clipping and SGD with momentum, from a batch of uint8 chips, with an
ArcFace head of 10,000 classes: mobilefacenet at batch 64, iresnet50 at batch 16.

*plain*: float32, contiguous, torch's default SGD, as a loop is first written. *ours*: what
``training.step`` does: bfloat16 autocast, channels last, fused SGD, head and loss in float32.
Both have the same head (its own gain over a dense one is ``benchmarks/heads.py``'s), weights and
batches, alternate within one run, and medians with quartiles are printed. ``--variants`` times
each ingredient alone, and torch.compile.

The curves train both from the same weights on the same batches: the photos of ``--faces``, a folder
for each person, or else blobs of 500 identities.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.backbones import Backbone, create_backbone
from training.build import build_optimizer
from training.data import Batch, FaceSource, ImageFolder
from training.distributed import Ranks
from training.heads import Head, create_head
from training.recipe import Recipe, recipe_from
from training.state import Training
from training.step import Stepper

CLASSES = 10_000
CASES = {"mobilefacenet": 64, "iresnet50": 16}
CLIP, LR, MOMENTUM, DECAY = 5.0, 0.1, 0.9, 5e-4
QUIET = 0.1
"""Processors that other work may use during a step that counts."""
Step = Callable[[Batch], float]


@dataclass(frozen=True)
class Variant:
    """What a step does differently from the plain loop."""

    bfloat16: bool = False
    channels_last: bool = False
    fused: bool = False
    compiled: bool = False


PLAIN = Variant()
OURS = Variant(bfloat16=True, channels_last=True, fused=True)
VARIANTS = {
    "channels last": Variant(channels_last=True),
    "bfloat16": Variant(bfloat16=True),
    "fused SGD": Variant(fused=True),
    "bfloat16, channels last": Variant(bfloat16=True, channels_last=True),
    "all three, compiled": Variant(True, True, True, compiled=True),
}


def network(name: str) -> tuple[Backbone, Head]:
    """The same weights every time."""
    torch.manual_seed(0)
    return create_backbone(name), create_head("arcface", 512, CLASSES, seed=0)


def plain_step(name: str, variant: Variant) -> Step:
    """A loop as one writes it first, with parts of ours on demand."""
    backbone, head = network(name)
    if variant.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    parameters = [*backbone.parameters(), *head.parameters()]
    fused = {"fused": True} if variant.fused else {}
    optimizer = torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        **fused,
    )
    called: Any = torch.compile(backbone) if variant.compiled else backbone
    backbone.train()

    def step(batch: Batch) -> float:
        images = backbone.preprocessing.apply(batch.images)
        if not variant.channels_last:
            images = images.contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bfloat16):
            embeddings = called(images)
        loss = head(embeddings.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def our_recipe(name: str) -> Recipe:
    """The settings of ``plain_step``, as a recipe."""
    return recipe_from(
        {
            "backbone": {"name": name},
            "head": {"name": "arcface"},
            "optim": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "clip": CLIP},
            "run": {"amp": "bf16", "device": "cpu"},
        },
        name,
    )


def our_step(name: str) -> Step:
    """The trainer's own step."""
    recipe = our_recipe(name)
    backbone, head = network(name)
    backbone = backbone.to(memory_format=torch.channels_last)
    training = Training(
        recipe,
        Ranks(torch.device("cpu")),
        {},
        backbone,
        head,
        build_optimizer(recipe, backbone, head),
        torch.amp.GradScaler("cpu", enabled=False),
        loader=None,  # type: ignore[arg-type] - batches are given
    )
    stepper = Stepper(training, backbone, torch.bfloat16)

    def step(batch: Batch) -> float:
        figures = stepper.gradients(batch)
        stepper.update(figures)
        return figures.loss

    return step


def random_batch(size: int) -> Batch:
    """Noise: the time of a step does not depend on the picture."""
    rng = np.random.default_rng(0)
    chips = torch.from_numpy(rng.integers(0, 256, (size, 112, 112, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, size))
    return Batch(chips.permute(0, 3, 1, 2), labels, torch.arange(size))


def busy_seconds() -> tuple[float, float]:
    """CPU time since the start, of the whole machine and of this process. NaN without /proc."""
    try:
        with Path("/proc/stat").open() as stream:
            user, nice, system, _, _, irq, softirq = map(int, stream.readline().split()[1:8])
    except (OSError, ValueError):
        return float("nan"), float("nan")
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    return (user + nice + system + irq + softirq) / ticks, own.user + own.system


def timed(
    steps: dict[str, Step], batch: Batch, rounds: int, wait: float
) -> dict[str, dict[str, float]]:
    """Milliseconds a step, median and quartiles over alternating rounds, and images a second.

    For ``wait`` seconds, steps during which other processes kept more than QUIET processors
    busy do not count and are done again; "others" is the most that a counted one had beside it.
    """
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    others = dict.fromkeys(steps, 0.0)
    for step in steps.values():
        step(batch)  # the first warms up
    deadline = time.monotonic() + wait
    while min(map(len, seconds.values())) < rounds:
        for label, step in steps.items():
            machine, own = busy_seconds()
            begun = time.perf_counter()
            step(batch)
            taken = time.perf_counter() - begun
            machine, own = (b - a for a, b in zip((machine, own), busy_seconds(), strict=True))
            beside = (machine - own) / taken
            if beside > QUIET and time.monotonic() < deadline:
                time.sleep(1)
                continue
            seconds[label].append(taken)
            others[label] = max(others[label], beside)
    result = {}
    for label, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        result[label] = {
            "ms": median * 1e3,
            "ms_q1": low * 1e3,
            "ms_q3": high * 1e3,
            "steps": len(values),
            "images_per_second": len(batch.labels) / median,
            "others": others[label],
        }
    for figures in result.values():
        figures["speedup"] = result["plain"]["ms"] / figures["ms"]
    return result


def real_batches(faces: Path | None, size: int, steps: int) -> tuple[list[Batch], str]:
    """Batches of chips for the curves, and what they are of."""
    rng = np.random.default_rng(1)
    if faces is None:
        prints = torch.from_numpy(rng.integers(0, 256, (500, 8, 8, 3)).astype(np.float32))
        prints = torch.nn.functional.interpolate(prints.permute(0, 3, 1, 2), 112, mode="bicubic")
        batches = []
        for _ in range(steps):
            labels = torch.from_numpy(rng.integers(0, len(prints), size))
            noisy = prints[labels] + 25 * torch.randn(size, 3, 112, 112)
            batches.append(Batch(noisy.clamp(0, 255).byte(), labels, labels))
        return batches, "blobs, 500 identities"
    source: FaceSource = ImageFolder(faces)
    order = rng.permutation(len(source))
    batches = []
    for start in range(steps):
        rows = order[np.arange(start * size, (start + 1) * size) % len(order)]
        chips = torch.from_numpy(np.stack([source.chip(int(row)) for row in rows]))
        labels = torch.from_numpy(source.labels[rows])
        batches.append(Batch(chips.permute(0, 3, 1, 2), labels, torch.from_numpy(rows)))
    return batches, f"{source.origin}: {len(source):,} photos of {source.num_classes:,} identities"


def curves(name: str, batches: list[Batch]) -> dict[str, Any]:
    """Losses of both on the same batches from the same weights, and how far they part."""
    plain, ours = plain_step(name, PLAIN), our_step(name)
    losses = {"plain": [plain(b) for b in batches], "ours": [ours(b) for b in batches]}
    a, b = np.array(losses["plain"]), np.array(losses["ours"])
    tenth = max(1, len(a) // 6)
    return {
        **losses,
        "mean_difference": float((b - a).mean()),
        "mean_relative_difference": float((np.abs(b - a) / a).mean()),
        "last_mean": {"plain": float(a[-tenth:].mean()), "ours": float(b[-tenth:].mean())},
        "correlation": float(np.corrcoef(a, b)[0, 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, help="NAME/*.jpg, 112x112 (default: blobs)")
    parser.add_argument("--only", choices=sorted(CASES), action="append")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--curve-steps", type=int, default=60, help="0: no curves")
    parser.add_argument("--variants", action="store_true", help="time each ingredient alone")
    parser.add_argument(
        "--wait", type=float, default=0, help="repeat disturbed steps for up to so many seconds"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.faces is not None and not args.faces.is_dir():
        parser.error(f"--faces {args.faces}: no such folder")
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "classes": CLASSES,
        "steps": {},
        "curves": {},
    }
    print(f"torch {report['torch']}, {report['threads']} threads, {report['processor']}")
    print()
    print("| backbone | batch | loop | ms a step (quartiles) | images/s | times plain | others |")
    print("|---|---|---|---|---|---|---|")
    for name, size in CASES.items():
        if args.only and name not in args.only:
            continue
        steps = {"plain": plain_step(name, PLAIN), "ours": our_step(name)}
        if args.variants:
            steps |= {label: plain_step(name, variant) for label, variant in VARIANTS.items()}
        report["steps"][name] = timed(steps, random_batch(size), args.rounds, args.wait)
        for label, r in report["steps"][name].items():
            print(
                f"| {name} | {size} | {label} | {r['ms']:.0f} ({r['ms_q1']:.0f} to "
                f"{r['ms_q3']:.0f}) | {r['images_per_second']:.1f} | {r['speedup']:.2f} | "
                f"{r['others']:.2f} |",
                flush=True,
            )
    for name, size in CASES.items():
        if not args.curve_steps or (args.only and name not in args.only):
            continue
        batches, origin = real_batches(args.faces, size, args.curve_steps)
        curve = report["curves"][name] = {"data": origin, **curves(name, batches)}
        last = curve["last_mean"]
        print(
            f"\n{name}, {len(batches)} steps on {origin}:\n  loss {curve['plain'][0]:.3f} at "
            f"first; at last {last['plain']:.3f} plain, {last['ours']:.3f} ours; mean difference "
            f"{curve['mean_difference']:+.3f}, relative {curve['mean_relative_difference']:.2%}, "
            f"correlation {curve['correlation']:.3f}"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
