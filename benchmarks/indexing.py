"""What indexing costs: the bare stages one after the other, the overlapped run, and a second run.

    python benchmarks/indexing.py --photos lfw --count 1000

Takes the first photos below a folder with one folder for each person, copies them, and measures,
each in wall and processor time: the stages alone, on one thread (read, decode, detect, align and
embed, gate and crop); ``facerec index`` over the copy in a process of its own, models and imports
included; the same again, when nothing has changed; and how much of a run the threads that look at
photos are at it, which is what overlapping is for. Prints a table, and JSON with ``--json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from facerec.image import load_image
from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from gallery import Gallery
from gallery.crew import Threads
from gallery.indexer import Indexer
from gallery.items import Item
from gallery.naming import Naming
from gallery.photo_work import BATCH_PHOTOS, Looked, LookOptions, PhotoWork
from gallery.sources import Sources

T = TypeVar("T")


def measured(function: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result, and seconds: of wall clock, and of all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def in_batches(function: Callable[[int], list[Any]], count: int) -> list[Any]:
    return [one for start in range(0, count, BATCH_PHOTOS) for one in function(start)]


def measure_stages(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Each stage over all photos, on one thread."""
    pipeline = Pipeline.load(find_pack("bundled"), device="cpu", threads=1)
    work = PhotoWork(pipeline, LookOptions(one_person=True))
    work.look([path.read_bytes() for path in paths[:BATCH_PHOTOS]])  # warm
    n, found = len(paths), {}
    data, found["read"] = measured(lambda: [path.read_bytes() for path in paths])
    images, found["decode"] = measured(lambda: [load_image(one) for one in data])
    seen, found["detect"] = measured(
        lambda: in_batches(lambda i: pipeline.detector.detect(images[i : i + BATCH_PHOTOS]), n)
    )
    faces, found["align, embed"] = measured(
        lambda: in_batches(
            lambda i: pipeline.embed_detected(
                images[i : i + BATCH_PHOTOS], seen[i : i + BATCH_PHOTOS]
            ),
            n,
        )
    )
    _, found["gate, crop"] = measured(
        lambda: [work.keep(image, some) for image, some in zip(images, faces, strict=True)]
    )
    return found


def run_command(folder: Path, gallery: Path) -> dict[str, Any]:
    """``facerec index`` in a process; its report, seconds and peak memory."""
    command = [sys.executable, "-m", "facerec.cli", "index", str(folder), "--by-folder"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "--gallery", str(gallery), "--json"], stdout=subprocess.PIPE, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib": after.ru_maxrss / 1024,
        "photos": report["photos"],
        "enrolled": report["enrolled"],
        "unchanged": report["skipped"]["unchanged"],
    }


class Timed(PhotoWork):
    """Adds up how long threads are at it."""

    busy_s = 0.0
    lock = threading.Lock()

    def look(self, photos: Sequence[bytes]) -> list[Looked]:
        start = time.perf_counter()
        try:
            return super().look(photos)
        finally:
            with self.lock:
                self.busy_s += time.perf_counter() - start


def share_at_work(folder: Path, place: Path) -> float:
    """How much of a run the threads that look at photos are at it; models are loaded before."""
    pack, threads = find_pack("bundled"), len(os.sched_getaffinity(0))
    work = Timed(Pipeline.load(pack, device="cpu", threads=1), LookOptions(one_person=True))
    crew = Threads(lambda: work, threads)
    with Gallery.open(place, contract=pack.contract, pack_name=pack.name) as gallery:
        indexer = Indexer(gallery, crew)
        found = Sources([folder], naming=Naming(by_folder=True), known=indexer.ledger())
        _, spent = measured(lambda: indexer.run(found))
    crew.close()
    return work.busy_s / (threads * spent["wall_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="NAME/*.jpg")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    items = (one for one in Sources([options.photos]) if isinstance(one, Item))
    paths = [item.path for item, _ in zip(items, range(options.count), strict=False)]
    with tempfile.TemporaryDirectory(prefix="facerec-indexing-") as work:
        folder, gallery = Path(work) / "photos", Path(work) / "gallery"
        for path in paths:
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
        rows: dict[str, dict[str, Any]] = measure_stages(paths)
        rows["all stages"] = {
            key: sum(row[key] for row in rows.values()) for key in ("wall_s", "cpu_s")
        }
        rows["index"] = run_command(folder, gallery)
        rows["index again"] = run_command(folder, gallery)
        share = share_at_work(folder, Path(work) / "other")
    n = len(paths)
    print(f"{n} photos, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    for name, row in rows.items():
        more = f"  peak {row['peak_mib']:.0f} MiB" if "peak_mib" in row else ""
        wall, cpu = 1e3 * row["wall_s"] / n, 1e3 * row["cpu_s"] / n
        print(f"{name:14}{wall:8.2f} ms a photo{cpu:8.2f} ms of processor{more}")
    first, again = rows["index"], rows["index again"]
    print(f"again: {100 * again['wall_s'] / first['wall_s']:.2f} % of the time, "
          f"{100 * again['cpu_s'] / first['cpu_s']:.2f} % of the processor's")  # fmt: skip
    print(f"threads that look at photos are at it {100 * share:.1f} % of the run")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
