"""What a head's training step costs, against plain PyTorch and against its two GEMMs.

    python benchmarks/heads.py                  # all cases, about six minutes
    python benchmarks/heads.py --case broad     # those whose name has "broad" in it
    python benchmarks/heads.py --wait 120 --json heads.json   # on a machine shared with others

Head only: forward, backward and a plain SGD step, N = 64, d = 512, float32, two threads. Every
measurement is a process of its own; the contenders of a case take turns for several rounds, so
that a busy moment of the machine meets all of them; ``--wait`` repeats what other processes
disturbed, and "others" is how many processors those kept busy at worst. Contenders:

dense   what the formulas say, in plain autograd: normalised copies, the angles of all (M, C)
        pairs, a margin matrix, cross-entropy; BroadFace with one such loss for the encoder and
        one for the classifier.
lean    plain autograd that knows better: folded margins, only the targets' angles.
ours    training.heads and training.broadface.
floor   two GEMMs, (M, d) x (d, C) and (C, M) x (M, d), into buffers that exist, M = N + Q.

Memory is the peak of the resident set (ru_maxrss) over its size before the first step, when
weights and queue are already there; "weights" is what these took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

N, D = 64, 512
MARGIN, SIGMA, SCALE = 0.5, 0.05, 64.0
CASES: dict[str, dict[str, Any]] = {
    "elastic-arc C=10,000": {"classes": 10_000, "queue": 0, "steps": 12},
    "elastic-arc C=85,742": {"classes": 85_742, "queue": 0, "steps": 8},
    "broadface C=10,000 Q=2,000": {"classes": 10_000, "queue": 2_000, "steps": 4},
    "broadface C=10,000 Q=8,000": {"classes": 10_000, "queue": 8_000, "steps": 2},
    "broadface C=85,742 Q=2,000": {"classes": 85_742, "queue": 2_000, "steps": 2},
    "broadface C=85,742 Q=32,000": {"classes": 85_742, "queue": 32_000, "steps": 1},
}
CONTENDERS = ("floor", "ours", "lean", "dense")
QUIET = 0.1
"""Processors that other work may use during a measurement."""
TOO_LARGE = 16e9
"""A contender whose logits alone would need more bytes than this is left out."""


def rss() -> int:
    """Resident set now, bytes."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak() -> int:
    """Largest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def floor(classes: int, queue: int) -> Callable[[], None]:
    import torch

    rows, weight = torch.randn(N + queue, D), torch.randn(classes, D)
    block = min(N + queue, 2064)
    logits, grad = torch.empty(block, classes).normal_(), torch.zeros(classes, D)

    def step() -> None:
        for part in rows.split(block):
            out = logits[: len(part)]
            torch.mm(part, weight.t(), out=out)
            torch.mm(out.t(), part, out=grad)

    return step


def batch(classes: int) -> tuple[Any, Any]:
    import torch

    x = torch.randn(N, D) * 20 / D**0.5
    return x.requires_grad_(), torch.randint(classes, (N,))


def ours(classes: int, queue: int) -> Callable[[], None]:
    import torch

    from training.broadface import BroadFace
    from training.heads import create_head

    head = create_head("elastic-arc", D, classes)
    model: torch.nn.Module = head
    if queue:
        model = BroadFace(head, queue)
        stored = torch.randn(queue, D).mul_(20 / D**0.5)
        labels = torch.randint(classes, (queue,))
        model.fill(stored, head.weight.detach()[labels] + 0.001, labels)
    optimiser = torch.optim.SGD([head.weight], 0.1)

    def step() -> None:
        x, labels = batch(classes)
        optimiser.zero_grad()
        model(x, labels).backward()
        optimiser.step()

    return step


def dense_loss(x: Any, weight: Any, labels: Any) -> Any:
    """The formula: every angle, a margin for every pair (zero but for the targets)."""
    import torch
    import torch.nn.functional as F

    cosine = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1 + 1e-7, 1 - 1e-7)
    drawn = torch.normal(MARGIN, SIGMA, (len(x), 1))
    margins = torch.zeros_like(cosine).scatter_(1, labels[:, None], drawn)
    return F.cross_entropy(SCALE * torch.cos(torch.acos(cosine) + margins), labels)


def lean_loss(x: Any, weight: Any, labels: Any) -> Any:
    """The same value: angles of the targets alone."""
    import torch
    import torch.nn.functional as F

    cosine = F.linear(F.normalize(x), F.normalize(weight))
    target = cosine.gather(1, labels[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
    drawn = torch.normal(MARGIN, SIGMA, (len(x), 1))
    logits = SCALE * cosine.scatter(1, labels[:, None], torch.cos(torch.acos(target) + drawn))
    return F.cross_entropy(logits, labels)


def plain(classes: int, queue: int, loss: Callable[..., Any]) -> Callable[[], None]:
    import torch

    weight = torch.nn.Parameter(torch.empty(classes, D).normal_(std=0.01))
    stored = torch.randn(queue, D).mul_(20 / D**0.5)
    kept = torch.randint(classes, (queue,))
    then = weight.detach()[kept] + 0.001
    optimiser = torch.optim.SGD([weight], 0.1)

    def step() -> None:
        nonlocal stored, then, kept
        x, labels = batch(classes)
        optimiser.zero_grad()
        if not queue:
            loss(x, weight, labels).backward()
        else:
            now = weight.detach()
            move = stored.norm(dim=1, keepdim=True) / then.norm(dim=1, keepdim=True)
            rows = torch.cat([x.detach(), stored + move * (now[kept] - then)])
            encoder = loss(x, now, labels)
            classifier = loss(rows, weight, torch.cat([labels, kept]))
            (encoder + classifier).backward()
            stored = torch.cat([stored[N:], x.detach()])
            then, kept = torch.cat([then[N:], now[labels]]), torch.cat([kept[N:], labels])
        optimiser.step()

    return step


def work(contender: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
    """One process's measurement: the first step apart, then ``steps`` timed ones."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.mm(torch.randn(256, 256), torch.randn(256, 256))
    bare = rss()
    sizes = case["classes"], case["queue"]
    if contender in ("dense", "lean"):
        step = plain(*sizes, dense_loss if contender == "dense" else lean_loss)
    else:
        step = {"floor": floor, "ours": ours}[contender](*sizes)
    start, seconds = rss(), []
    for _ in range(case["steps"] + 1):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return {
        "first_s": seconds[0],
        "seconds": seconds[1:],
        "weights_bytes": start - bare,
        "peak_over_start_bytes": peak() - start,
        "peak_bytes": peak(),
        "torch": torch.__version__,
    }


def processor_seconds() -> float:
    """What all processes of the machine have used of its processors since it started."""
    values = [int(v) for v in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """What finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def await_quiet(end: float) -> None:
    """Return when the machine is idle, or at ``end`` on the monotonic clock."""
    while time.monotonic() < end:
        before = processor_seconds()
        time.sleep(2)
        if (processor_seconds() - before) / 2 < QUIET:
            return


def measure(contender: str, case: str, threads: int, wait: float) -> dict[str, Any]:
    """``work`` in a fresh process; again, for up to ``wait`` seconds, if others were busy too.

    ``others`` is the number of processors that the rest of the machine kept busy meanwhile. The
    quietest try counts.
    """
    command = [sys.executable, __file__, "--work", contender, case, "--threads", str(threads)]
    end, best = time.monotonic() + wait, None
    while best is None or (best["others"] > QUIET and time.monotonic() < end):
        await_quiet(end)
        begin, before, own = time.monotonic(), processor_seconds(), own_seconds()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        used = processor_seconds() - before - (own_seconds() - own)
        found: dict[str, Any] = json.loads(done.stdout)
        found["others"] = max(used, 0.0) / (time.monotonic() - begin)
        if best is None or found["others"] < best["others"]:
            best = found
    return best


def contenders(case: dict[str, Any]) -> list[str]:
    logits = (N + case["queue"]) * case["classes"] * 4
    limit = {"dense": TOO_LARGE / 7, "lean": TOO_LARGE / 5}
    return [name for name in CONTENDERS if logits < limit.get(name, float("inf"))]


def run(name: str, rounds: int, threads: int, wait: float) -> list[dict[str, Any]]:
    """All rounds of a case, contenders taking turns; one row a contender."""
    case, found = CASES[name], {}
    names = contenders(case)
    for _ in range(rounds):
        for contender in names:
            found.setdefault(contender, []).append(measure(contender, name, threads, wait))
    rows = []
    for contender in names:
        parts = found[contender]
        seconds = [s for part in parts for s in part["seconds"]]
        several = seconds if len(seconds) > 1 else seconds * 2
        low, middle, high = quantiles(several, n=4, method="inclusive")
        rows.append(
            {
                "case": name,
                "contender": contender,
                "median_s": middle,
                "quartiles_s": [low, high],
                "steps": len(seconds),
                "peak_over_start_gb": max(p["peak_over_start_bytes"] for p in parts) / 1e9,
                "weights_gb": max(p["weights_bytes"] for p in parts) / 1e9,
                "peak_gb": max(p["peak_bytes"] for p in parts) / 1e9,
                "others": max(p["others"] for p in parts),
                "torch": parts[0]["torch"],
            }
        )
    mine = next(row for row in rows if row["contender"] == "ours")
    for row in rows:
        row["ours_over_it"] = mine["median_s"] / row["median_s"]
        row["memory_ours_over_it"] = mine["peak_over_start_gb"] / row["peak_over_start_gb"]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        low, high = row["quartiles_s"]
        memory = "" if row["contender"] == "floor" else f"{row['memory_ours_over_it']:8.2f}"
        print(
            f"{row['case']:28} {row['contender']:6} {row['median_s']:8.3f} "
            f"[{low:7.3f}, {high:7.3f}] {row['ours_over_it']:7.2f}  "
            f"{row['peak_over_start_gb']:6.2f} GB + {row['weights_gb']:4.2f} {memory:8}  "
            f"{row['others']:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wait", type=float, default=0, help="seconds to repeat for quiet")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", nargs=2, metavar=("CONTENDER", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work[0], CASES[args.work[1]], args.threads)))
        return
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, load {load:.1f}")
    print(
        f"{'case':28} {'':6} {'s/step':>8} {'quartiles':^18} {'ours/it':>7}  "
        f"{'peak over start + weights':>22} {'ours/it':>8}  others"
    )
    rows = []
    for name in CASES:
        if args.case in name:
            found = run(name, args.rounds, args.threads, args.wait)
            show(found)
            rows += found
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if args.json:
        setting = {"threads": args.threads, "load": load, "n": N, "d": D, "rounds": args.rounds}
        args.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
