"""What Ray adds to indexing: one and more workers of a local Ray beside this process's threads.

    python benchmarks/indexing_ray.py --photos lfw --count 600

Indexes the first photos below a folder with one folder for each person, into a new gallery
each time, in turn: with one thread and with as many as there are cores, with one Ray worker and
with as many, ``--rounds`` times over. Models are loaded and Ray is started before the clock.
Checks that every run made the same embeddings, to the bit; prints the medians, and JSON with
``--json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import select

from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from gallery import Gallery
from gallery.crew import Chunk, Crew, Threads
from gallery.indexer import Indexer
from gallery.items import Item
from gallery.naming import Naming
from gallery.photo_work import Looked, LookOptions, PhotoWork
from gallery.ray_crew import RayCrew, ray_crew
from gallery.schema import EmbeddingRow
from gallery.sources import Sources

OPTIONS = LookOptions(one_person=True)


@contextmanager
def threads(count: int) -> Iterator[Crew]:
    work = PhotoWork(Pipeline.load(find_pack("bundled"), device="cpu", threads=1), OPTIONS)
    crew = Threads(lambda: work, count)
    yield crew
    crew.close()


@contextmanager
def ray_workers(count: int) -> Iterator[Crew]:
    pack = find_pack("bundled")
    with ray_crew("local", pack, OPTIONS, device="cpu", workers=count, cpus=count) as crew:
        while len(crew.workers) < count:
            time.sleep(0.1)
        yield crew


class Counted:
    """A crew whose chunks are counted on their way to it."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.width = crew.width
        self.sent = 0

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        self.sent += sum(len(photo) for photo in chunk.photos)
        return self.crew.submit(chunk)

    def close(self) -> None:
        self.crew.close()


def run(crew: Crew, folder: Path) -> tuple[dict[str, Any], list[bytes]]:
    """What one run over the folder takes, and the embeddings that it made."""
    pack, counted = find_pack("bundled"), Counted(crew)
    with (
        tempfile.TemporaryDirectory(prefix="facerec-ray-bench-") as place,
        Gallery.open(place, contract=pack.contract, pack_name=pack.name) as gallery,
    ):
        indexer = Indexer(gallery, counted)
        found = Sources([folder], naming=Naming(by_folder=True), known=indexer.ledger())
        start, cpu = time.perf_counter(), time.process_time()
        report = indexer.run(found)
        spent = {
            "photos_per_s": report.photos / (time.perf_counter() - start),
            "driver_cpu_ms": 1e3 * (time.process_time() - cpu) / report.photos,
            "sent_bytes": counted.sent / report.photos if isinstance(crew, RayCrew) else 0,
        }
        with gallery.reading() as view:
            order = select(EmbeddingRow.vector).order_by(EmbeddingRow.template_id)
            return spent, [bytes(v) for v in view.connection.execute(order).scalars()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="NAME/*.jpg")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    items = (one for one in Sources([options.photos]) if isinstance(one, Item))
    paths = [item.path for item, _ in zip(items, range(options.count), strict=False)]
    rows: dict[str, list[dict[str, Any]]] = {}
    first: list[bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="facerec-ray-photos-") as work:
        for path in paths:
            link = Path(work, path.parent.name, path.name)
            link.parent.mkdir(exist_ok=True)
            link.write_bytes(path.read_bytes())
        for _ in range(options.rounds):
            for count in sorted({1, cores}):
                for name, made in (("threads", threads), ("Ray workers", ray_workers)):
                    with made(count) as crew:
                        spent, embeddings = run(crew, Path(work))
                    first = embeddings if first is None else first
                    assert embeddings == first, "the runs differ"
                    rows.setdefault(f"{count} {name}", []).append(spent)
    print(f"{len(paths)} photos, {cores} cores, load {os.getloadavg()[0]:.1f}; "
          f"{len(first or [])} embeddings, equal to the bit in all runs")  # fmt: skip
    for name, some in rows.items():
        median = {key: statistics.median(one[key] for one in some) for key in some[0]}
        print(f"{name:14}{median['photos_per_s']:8.1f} photos/s"
              f"{median['driver_cpu_ms']:8.2f} ms of this process a photo"
              f"{median['sent_bytes']:8.0f} bytes sent a photo")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
