"""Tables and pictures of the experiments that benchmarks/study.py has finished.

    python benchmarks/study_report.py --work study                     # tables, as Markdown
    python benchmarks/study_report.py --work study --images docs/images

A difference between two losses is averaged over the seeds they share, and judged twice: by a
t-interval over the seeds (which training run), and by a bootstrap over the test people (which
faces), both 95 %. Only where neither holds zero does the table call it one. The bootstrap draws
the same people for every network (the vertex bootstrap, see ``facerec.intervals``), and finds each
network's threshold anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import (  # noqa: E402 - the repository's root must be on the path first
    FINETUNE,
    LOSSES,
    MARGINS,
    QUEUE,
    QUEUES,
    SIGMAS,
    slug,
)
from benchmarks.study_pictures import (  # noqa: E402
    FAR,
    Result,
    chosen,
    draw_boundaries,
    draw_finetune,
    draw_heads,
    draw_plane,
    draw_queue,
    draw_sweep,
    tar,
)

REPLICATES = 300
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's t by degrees of freedom."""


def results(work: Path) -> dict[str, Result]:
    """By name, those that are finished."""
    found = [json.loads(p.read_text()) for p in sorted((work / "results").glob("*.json"))]
    return {r["name"]: r for r in found}


class Replicates:
    """TAR at FAR 1e-3 of each network in each bootstrap sample of the test people."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, name: str) -> np.ndarray:
        """(REPLICATES,) float64, sample i of the same people for every network."""
        if name not in self._known:
            cache = self.work / "bootstrap" / f"{slug(name)}.npy"
            if not cache.exists():
                cache.parent.mkdir(exist_ok=True)
                with np.load(self.work / "embeddings" / f"{slug(name)}.npz") as data:
                    np.save(cache, bootstrapped(data["rows"], data["labels"]))
            self._known[name] = np.load(cache)
        return self._known[name]


def bootstrapped(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """TAR at FAR 1e-3 in each sample of people, the threshold found anew."""
    from facerec.metrics import allowed_count, threshold_for_fmr
    from facerec.pairs import genuine_subjects, pair_scores, top_impostors

    unit = rows.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    genuine, impostor = pair_scores(unit, labels)
    top = top_impostors(unit, labels, threshold_for_fmr(impostor, 4 * float(FAR)))
    who = np.searchsorted(top.people, genuine_subjects(labels))
    left, right = np.searchsorted(top.people, top.subjects).T
    rng = np.random.default_rng(0)
    tars = []
    for _ in range(REPLICATES):
        weight = np.bincount(rng.integers(0, len(top.people), len(top.people)))
        weight = np.pad(weight, (0, len(top.people) - len(weight)))
        drawn = weight * top.photos
        total = (int(drawn.sum()) ** 2 - int((drawn**2).sum())) // 2
        reached = np.cumsum(weight[left] * weight[right])
        at = int(np.searchsorted(reached, allowed_count(total, float(FAR)), side="right"))
        if at == len(top.scores):
            raise ValueError("the list of top impostors is too short")
        of_genuine = weight[who]
        tars.append(of_genuine[genuine > top.scores[at]].sum() / of_genuine.sum())
    return np.array(tars)


# Tables.


def heads_of(found: dict[str, Result]) -> dict[tuple[str, int], list[Result]]:
    """The heads' results by (loss, queue), seeds in order."""
    groups: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in found.values():
        if result["group"] == "heads":
            recipe = result["recipe"]
            groups[recipe["head"]["name"], recipe["broadface"]["queue_size"]].append(result)
    for group in groups.values():
        group.sort(key=seed_of)
    return groups


def percent(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * float(np.std(values, ddof=1)):.1f}"


def heads_table(groups: dict[tuple[str, int], list[Result]]) -> list[str]:
    lines = [
        "| loss | BroadFace | TAR at FAR 1e-2 | at 1e-3 | over people | EER | LFW | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for loss in LOSSES:
        for queue in (0, QUEUE):
            group = groups.get((loss, queue), [])
            if not group:
                continue
            low, high = np.mean([r["test"]["interval"][FAR] for r in group], axis=0)
            lines.append(
                f"| `{loss}` | {f'Q = {queue:,}' if queue else ''} | "
                f"{percent([r['test']['tar']['0.01'] for r in group])} | "
                f"{percent([tar(r) for r in group])} | {100 * low:.1f} to {100 * high:.1f} | "
                f"{percent([r['test']['eer'] for r in group])} | "
                f"{percent([r['lfw']['accuracy'] for r in group])} | {len(group)} |"
            )
    return lines


def difference(
    left: list[Result], right: list[Result], replicates: Replicates
) -> tuple[float, float, tuple[float, float], bool] | None:
    """right - left in points: mean, t half-width over seeds, interval over people, and whether
    both exclude zero. None without two common seeds."""
    by_seed = {seed_of(r): r for r in left}
    pairs = [(by_seed[seed_of(r)], r) for r in right if seed_of(r) in by_seed]
    if len(pairs) < 2:
        return None
    seeds = 100 * np.array([tar(b) - tar(a) for a, b in pairs])
    half = T_975[len(seeds) - 1] * float(seeds.std(ddof=1)) / math.sqrt(len(seeds))
    changes = [replicates(b["name"]) - replicates(a["name"]) for a, b in pairs]
    people = 100 * np.mean(changes, axis=0)
    low, high = np.percentile(people, (2.5, 97.5))
    mean = float(seeds.mean())
    both = abs(mean) > half and (low > 0 or high < 0)
    return mean, half, (float(low), float(high)), bool(both)


def differences_table(
    groups: dict[tuple[str, int], list[Result]], replicates: Replicates
) -> list[str]:
    lines = [
        "| compared | difference, points | over seeds | over people | holds |",
        "|---|---|---|---|---|",
    ]
    comparisons: list[tuple[str, tuple[str, int], tuple[str, int]]] = [
        (f"`{loss}`: with BroadFace − without", (loss, 0), (loss, QUEUE)) for loss in LOSSES
    ]
    comparisons += [
        (f"`{loss}` − `arcface`", ("arcface", 0), (loss, 0)) for loss in LOSSES if loss != "arcface"
    ]
    comparisons += [
        (f"`elastic-{kind}{plus}` − `{kind}face`", (f"{kind}face", 0), (f"elastic-{kind}{plus}", 0))
        for kind in ("cos",)
        for plus in ("", "+")
    ]
    for label, left, right in comparisons:
        if not (groups.get(left) and groups.get(right)):
            continue
        judged = difference(groups[left], groups[right], replicates)
        if judged is None:
            continue
        mean, half, (low, high), holds = judged
        lines.append(
            f"| {label} | {mean:+.1f} | {mean - half:+.1f} to {mean + half:+.1f} | "
            f"{low:+.1f} to {high:+.1f} | {'yes' if holds else 'no'} |"
        )
    return lines


def queue_points(found: dict[str, Result]) -> dict[tuple[int, bool], list[Result]]:
    """ArcFace's results by (queue size, compensated), 0 is the plain head; of the seeds that all
    of them have."""
    points: dict[tuple[int, bool], list[Result]] = defaultdict(list)
    for result in found.values():
        recipe = result["recipe"]
        if result["group"] in ("heads", "queue") and recipe["head"]["name"] == "arcface":
            points[recipe["broadface"]["queue_size"], recipe["broadface"]["compensate"]].append(
                result
            )
    if not points:
        return {}
    shared = set.intersection(*({seed_of(r) for r in group} for group in points.values()))
    return {key: [r for r in group if seed_of(r) in shared] for key, group in points.items()}


def seed_of(result: Result) -> int:
    seed: int = result["recipe"]["run"]["seed"]
    return seed


def queue_table(points: dict[tuple[int, bool], list[Result]]) -> list[str]:
    lines = ["| queue | compensated: TAR at FAR 1e-3 | LFW | not: TAR at FAR 1e-3 | LFW |"]
    lines.append("|---|---|---|---|---|")
    for queue in (0, *QUEUES):
        cells = []
        for compensate in (True, False):
            group = points.get((queue, compensate if queue else True), [])
            cells += [
                percent([tar(r) for r in group]) if group else "",
                percent([r["lfw"]["accuracy"] for r in group]) if group else "",
            ]
        lines.append(f"| {queue:,} | " + " | ".join(cells) + " |")
    return lines


def compensation_table(
    points: dict[tuple[int, bool], list[Result]], replicates: Replicates
) -> list[str]:
    """What compensation adds at each queue size, averaged over the shared seeds."""
    lines = ["| queue | compensated - not, points | over people |", "|---|---|---|"]
    for queue in QUEUES:
        both = points.get((queue, True), []), points.get((queue, False), [])
        pairs = list(zip(*(sorted(group, key=seed_of) for group in both), strict=True))
        if not pairs:
            continue
        mean = 100 * float(np.mean([tar(a) - tar(b) for a, b in pairs]))
        changes = [replicates(a["name"]) - replicates(b["name"]) for a, b in pairs]
        low, high = np.percentile(100 * np.mean(changes, axis=0), (2.5, 97.5))
        lines.append(f"| {queue:,} | {mean:+.2f} | {low:+.2f} to {high:+.2f} |")
    return lines


def sweep_grid(found: dict[str, Result]) -> np.ndarray:
    """(margins, sigmas) TAR at FAR 1e-3 of seed 0; NaN where there is none yet. CosFace is
    sigma 0."""
    grid = np.full((len(MARGINS), len(SIGMAS)), np.nan)
    for result in found.values():
        head = {"sigma": 0.0, **result["recipe"]["head"]}
        plain = not result["recipe"].get("broadface", {}).get("queue_size")
        swept = result["group"] in ("heads", "sweep") and head["name"] in ("cosface", "elastic-cos")
        if swept and plain and seed_of(result) == 0:
            grid[MARGINS.index(head["margin"]), SIGMAS.index(head["sigma"])] = tar(result)
    return grid


def sweep_table(grid: np.ndarray) -> list[str]:
    lines = ["| m \\ sigma | " + " | ".join(f"{s:g}" for s in SIGMAS) + " |"]
    lines.append("|---" * (len(SIGMAS) + 1) + "|")
    for margin, row in zip(MARGINS, grid, strict=True):
        cells = ("" if np.isnan(v) else f"{100 * v:.1f}" for v in row)
        lines.append(f"| {margin:g} | " + " | ".join(cells) + " |")
    return lines


def finetune_of(found: dict[str, Result]) -> dict[str, list[dict[str, Any]]]:
    """The path from base to result of each fine-tuning run, by its label."""
    return {
        label: found[f"finetune {label}"]["path"]
        for label in FINETUNE
        if f"finetune {label}" in found
    }


def finetune_table(paths: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| trained with | alpha | TAR at FAR 1e-2 | at 1e-3 | interval | gain | LFW | change | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, path in paths.items():
        base, best = path[0], chosen(path)
        for point in path:
            if point["alpha"] not in (0.0, 0.3, 0.5, 0.7, 1.0) and point is not best:
                continue
            test, accuracy = point["test"], point["lfw"]["accuracy"]
            low, high = test["interval"][FAR]
            lines.append(
                f"| {label} | {point['alpha']:g} | {100 * test['tar']['0.01']:.1f} | "
                f"{100 * test['tar'][FAR]:.1f} | {100 * low:.1f} to {100 * high:.1f} | "
                f"{100 * (test['tar'][FAR] - base['test']['tar'][FAR]):+.1f} | "
                f"{100 * accuracy:.2f} ± {100 * point['lfw']['std']:.2f} | "
                f"{100 * (accuracy - base['lfw']['accuracy']):+.2f} | "
                f"{'chosen' if point is best else ''} |"
            )
    return lines


def finetune_differences(
    paths: dict[str, list[dict[str, Any]]], replicates: Replicates
) -> list[str]:
    """What queue and elastic margin each add, at alpha 1 and at the chosen alpha."""
    lines = [
        "| at | compared | difference, points | interval over people |",
        "|---|---|---|---|",
    ]
    pairs = [
        ("elastic margin, over cosface", "cosface", "elastic-cos+"),
        ("BroadFace, over elastic-cos+", "elastic-cos+", "elastic-cos+ broadface"),
        ("both", "cosface", "elastic-cos+ broadface"),
    ]
    for alpha in (0.5, 1.0):
        for label, left, right in pairs:
            if left in paths and right in paths:
                a, b = (f"finetune {x} alpha={alpha:g}" for x in (left, right))
                change = 100 * (replicates(b) - replicates(a))
                low, high = np.percentile(change, (2.5, 97.5))
                points = [
                    next(p for p in paths[x] if p["alpha"] == alpha)["test"]["tar"][FAR]
                    for x in (left, right)
                ]
                mean = 100 * (points[1] - points[0])
                lines.append(
                    f"| alpha {alpha:g} | {label} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("study"))
    parser.add_argument("--images", type=Path, help="where the pictures go")
    args = parser.parse_args()
    found, replicates = results(args.work), Replicates(args.work)
    groups, points, paths = heads_of(found), queue_points(found), finetune_of(found)
    grid = sweep_grid(found)
    sections = {
        "Losses": heads_table(groups),
        "Differences in TAR at FAR 1e-3": differences_table(groups, replicates),
        "Queue": queue_table(points),
        "Compensation": compensation_table(points, replicates),
        "Sweep: TAR at FAR 1e-3, %": sweep_table(grid),
        "Fine-tuning": finetune_table(paths),
        "Fine-tuning, what adds what": finetune_differences(paths, replicates),
    }
    for title, lines in sections.items():
        print(f"### {title}\n", *lines, sep="\n", end="\n\n")
    if args.images:
        pictures = {
            "boundaries": draw_boundaries(),
            "plane": draw_plane(args.work),
            "losses": draw_heads(groups),
            "queue": draw_queue(points),
            "sweep": draw_sweep(grid),
            "finetune": draw_finetune(paths),
        }
        for name, figure in pictures.items():
            if figure is not None:
                figure.savefig(args.images / f"{name}.png", dpi=130)
                print(args.images / f"{name}.png", file=sys.stderr)


if __name__ == "__main__":
    main()
