"""What a gallery costs on each engine: SQLite, PostgreSQL, PostgreSQL with Milvus.

    python benchmarks/backends.py --postgres postgresql://USER:PASSWORD@HOST/DATABASE
    python benchmarks/backends.py --postgres ... --milvus vectors.db --templates 10000 100000

Fills a new gallery with people of some templates each (random clustered unit vectors, seeded,
with a crop of 10 kB each), then measures making the index from the database, opening,
enrolment of one photo, a search and a batch of 64, all through the same Gallery, and that
every engine names the same people. A gallery has a schema of the database to itself, which is
dropped afterwards. Prints a table, and JSON with ``--json FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from facerec.types import EmbeddingContract, FloatArray, ThresholdTable
from gallery import Gallery, NewTemplate

WAIT_S = 11.0
"""Until a search of Milvus need not be a strong one: see gallery.milvus.SETTLED_S."""
CROP = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40
LANDMARKS = np.arange(10, dtype=np.float32).reshape(5, 2)
THRESHOLDS = ThresholdTable((1e-2, 1e-3), (0.3, 0.4), (0.0, 0.0), "made up for the benchmark")
COLUMNS = ("templates", "fill_per_s", "index_s", "open_s", "search_ms", "search_p50_ms",
           "batch64_ms", "verify_ms", "enroll_ms", "enroll_p50_ms", "peak_mb")  # fmt: skip
"""Without p50: the fastest, which other work on the machine disturbs least."""


def contract(dim: int) -> EmbeddingContract:
    return EmbeddingContract("ab" * 32, "arcface-112", 112, "RGB", (127.5,) * 3, (1 / 127.5,) * 3,
                             flip=True, dim=dim)  # fmt: skip


def clustered(people: int, each: int, dim: int, seed: int) -> FloatArray:
    """(people, each, dim) unit vectors; those of a person have a cosine of 0.6 or so."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((people, 1, dim), np.float32)
    vectors = centres + 0.8 * random.standard_normal((people, each, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def template(vector: FloatArray, name: str) -> NewTemplate:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return NewTemplate(vector, f"{name}.jpg", digest, 0.9, CROP, LANDMARKS)


def fill(place: str, about: dict[str, Any], vectors: FloatArray) -> float:
    """Seconds for everybody, 1000 people a transaction."""
    with Gallery.open(place, **about) as gallery:
        began = time.perf_counter()
        for start in range(0, len(vectors), 1000):
            some = range(start, min(start + 1000, len(vectors)))
            with gallery.writing() as change:
                people = {i: change.add_identity(f"person {i}") for i in some}
                change.add_templates(
                    [(people[i], template(v, f"{i}-{j}"))
                     for i in some for j, v in enumerate(vectors[i])]
                )  # fmt: skip
        return time.perf_counter() - began


def times_ms(work: Callable[[int], object], rounds: int) -> list[float]:
    """Each of ``rounds`` calls, after one that does not count."""
    taken = []
    for i in range(-1, rounds):
        began = time.perf_counter()
        work(i)
        taken.append((time.perf_counter() - began) * 1e3)
    return sorted(taken[1:])


def opening(place: str, about: dict[str, Any], probe: FloatArray) -> float:
    """Seconds until the first answer."""
    began = time.perf_counter()
    with Gallery.open(place, **about) as gallery:
        gallery.identify(probe)
        return time.perf_counter() - began


def measure(place: str, count: int, each: int, dim: int, rounds: int, full: bool) -> dict[str, Any]:
    """full: the gallery is there already, with ``count`` templates."""
    about = {"contract": contract(dim), "thresholds": THRESHOLDS, "pack_name": "benchmark"}
    vectors = clustered(count // each, each, dim, seed=1)
    row: dict[str, Any] = {"templates": count, "fill_per_s": None}
    if not full:
        row["fill_per_s"] = count / fill(place, about, vectors)
        (Path(place) / "gallery.index").unlink(missing_ok=True)
    row["index_s"] = opening(place, about, vectors[0, :1])
    row["open_s"] = min(opening(place, about, vectors[0, :1]) for _ in range(3))
    with Gallery.open(place, **about) as gallery:
        for i in range(0, len(vectors), max(1, len(vectors) // 50)):
            [decision] = gallery.identify(vectors[i, :1])
            assert decision.match is not None and decision.match.name == f"person {i}"
        probes = clustered(rounds + 64, 1, dim, seed=3)[:, 0]
        time.sleep(WAIT_S)
        search = times_ms(lambda i: gallery.identify(probes[i + 1][None]), rounds)
        batch = times_ms(lambda i: gallery.identify(probes[:64]), 5)
        verify = times_ms(lambda i: gallery.verify("person 7", probes[i]), rounds)
        new = clustered(rounds + 1, 1, dim, seed=time.time_ns())[:, 0]
        names = [f"new {time.time_ns()} {i}" for i in range(rounds + 1)]
        enrol = times_ms(lambda i: gallery.enroll(names[i], [template(new[i], names[i])]), rounds)
    for name, times in (("search", search), ("enroll", enrol)):
        row[f"{name}_ms"], row[f"{name}_p50_ms"] = times[0], statistics.median(times)
    row["batch64_ms"], row["verify_ms"] = batch[0], verify[0]
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


@contextmanager
def new_schema(url: str) -> Iterator[str]:
    """The URL of a schema of the database that is dropped afterwards."""
    import psycopg

    schema = f"benchmark_{os.getpid()}_{time.time_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{url}{'&' if '?' in url else '?'}options={quote('-csearch_path=' + schema)}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def in_a_process_of_its_own(place: str, options: argparse.Namespace, count: int,
                            full: bool = False) -> dict[str, Any]:  # fmt: skip
    """So that memory is of this engine alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (place, count, options.each, options.dim, options.rounds, full))


def on_every_engine(options: argparse.Namespace, count: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="facerec-backends-") as folder:
        place = str(Path(folder) / "gallery")
        yield {"engine": "SQLite", **in_a_process_of_its_own(place, options, count)}
    if options.postgres:
        with new_schema(options.postgres) as place:
            yield {"engine": "PostgreSQL", **in_a_process_of_its_own(place, options, count)}
            if options.milvus:
                place += f"&milvus={quote(options.milvus, safe='')}&timeout=600"
                row = in_a_process_of_its_own(place, options, count, full=True)
                yield {"engine": "PostgreSQL + Milvus", **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgres", metavar="URL", help="an empty database")
    parser.add_argument("--milvus", metavar="ADDRESS", help="http://HOST:PORT, or a .db file")
    parser.add_argument("--templates", type=int, nargs="+", default=[10_000])
    parser.add_argument("--each", type=int, default=2, help="templates of a person")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = [row for count in options.templates for row in on_every_engine(options, count)]
    print(f"{'engine':<20}" + "".join(f"{column:>15}" for column in COLUMNS))
    for row in rows:
        shown = ["" if row[column] is None else f"{row[column]:,.1f}" for column in COLUMNS]
        print(f"{row['engine']:<20}" + "".join(f"{text:>15}" for text in shown))
    if options.json:
        about = {"machine": f"{os.cpu_count()} x {platform.machine()}", "dim": options.dim}
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
