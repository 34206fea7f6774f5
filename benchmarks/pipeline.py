"""Our pipeline beside insightface's FaceAnalysis: the same two ONNX files, the same photos.

    python benchmarks/pipeline.py --models DIR --lfw lfw

Measures photos per second from file to embeddings on the group photo that insightface
ships (6 faces) and on photos of LFW, both sides with the same number of threads, taking
turns; where the time goes; our overhead over the bare onnxruntime calls on the very same
tensors; and whether both find the same faces and embed them alike. FaceAnalysis brings
every photo to 640x640, as its users run it; ``--peer-size 256`` gives it LFW's own size.
Prints a table, and JSON with ``--json FILE``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from facerec.image import load_image
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.runtime import Network
from facerec.types import RGBImage

DETECTOR = "scrfd_2.5g_bnkps.onnx"
EMBEDDER = "mobilefacenet_arcface_128.onnx"
BATCH = 32
SAME_FACE_IOU = 0.4
MANIFEST = f"""
name = "benchmark"
licence = "see the models' own"
source = "the same files as the peer"
[detector]
kind = "scrfd"
file = "{DETECTOR}"
max_side = 640
[embedder]
file = "{EMBEDDER}"
template = "arcface-112"
input_size = 112
mean = 127.5
scale = 0.00784313725490196
dim = 128
"""


def make_folders(models: Path, work: Path) -> tuple[Path, Path]:
    """A pack for us and a model folder for the peer, of links to the same two files."""
    ours, theirs = work / "pack", work / "models" / "peer"
    for folder in (ours, theirs):
        folder.mkdir(parents=True)
        for name in (DETECTOR, EMBEDDER):
            if not (models / name).is_file():
                raise SystemExit(f"{models / name} is missing; name its folder with --models")
            (folder / name).symlink_to((models / name).resolve())
    (ours / "pack.toml").write_text(MANIFEST)
    return ours, theirs


def make_peer(work: Path, threads: int, size: int) -> Any:
    import onnxruntime
    from insightface.app import FaceAnalysis

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    peer = FaceAnalysis(
        name="peer", root=str(work), providers=["CPUExecutionProvider"], sess_options=options
    )
    peer.prepare(0, det_size=(size, size))
    return peer


def take_turns(
    a: Callable[[], object], b: Callable[[], object], repeats: int, calls: int = 1
) -> tuple[list[float], list[float]]:
    """Seconds of each call, a and b alternating so that both see the same machine.

    A turn is ``calls`` calls after a pause, since threads that the other side left spinning
    take a core from this one, and, if they are several and short, after one that does not count.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, into in zip((a, b), times, strict=True):
            time.sleep(0.2)
            if calls > 1:
                call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                into.append(time.perf_counter() - start)
    return times


class OtherLoad:
    """How many cores other processes kept busy meanwhile; None where the system does not tell.

    Two threads that wait for each other run several times slower as soon as somebody else
    takes one of two cores, so figures from a busy machine mean nothing.
    """

    def __enter__(self) -> OtherLoad:
        self.start = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores: float | None = None
        if self.start and (end := self._read()):
            wall, busy, own = (b - a for a, b in zip(self.start, end, strict=True))
            self.cores = round(max(0.0, (busy - own) / wall), 2)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        except OSError:
            return None
        busy = sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()


def spread(seconds: Sequence[float], photos: int) -> dict[str, float]:
    """Median and quartiles, milliseconds a photo."""
    ms = [1e3 * s / photos for s in seconds]
    low, middle, high = statistics.quantiles(ms, n=4) if len(ms) > 1 else (ms[0],) * 3
    return {
        "ms_per_photo": round(middle, 3),
        "quartile_low": round(low, 3),
        "quartile_high": round(high, 3),
        "photos_per_s": round(1e3 / middle, 2),
    }


def run_ours(pipeline: Pipeline, paths: Sequence[Path]) -> list[Any]:
    faces: list[Any] = []
    for start in range(0, len(paths), BATCH):
        images = pipeline._workers.map(load_image, paths[start : start + BATCH])
        faces += pipeline.extract(images)
    return faces


def run_peer(peer: Any, paths: Sequence[Path]) -> list[Any]:
    return [peer.get(cv2.imread(str(path))) for path in paths]


def overhead(
    pipeline: Pipeline, images: Sequence[RGBImage], repeats: int, calls: int
) -> dict[str, float]:
    """Time of extract() over that of the same tensors through onnxruntime, the same way."""
    recorded: list[tuple[Network, np.ndarray, bool]] = []
    bare_run = Network.run

    def recording(self: Network, batch: np.ndarray, *, wide: bool) -> Any:
        recorded.append((self, batch.copy(), wide))
        return bare_run(self, batch, wide=wide)

    Network.run = recording  # type: ignore[method-assign]
    for start in range(0, len(images), BATCH):
        pipeline.extract(images[start : start + BATCH])
    Network.run = bare_run  # type: ignore[method-assign]
    stages: list[list[tuple[Network, np.ndarray, bool]]] = []
    for item in recorded:
        if not stages or stages[-1][0][0] is not item[0]:
            stages.append([])
        stages[-1].append(item)

    def bare() -> None:
        for stage in stages:
            pipeline._workers.map(lambda i: i[0].run(i[1], wide=i[2]), stage)

    def ours() -> None:
        for start in range(0, len(images), BATCH):
            pipeline.extract(images[start : start + BATCH])

    with_us, without = take_turns(ours, bare, repeats, calls)
    total, floor = statistics.median(with_us), statistics.median(without)
    own = own_work(pipeline, images, repeats * calls)
    return {
        "extract_ms": round(1e3 * total / len(images), 3),
        "onnxruntime_ms": round(1e3 * floor / len(images), 3),
        "overhead": round(total / floor - 1, 4),
        "own_work_ms": round(1e3 * own / len(images), 3),
        "own_work_share": round(own / floor, 4),
    }


def own_work(pipeline: Pipeline, images: Sequence[RGBImage], repeats: int) -> float:
    """Median seconds of extract() with the networks' answers at hand: all that is ours.

    The rest of the overhead is the system's: between two runs the second core falls idle,
    and waking it up costs the next run more than our work in between.
    """
    answers: dict[tuple[int, bytes], Any] = {}
    bare_run = Network.run

    def answered(self: Network, batch: np.ndarray, *, wide: bool) -> Any:
        key = id(self), batch[:, :, ::31, ::31].tobytes()
        if key not in answers:
            answers[key] = bare_run(self, batch, wide=wide)
        return answers[key]

    Network.run = answered  # type: ignore[method-assign]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for first in range(0, len(images), BATCH):
            pipeline.extract(images[first : first + BATCH])
        times.append(time.perf_counter() - start)
    Network.run = bare_run  # type: ignore[method-assign]
    return statistics.median(times[1:])


def split(pipeline: Pipeline, paths: Sequence[Path], repeats: int) -> dict[str, float]:
    """Median milliseconds a photo of each stage, the search among 10,000 people included."""
    import faiss

    rng = np.random.default_rng(0)
    people = rng.standard_normal((10_000, pipeline.contract.dim)).astype(np.float32)
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(people.shape[1])
    index.add(people)
    stages: dict[str, list[float]] = {
        name: [] for name in ("decode", "detect", "align", "embed", "search")
    }
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    for _ in range(repeats):
        spent = dict.fromkeys(stages, 0.0)
        for batch in batches:
            clock = [time.perf_counter()]
            images = pipeline._workers.map(load_image, batch)
            clock.append(time.perf_counter())
            found = pipeline.detector.detect(images)
            clock.append(time.perf_counter())
            chips = np.concatenate(
                pipeline._workers.map(
                    lambda p: pipeline.align(*p), list(zip(images, found, strict=True))
                )
            )
            clock.append(time.perf_counter())
            embeddings = pipeline.embedder.embed(chips)
            clock.append(time.perf_counter())
            index.search(embeddings, 5)
            clock.append(time.perf_counter())
            for name, a, b in zip(stages, clock[:-1], clock[1:], strict=True):
                spent[name] += b - a
        for name, seconds in spent.items():
            stages[name].append(1e3 * seconds / len(paths))
    return {name: round(statistics.median(ms), 3) for name, ms in stages.items()}


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float | int]:
    """Faces that both found (by overlap of the boxes), and the cosine of their embeddings."""
    cosines: list[float] = []
    only_ours = only_theirs = 0
    for our, their in zip(ours, theirs, strict=True):
        free = list(our)
        for face in their:
            best = max(free, key=lambda f: _iou(f.box_xyxy, face.bbox), default=None)
            if best is None or _iou(best.box_xyxy, face.bbox) < SAME_FACE_IOU:
                only_theirs += 1
                continue
            free = [f for f in free if f is not best]
            cosines.append(float(best.embedding @ face.embedding / np.linalg.norm(face.embedding)))
        only_ours += len(free)
    return {
        "both": len(cosines),
        "only_ours": only_ours,
        "only_peer": only_theirs,
        "mean_cosine": round(float(np.mean(cosines)), 4),
        "median_cosine": round(float(np.median(cosines)), 4),
        "least_cosine": round(min(cosines), 4),
    }


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
    return float(overlap / union)


def compare(
    name: str, pipeline: Pipeline, peer: Any, paths: Sequence[Path], repeats: int
) -> dict[str, Any]:
    calls = max(1, 8 // len(paths))
    with OtherLoad() as others:
        ours, theirs = take_turns(
            lambda: run_ours(pipeline, paths), lambda: run_peer(peer, paths), repeats, calls
        )
        beyond = overhead(pipeline, [load_image(p) for p in paths], repeats, calls)
    our, their = spread(ours, len(paths)), spread(theirs, len(paths))
    return {
        "photos": name,
        "others_busy_cores": others.cores,
        "count": len(paths),
        "ours": our,
        "peer": their,
        "ratio": round(their["ms_per_photo"] / our["ms_per_photo"], 2),
        "agreement": agreement(run_ours(pipeline, paths), run_peer(peer, paths)),
        "stages_ms": split(pipeline, paths, repeats),
        "overhead": beyond,
    }


def group_photo() -> Path:
    spec = importlib.util.find_spec("insightface")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data/images/t1.jpg"


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['threads']} threads; peer at {report['peer_size']}")
    for r in report["results"]:
        busy = r["others_busy_cores"]
        print(f"\n{r['photos']} ({r['count']} photos); other processes kept {busy} cores busy")
        if busy is not None and busy > 0.1:
            print("  WARNING: the machine was not idle; run this again")
        for who in ("ours", "peer"):
            s = r[who]
            print(
                f"  {who}: {s['photos_per_s']:8.2f} photos/s, {s['ms_per_photo']:.2f} ms "
                f"({s['quartile_low']:.2f} to {s['quartile_high']:.2f})"
            )
        print(f"  ratio {r['ratio']:.2f}")
        o = r["overhead"]
        print(
            f"  extract {o['extract_ms']:.2f} ms, bare onnxruntime {o['onnxruntime_ms']:.2f} ms: "
            f"overhead {o['overhead']:.1%}; our own work {o['own_work_ms']:.2f} ms, "
            f"{o['own_work_share']:.1%} of onnxruntime's"
        )
        print(f"  stages, ms a photo: {r['stages_ms']}")
        print(f"  faces: {r['agreement']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help=f"{DETECTOR} and {EMBEDDER}")
    parser.add_argument("--lfw", type=Path, required=True, help="NAME/NAME_0001.jpg")
    parser.add_argument("--photos", type=int, default=500, help="of LFW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-size", type=int, default=640)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")
    cv2.setNumThreads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        ours, _ = make_folders(args.models, work)
        pipeline = Pipeline.load(Pack.load(ours), device="cpu", threads=args.threads)
        peer = make_peer(work, args.threads, args.peer_size)
        results = [
            compare("group photo", pipeline, peer, [group_photo()], args.repeats),
        ]
        photos = sorted(args.lfw.glob("*/*_0001.jpg"))[: args.photos]
        if photos:
            results.append(compare("LFW", pipeline, peer, photos, max(3, args.repeats // 2)))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": args.threads,
        "peer_size": args.peer_size,
        "results": results,
    }
    print_table(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
