"""The gallery at 10 thousand, 100 thousand and a million templates, beside bare FAISS.

    python benchmarks/gallery.py --lfw lfw --work bench-gallery --json gallery.json
    python benchmarks/gallery.py --lfw lfw --work bench-gallery --sizes 10000 --dims 128

Vectors are drawn around real ones, from a fixed seed: a person's centre is a mixture of two LFW
people's embeddings (bundled pack), with noise; five templates a person scatter around it as the
photos of one LFW person do. For 512 dimensions the same is turned into a random subspace, noise in
all of them. Half of the probes are further photos of enrolled people, half of strangers.

For each size, dimension and type of index it prints: seconds to have the index ready (opening the
gallery, and making the index where it is not there); to open and give a first answer, in a fresh
process; the median and 95th percentile of one search and of a batch of 64, with their ratio to bare
FAISS (the same type of index, the same neighbours, nothing else; turn and turn about); bytes a
template on disk; how often the first person (of enrolled people's probes, and of all) and the first
five are those of a scoring of everything in float64. "flat / this" is how many times faster one
search is than the gallery's exact search of float32, and than bare IndexFlatIP. Then eight threads
search while one enrols. With --many N, each type's answers to N further probes, one at a time, are
compared with those of flat. Galleries stay in --work, and are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from facerec.types import EmbeddingContract, ThresholdTable  # noqa: E402 - after the path
from gallery import Gallery, NewTemplate  # noqa: E402
from gallery.engines import KINDS  # noqa: E402
from gallery.people import PeopleIndex  # noqa: E402

EACH = 5
PROBES = 1000
BATCH = 64
TABLE = ThresholdTable((1e-1, 1e-4), (0.3, 0.6), (0.0, 0.1), "made up for the benchmark")


def contract(dim: int) -> EmbeddingContract:
    return EmbeddingContract(
        "00" * 32, "arcface-112", 112, "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False, dim
    )


# Vectors


class Crowd:
    """People drawn around real embeddings: ``centres`` of anybody, ``views`` of somebody."""

    def __init__(self, real: np.ndarray, labels: np.ndarray, dim: int) -> None:
        people, first, counts = np.unique(labels, return_index=True, return_counts=True)
        means = np.add.reduceat(real, first) / counts[:, None]
        self.mean = means.mean(axis=0)
        self.between = means - self.mean
        several = np.isin(labels, people[counts >= 4])
        self.within = (real - means[labels])[several]
        self.dim = dim
        turn = np.random.default_rng(1).standard_normal((dim, real.shape[1]))
        self.turn = np.linalg.qr(turn)[0] if dim > real.shape[1] else np.eye(dim, real.shape[1])

    def centres(self, rng: np.random.Generator, n: int) -> np.ndarray:
        a, b = rng.integers(0, len(self.between), (2, n))
        weight = rng.uniform(0.2, 0.8, (n, 1))
        mixed = weight * self.between[a] + (1 - weight) * self.between[b]
        mixed *= np.linalg.norm(self.between[a], axis=1, keepdims=True) / np.linalg.norm(
            mixed, axis=1, keepdims=True
        )
        return self.mean + mixed

    def views(self, rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
        rows = centres + self.within[rng.integers(0, len(self.within), len(centres))]
        rows = rows @ self.turn.T
        size = np.linalg.norm(self.within, axis=1).mean()
        rows += rng.standard_normal(rows.shape) * 0.3 * size / self.dim**0.5
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.astype(np.float32)


def real_embeddings(lfw: Path, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, 128) embeddings of LFW and (n,) labels, in order of labels."""
    cache = work / "lfw.npz"
    if not cache.exists():
        from facerec.image import load_image
        from facerec.packs import find_pack
        from facerec.pipeline import Pipeline

        pipeline = Pipeline.load(find_pack("bundled"), device="cpu")
        rows, labels = [], []
        for label, folder in enumerate(sorted(p for p in lfw.iterdir() if p.is_dir())):
            for faces in pipeline.extract([load_image(p) for p in sorted(folder.glob("*.jpg"))]):
                if faces:
                    rows.append(max(faces, key=lambda f: np.ptp(f.box_xyxy[::2])).embedding)
                    labels.append(label)
        dense = np.unique(np.array(labels), return_inverse=True)[1]
        np.savez(cache, rows=np.stack(rows), labels=dense)
    data = np.load(cache)
    return data["rows"], data["labels"]


def probes_of(
    crowd: Crowd, people: int, count: int = PROBES, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """(count, d) probes, and whose they are: a person's number, -1 for a stranger's."""
    rng = np.random.default_rng(seed)
    whose = np.where(np.arange(count) % 2 == 0, rng.integers(0, people, count), -1)
    all_centres = crowd.centres(np.random.default_rng(2), people)
    strangers = crowd.centres(rng, count)
    centres = np.where(whose[:, None] >= 0, all_centres[whose], strangers)
    return crowd.views(rng, centres), whose


def fill(folder: Path, crowd: Crowd, people: int) -> float:
    """Make the gallery through its own transactions; seconds."""
    began = time.perf_counter()
    rng = np.random.default_rng(4)
    centres = crowd.centres(np.random.default_rng(2), people)
    with Gallery.open(
        folder, contract=contract(crowd.dim), thresholds=TABLE, pack_name="bench", index="flat"
    ) as gallery:
        for start in range(0, people, 2000):
            some = range(start, min(people, start + 2000))
            with gallery.writing() as change:
                ids = [change.add_identity(f"person {i}") for i in some]
                new = []
                for view in range(EACH):
                    rows = crowd.views(rng, centres[some.start : some.stop])
                    new += [
                        (ids[i], NewTemplate(row, f"{some[i]}-{view}", f"{some[i]:060x}{view:04x}",
                                             0.9))
                        for i, row in enumerate(rows)
                    ]  # fmt: skip
                change.add_templates(new)
    return time.perf_counter() - began


# Measuring


def rounds_for(once: Callable[[int], object], seconds: float, most: int) -> int:
    began = time.perf_counter()
    once(0)
    return int(np.clip(seconds / (time.perf_counter() - began), 5, most))


def measure(
    folder: Path,
    dim: int,
    kind: str,
    probes_and_whose: tuple[np.ndarray, np.ndarray],
    right: list[list[int]],
    seconds: float,
) -> dict[str, Any]:
    """Figures of one type of index on one gallery."""
    probes, whose = probes_and_whose
    report: dict[str, Any] = {"kind": kind}
    began = time.perf_counter()
    with Gallery.open(folder, contract=contract(dim), pack_name="bench", index=kind) as gallery:
        if gallery.live.kind != kind or not (folder / "gallery.index").exists():
            gallery.rebuild_index()
        report["build_s"] = time.perf_counter() - began
        assert gallery.live.kind == kind
    # An engine's file that another type has left there is none of flat's.
    names = ["gallery.index"] + ["gallery.index.engine"] * (kind != "flat")
    files = [folder / name for name in names]
    report["index_bytes"] = sum(p.stat().st_size for p in files)
    fresh = subprocess.run(
        [sys.executable, __file__, "--open", str(folder), kind, str(dim)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report |= json.loads(fresh.stdout)
    with Gallery.open(folder, contract=contract(dim), pack_name="bench", index=kind) as gallery:
        found = [
            [c.identity_id for c in d.candidates]
            for d in gallery.identify(probes, 5, threshold=0.5)
        ]
        report["same_first"] = float(
            np.mean([f[0] == r[0] for f, r in zip(found, right, strict=True)])
        )
        report["same_first_of_enrolled"] = float(
            np.mean([f[0] == r[0] for f, r, w in zip(found, right, whose, strict=True) if w >= 0])
        )
        report["same_five"] = float(np.mean([f == r for f, r in zip(found, right, strict=True)]))
        report["templates"] = len(gallery)

        def one(i: int) -> object:
            return gallery.identify(probes[i % PROBES][None], 5, threshold=0.5)

        def batch(i: int) -> object:
            at = (i * BATCH) % (PROBES - BATCH)
            return gallery.identify(probes[at : at + BATCH], 5, threshold=0.5)

        with gallery.live.searching() as state:
            bare_one, bare_batch = bare(state.people, kind, probes)
        n_one, n_batch = rounds_for(one, seconds, 300), rounds_for(batch, seconds, 30)
        # Turn and turn about, so that what else the machine does falls on both alike.
        for name, ours, theirs, n in (("one", one, bare_one, n_one),
                                      ("batch", batch, bare_batch, n_batch)):  # fmt: skip
            mine, its = alternately(ours, theirs, n)
            report[name], report[f"faiss_{name}"] = summary(mine), summary(its)
            report[f"ratio_{name}"] = float(np.median(mine) / np.median(its))
    return report


def answers(folder: Path, dim: int, kind: str, probes: np.ndarray, at_once: int) -> list[list[int]]:
    """The five people nearest to each probe, as the gallery says when asked so many at once."""
    with Gallery.open(folder, contract=contract(dim), pack_name="bench", index=kind) as gallery:
        assert gallery.live.kind == kind
        return [
            [candidate.identity_id for candidate in decision.candidates]
            for start in range(0, len(probes), at_once)
            for decision in gallery.identify(probes[start : start + at_once], 5, threshold=0.5)
        ]


def agreement(ours: list[list[int]], flat: list[list[int]], whose: np.ndarray) -> dict[str, Any]:
    first = np.array([a[:1] == b[:1] for a, b in zip(ours, flat, strict=True)])
    return {
        "probes": len(first),
        "other_first": int((~first).sum()),
        "other_first_of_enrolled": int((~first & (whose >= 0)).sum()),
        "other_five": sum(a != b for a, b in zip(ours, flat, strict=True)),
    }


def alternately(
    ours: Callable[[int], object], theirs: Callable[[int], object], rounds: int
) -> tuple[list[float], list[float]]:
    mine, its = [], []
    for i in range(rounds):
        for call, times in ((ours, mine), (theirs, its)):
            began = time.perf_counter()
            call(i)
            times.append((time.perf_counter() - began) * 1e3)
    return mine, its


def summary(times: list[float]) -> dict[str, float]:
    low, mid, high = np.percentile(times, [25, 50, 75])
    return {"p25": low, "p50": mid, "p75": high, "p95": float(np.percentile(times, 95)),
            "rounds": len(times)}  # fmt: skip


def bare(people: PeopleIndex, kind: str, probes: np.ndarray) -> tuple[Any, Any]:
    """FAISS alone: the same type, the same number of neighbours, one thread for one query."""
    import faiss

    width = 256 if kind == "int8" else 32
    if kind == "flat":
        index = faiss.IndexFlatIP(probes.shape[1])
        index.add(people.index.vectors(people.owners[0]))
    else:
        engine: Any = people.index._engine  # type: ignore[attr-defined]
        index = engine.index
        if kind in ("hnsw", "ivf"):
            probes = np.rint(probes * engine._scale)
        else:
            probes = engine._coded(probes * engine._scale)[0]
    parameters = None
    if kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=256)
    elif kind == "ivf":
        parameters = faiss.SearchParametersIVF(nprobe=128)

    def search(queries: np.ndarray) -> object:
        return index.search(queries, width, params=parameters)

    def one(i: int) -> object:
        faiss.omp_set_num_threads(1)
        return search(probes[i % PROBES][None])

    def batch(i: int) -> object:
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        at = (i * BATCH) % (PROBES - BATCH)
        return search(probes[at : at + BATCH])

    return one, batch


def exact_people(folder: Path, dim: int, probes: np.ndarray) -> list[list[int]]:
    """The five people nearest to each probe, scored in float64 without any index."""
    found: list[dict[int, float]] = [{} for _ in probes]
    with (
        Gallery.open(folder, contract=contract(dim), pack_name="bench", index="flat") as gallery,
        gallery.live.searching() as state,
    ):
        ids, owners = state.people.owners
        for start in range(0, len(ids), 20_000):
            part = slice(start, start + 20_000)
            scores = state.people.index.vectors(ids[part]).astype(np.float64) @ probes.T
            take = min(60, len(scores))  # of which at most five are of one person
            rows = np.argpartition(-scores, take - 1, axis=0)[:take]
            for probe, best in enumerate(found):
                for row in rows[:, probe]:
                    owner, score = int(owners[part][row]), float(scores[row, probe])
                    if score > best.get(owner, -2.0):
                        best[owner] = score
    return [sorted(best, key=lambda o: -best[o])[:5] for best in found]


def open_fresh(folder: Path, kind: str, dim: int) -> None:
    """In a process of its own: seconds from the call to open until the first answer."""
    probe = np.zeros((1, dim), np.float32)
    probe[0, 0] = 1
    began = time.perf_counter()
    with Gallery.open(folder, contract=contract(dim), pack_name="bench", index=kind) as gallery:
        gallery.identify(probe, 5, threshold=0.5)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"open_s": seconds, "rss_bytes": peak}))


def concurrent(folder: Path, dim: int, kind: str, probes: np.ndarray, right: list[list[int]],
               seconds: float) -> dict[str, Any]:  # fmt: skip
    """Eight threads search while one enrols; what they find may only be what is there."""
    times: list[float] = []
    wrong: list[int] = []
    done = threading.Event()
    enrolled = [0]
    enrolling: list[float] = []
    with Gallery.open(folder, contract=contract(dim), pack_name="bench", index=kind) as gallery:
        before = {p.id for p in gallery.people()}
        latest = max(before)

        def search(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not done.is_set():
                i = int(rng.integers(PROBES))
                began = time.perf_counter()
                [decision] = gallery.identify(probes[i][None], 5, threshold=0.5)
                times.append((time.perf_counter() - began) * 1e3)
                old = [c.identity_id for c in decision.candidates if c.identity_id <= latest]
                if old != right[i][: len(old)] or (kind == "flat" and not old):
                    wrong.append(i)

        threads = [threading.Thread(target=search, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        rng = np.random.default_rng(9)
        while time.monotonic() < until:
            vector = rng.standard_normal(dim)
            vector /= np.linalg.norm(vector)
            number = enrolled[0] = enrolled[0] + 1
            began = time.perf_counter()
            gallery.enroll(f"late {number}", [NewTemplate(vector, "late", f"{number:064x}", 0.9)])
            enrolling.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.05)
        done.set()
        for thread in threads:
            thread.join()
        for number in range(1, enrolled[0] + 1):
            with gallery.writing() as change:
                change.remove_identity(change.identity(f"late {number}").id)
    return {
        "kind": kind, "searches": len(times), "enrolments": enrolled[0],
        "p50": float(np.median(times)), "p95": float(np.percentile(times, 95)),
        "per_second": len(times) / seconds, "wrong": len(wrong),
        "enrol_p50": float(np.median(enrolling)), "enrol_p95": float(np.percentile(enrolling, 95)),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> None:
    print(
        "| templates | d | type | ready s | open s | one: p50 / p95 ms | × FAISS | flat / this "
        "| IndexFlatIP / this | 64: p50 ms | × FAISS | bytes a template "
        "| same first, of the enrolled | same first | same five |"
    )
    print("|---" * 15 + "|")
    flats = {(r["templates"], r["dim"]): r for r in rows if r["kind"] == "flat"}
    for r in rows:
        flat = flats.get((r["templates"], r["dim"]))
        times = (
            [flat[name]["p50"] / r["one"]["p50"] for name in ("one", "faiss_one")] if flat else []
        )
        print(
            f"| {r['templates']:,} | {r['dim']} | {r['kind']} | {r['build_s']:.1f} | "
            f"{r['open_s']:.2f} | {r['one']['p50']:.2f} / {r['one']['p95']:.2f} | "
            f"{r['ratio_one']:.2f} | "
            + " | ".join(f"{t:.2f}" for t in times or [float("nan")] * 2)
            + f" | {r['batch']['p50']:.0f} | {r['ratio_batch']:.2f} | "
            f"{r['index_bytes'] / r['templates']:.0f} | {r['same_first_of_enrolled']:.4f} | "
            f"{r['same_first']:.4f} | "
            f"{r['same_five']:.4f} |"
        )


def main() -> None:
    if sys.argv[1:2] == ["--open"]:
        open_fresh(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=20, help="of searching, a figure")
    parser.add_argument("--load", type=float, default=10, help="seconds of eight threads")
    parser.add_argument("--many", type=int, default=0, help="further probes for the agreement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    real, labels = real_embeddings(args.lfw, args.work)
    report: dict[str, Any] = {"types": [], "stores": [], "load": [], "agreement": []}
    for dim in args.dims:
        crowd = Crowd(real, labels, dim)
        for size in args.sizes:
            people = size // EACH
            folder = args.work / f"{size}-{dim}"
            probes, whose = probes_of(crowd, people)
            if not (folder / "complete.json").exists():
                seconds = fill(folder, crowd, people)
                about = {"templates": size, "dim": dim, "fill_s": seconds,
                         "store_bytes": (folder / "gallery.db").stat().st_size}  # fmt: skip
                (folder / "complete.json").write_text(json.dumps(about))
            report["stores"].append(json.loads((folder / "complete.json").read_text()))
            right = exact_people(folder, dim, probes)
            further, owners = probes_of(crowd, people, args.many, seed=5)
            flat = answers(folder, dim, "flat", further, BATCH) if args.many else []
            for kind in args.kinds:
                row = {"dim": dim} | measure(
                    folder, dim, kind, (probes, whose), right, args.seconds
                )
                report["types"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if args.load and kind in ("flat", "int8"):
                    load = concurrent(folder, dim, kind, probes, right, args.load)
                    report["load"].append({"templates": size, "dim": dim} | load)
                    print(json.dumps(report["load"][-1]), file=sys.stderr, flush=True)
                if args.many and kind != "flat":
                    ours = answers(folder, dim, kind, further, 1)
                    about = {"templates": size, "dim": dim, "kind": kind}
                    report["agreement"].append(about | agreement(ours, flat, owners))
                    print(json.dumps(report["agreement"][-1]), file=sys.stderr, flush=True)
                if args.json:
                    args.json.write_text(json.dumps(report, indent=1) + "\n")
    table(report["types"])
    print(json.dumps({key: report[key] for key in ("stores", "load", "agreement")}))


if __name__ == "__main__":
    main()
