"""The pictures of benchmarks/study_report.py. Drawn through matplotlib's objects, not pyplot."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import (  # noqa: E402 - the repository's root must be on the path first
    LOSSES,
    MARGINS,
    PLANE,
    QUEUE,
    QUEUES,
    SCALE,
    SIGMAS,
    slug,
)

FAR = "0.001"
BLUE, ORANGE, INK, GRID = "#1f5fa8", "#d9771c", "#222222", "#d9d9d9"
COLOURS = ("#1f5fa8", "#d9771c", "#2f8f5b", "#b23a48", "#7a4fa3", "#8a6d3b", "#4f9fb8", "#555555")

Result = dict[str, Any]


def tar(result: Result) -> float:
    value: float = result["test"]["tar"][FAR]
    return value


def chosen(path: list[dict[str, Any]], folds: Sequence[int] = range(5)) -> dict[str, Any]:
    """The point that the selection people and half of LFW choose: the best TAR on the former
    among those that lose at most 0.3 points on the latter."""
    guard = [float(np.mean([p["lfw"]["folds"][f] for f in folds])) for p in path]
    allowed = [p for p, g in zip(path, guard, strict=True) if g >= guard[0] - 0.003]
    return max(allowed, key=lambda p: p["select"]["tar"][FAR])


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color=GRID, lw=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def draw_boundaries() -> Any:
    """The angle to the other class at which a sample at a given angle to its own is undecided,
    from the heads' own logits; for elastic heads the band that 90 % of the drawn margins span."""
    import torch

    from training.heads import create_head

    figure, axes = canvas(11, 3.4, columns=4)
    theta = torch.linspace(0, math.pi / 2, 181, dtype=torch.float64)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("softmax on the sphere", "normface", {}),
        ("ArcFace, m = 0.5", "arcface", {"margin": 0.5}),
        ("CosFace, m = 0.35", "cosface", {"margin": 0.35}),
        ("ElasticFace, sigma = 0.05, 90 % band", "", {}),
    ]
    for axis, (title, name, options) in zip(axes.flat, cases, strict=True):
        elastic = [("elastic-arc", ORANGE, 0.5), ("elastic-cos", BLUE, 0.35)]
        drawn = (
            [(name, ORANGE, options)]
            if name
            else [(kind, colour, {"margin": m, "sigma": 0.05}) for kind, colour, m in elastic]
        )
        for kind, colour, extra in drawn:
            head = create_head(kind, 2, 2, scale=1.0, **extra).train()
            with torch.no_grad():
                head.weight.copy_(torch.eye(2))
            rows = torch.stack((theta.cos(), theta.sin()), dim=1).float()
            labels = torch.zeros(len(rows), dtype=torch.int64)
            draws = 400 if kind.startswith("elastic") else 1
            psi = torch.stack([head.logits(rows, labels)[:, 0].detach() for _ in range(draws)])
            edge = torch.rad2deg(torch.acos(psi.clamp(-1, 1))).numpy()
            degrees = torch.rad2deg(theta).numpy()
            low, mid, high = np.percentile(edge, (5, 50, 95), axis=0)
            axis.plot(degrees, mid, color=colour, lw=1.8, label=kind if draws > 1 else None)
            if draws > 1:
                axis.fill_between(degrees, low, high, color=colour, alpha=0.3, lw=0)
        axis.plot([0, 90], [0, 90], color=INK, lw=0.8, ls=":")
        axis.set(xlim=(0, 90), ylim=(0, 120), xlabel="angle to own class, degrees")
        axis.set_title(title, fontsize=9, loc="left")
        if not name:
            axis.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel("angle to the other class, degrees")
    return figure


def draw_plane(work: Path) -> Any | None:
    files = {loss: work / "embeddings" / f"{slug(f'plane {loss}')}.npz" for loss in PLANE}
    files = {loss: file for loss, file in files.items() if file.exists()}
    if not files:
        return None
    figure, axes = canvas(10.5, 7.2, columns=3, rows=2)
    for axis in list(axes.flat)[len(files) :]:
        axis.set_visible(False)
    for axis, (loss, file) in zip(axes.flat, files.items(), strict=False):
        with np.load(file) as data:
            rows, labels, weights = data["rows"], data["labels"], data["weights"]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        centres = np.stack([unit[labels == c].mean(axis=0) for c in np.unique(labels)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        angle = np.degrees(np.arccos((unit * centres[labels]).sum(axis=1).clip(-1, 1)))
        shown = rows if loss == "softmax" else unit
        reach = float(np.abs(shown).max()) * 1.15
        for person in np.unique(labels):
            mine, colour = labels == person, COLOURS[person % len(COLOURS)]
            axis.scatter(*shown[mine].T, s=9, color=colour, alpha=0.7, lw=0)
            direction = weights[person] / np.linalg.norm(weights[person]) * reach * 0.98
            axis.plot([0, direction[0]], [0, direction[1]], color=colour, lw=0.8)
            axis.annotate(
                f"{angle[mine].mean():.1f}°", direction, fontsize=7, color=colour, ha="center"
            )
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axis.set_title(
            f"{loss}: spread {angle.mean():.1f}°, {angle.std():.1f}° deviation",
            fontsize=9,
            loc="left",
        )
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def draw_heads(groups: dict[tuple[str, int], list[Result]]) -> Any | None:
    if not groups:
        return None
    figure, axes = canvas(10, 4.2, columns=2)
    measures: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("test people: TAR at FAR 1e-3, %", tar),
        ("LFW View 2 accuracy, %", lambda r: float(r["lfw"]["accuracy"])),
    )
    for axis, (label, measure) in zip(axes.flat, measures, strict=True):
        for at, loss in enumerate(LOSSES):
            for queue, colour, shift in ((0, BLUE, -0.14), (QUEUE, ORANGE, 0.14)):
                values = [100 * measure(r) for r in groups.get((loss, queue), [])]
                if not values:
                    continue
                axis.scatter(values, [at + shift] * len(values), s=16, color=colour, alpha=0.6)
                axis.plot(
                    [np.mean(values)] * 2,
                    [at + shift - 0.12, at + shift + 0.12],
                    color=colour,
                    lw=2.2,
                    label=("with BroadFace" if queue else "plain") if at == 0 else None,
                )
        axis.set_yticks(range(len(LOSSES)), LOSSES)
        axis.invert_yaxis()
        axis.set_xlabel(label)
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_queue(points: dict[tuple[int, bool], list[Result]]) -> Any | None:
    if not any(queue for queue, _ in points):
        return None
    figure, axes = canvas(10, 3.8, columns=2)
    sizes = (0, *QUEUES)
    measures: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("test people: TAR at FAR 1e-3, %", tar),
        ("LFW View 2 accuracy, %", lambda r: float(r["lfw"]["accuracy"])),
    )
    for axis, (label, measure) in zip(axes.flat, measures, strict=True):
        for compensate, colour, name in (
            (True, ORANGE, "with compensation"),
            (False, BLUE, "without"),
        ):
            means = []
            for at, queue in enumerate(sizes):
                group = points.get((queue, compensate or not queue), [])
                values = [100 * measure(r) for r in group]
                axis.scatter([at] * len(values), values, s=14, color=colour, alpha=0.5)
                means.append(np.mean(values) if values else np.nan)
            axis.plot(range(len(sizes)), means, color=colour, lw=2, label=name)
        axis.set_xticks(range(len(sizes)), [f"{s:,}" for s in sizes])
        axis.set(xlabel="queue size", ylabel=label)
    axes[0, 0].legend(fontsize=8, loc="lower left")
    return figure


def draw_sweep(grid: np.ndarray) -> Any | None:
    if np.isnan(grid).all():
        return None
    figure, axes = canvas(5.4, 4.2)
    axis = axes[0, 0]
    axis.grid(False)
    image = axis.imshow(100 * grid, cmap="viridis", aspect="auto")
    middle = np.nanmean(100 * grid)
    for row in range(len(MARGINS)):
        for column in range(len(SIGMAS)):
            value = 100 * grid[row, column]
            if not np.isnan(value):
                ink = "white" if value < middle else "black"
                axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink)
    axis.set_xticks(range(len(SIGMAS)), [f"{s:g}" for s in SIGMAS])
    axis.set_yticks(range(len(MARGINS)), [f"{m:g}" for m in MARGINS])
    axis.set(xlabel="sigma", ylabel="margin m")
    axis.set_title(f"elastic-cos, s = {SCALE:g}: TAR at FAR 1e-3, %", fontsize=9, loc="left")
    figure.colorbar(image, ax=axis)
    return figure


def draw_finetune(paths: dict[str, list[dict[str, Any]]]) -> Any | None:
    if not paths:
        return None
    figure, axes = canvas(7.6, 4.8)
    axis = axes[0, 0]
    for (label, path), colour in zip(paths.items(), COLOURS, strict=False):
        x = [100 * p["lfw"]["accuracy"] for p in path]
        y = [100 * p["test"]["tar"][FAR] for p in path]
        axis.plot(x, y, "o-", color=colour, ms=4, lw=1.5, label=label)
        best = chosen(path)
        axis.scatter(
            100 * best["lfw"]["accuracy"],
            100 * best["test"]["tar"][FAR],
            s=110,
            facecolors="none",
            edgecolors=colour,
            lw=1.6,
        )
    first = next(iter(paths.values()))
    for p in first:
        if p["alpha"] in (0.0, 0.5, 1.0):
            axis.annotate(
                f"alpha {p['alpha']:g}",
                (100 * p["lfw"]["accuracy"], 100 * p["test"]["tar"][FAR]),
                xytext=(5, -11),
                textcoords="offset points",
                fontsize=8,
            )
    base = first[0]
    axis.axvline(100 * base["lfw"]["accuracy"] - 0.3, color=INK, lw=0.8, ls=":")
    axis.axhline(100 * base["test"]["tar"][FAR] + 12, color=INK, lw=0.8, ls=":")
    axis.set(xlabel="LFW View 2 accuracy, %", ylabel="test people: TAR at FAR 1e-3, %")
    axis.legend(fontsize=8, loc="lower left")
    return figure
