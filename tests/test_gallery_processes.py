"""Several processes on one gallery: none loses a write, and each sees the others'."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facerec.errors import IdentityExists
from tests.gallery_engines import shared_engine  # noqa: F401
from tests.gallery_samples import open_gallery, template, unit

ROOT = Path(__file__).resolve().parent.parent
SPAWN = multiprocessing.get_context("spawn")
EACH = 25


def seed_of(worker: int, i: int) -> int:
    return 10_000 * (worker + 1) + i


def write(folder: str, worker: int) -> list[str]:
    """Enrol EACH people, remove every fifth; returns what went wrong."""
    wrong = []
    with open_gallery(Path(folder)) as gallery:
        for i in range(EACH):
            name = f"{worker}-{i}"
            gallery.enroll(name, [template(unit(seed_of(worker, i)), name)], must_be_new=True)
            match = gallery.identify(unit(seed_of(worker, i))[None], k=1, threshold=0.99)[0].match
            if match is None or match.name != name:
                wrong.append(f"{name} does not answer after its own write")
            if i % 5 == 0:
                gallery.remove(name)
                if (
                    gallery.identify(unit(seed_of(worker, i))[None], k=1, threshold=0.99)[0].match
                    is not None
                ):
                    wrong.append(f"{name} answers after its removal")
    return wrong


def watch(folder: str, workers: int) -> list[str]:
    """Look until everybody is there; returns what went wrong on the way."""
    wrong: list[str] = []
    seen: set[tuple[int, int]] = set()
    everybody = {(w, i) for w in range(workers) for i in range(EACH) if i % 5}
    deadline = time.monotonic() + 40
    with open_gallery(Path(folder)) as gallery:
        while seen < everybody and time.monotonic() < deadline:
            keys = sorted(everybody)
            for key in keys:
                match = gallery.identify(unit(seed_of(*key))[None], k=1, threshold=0.99)[0].match
                if match is not None and match.name == f"{key[0]}-{key[1]}":
                    seen.add(key)
                elif key in seen or match is not None:
                    wrong.append(f"{key} was there, and now {match} is")
    if seen != everybody:
        wrong.append(f"never saw {sorted(everybody - seen)}")
    return wrong


def racing_enrolment(folder: str, worker: int) -> str:
    """All workers enrol the same new name at once."""
    with open_gallery(Path(folder)) as gallery:
        try:
            gallery.enroll("one", [template(unit(worker), f"{worker}")], must_be_new=True)
        except IdentityExists:
            return "exists"
        return "made"


def racing_creation(folder: str, worker: int) -> str:
    """All workers make the same gallery at once."""
    with open_gallery(Path(folder)) as gallery:
        gallery.enroll(f"{worker}", [template(unit(worker), f"{worker}")])
        return gallery._store.uuid


def together(jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    with SPAWN.Pool(len(jobs)) as pool:
        results = [pool.apply_async(function, arguments) for function, arguments in jobs]
        return [result.get(timeout=60) for result in results]


def test_two_writers_and_a_watcher_lose_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / "people")
    with open_gallery(tmp_path / "people") as here:
        jobs = [(write, (folder, 0)), (write, (folder, 1)), (watch, (folder, 2))]
        assert together(jobs) == [[], [], []]
        expected = {f"{w}-{i}" for w in range(2) for i in range(EACH) if i % 5}
        assert {person.name for person in here.people()} == expected
        for name in sorted(expected):
            worker, i = map(int, name.split("-"))
            match = here.identify(unit(seed_of(worker, i))[None], k=1, threshold=0.99)[0].match
            assert match is not None and match.name == name
        here.check()
    with open_gallery(tmp_path / "people") as again:
        assert again.count() == (len(expected), len(expected))
        again.check()


def test_one_name_is_made_once_and_one_gallery_too(
    tmp_path: Path,
    shared_engine: str,  # noqa: F811
) -> None:
    folder = str(tmp_path / "new" / "people")
    uuids = together([(racing_creation, (folder, worker)) for worker in range(3)])
    assert len(set(uuids)) == 1
    made = together([(racing_enrolment, (folder, worker)) for worker in range(3)])
    assert sorted(made) == ["exists", "exists", "made"]
    with open_gallery(Path(folder)) as gallery:
        assert sorted(person.name for person in gallery.people()) == ["0", "1", "2", "one"]
    if shared_engine == "sqlite":
        files = sorted(path.name for path in Path(folder).iterdir())
        assert files == ["gallery.db", "gallery.index"]


ENROL_FOR_EVER = """
import sys
from pathlib import Path
from tests.gallery_engines import shared_engine  # noqa: F401
from tests.gallery_samples import open_gallery, template, unit
with open_gallery(Path(sys.argv[1])) as gallery:
    for i in range(10_000):
        gallery.enroll(f"p{i}", [template(unit(i), f"p{i}", crop=bytes(3000))])
        print(i, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", ENROL_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    said += writer.stdout.readlines()
    writer.wait()
    acknowledged = [int(line) for line in said if line.endswith(b"\n")]
    assert len(acknowledged) >= 20
    with open_gallery(tmp_path) as gallery:
        for i in acknowledged:
            match = gallery.identify(unit(i)[None], k=1, threshold=0.99)[0].match
            assert match is not None and match.name == f"p{i}"
        people, templates = gallery.count()
        assert people == templates <= len(acknowledged) + 1
        gallery.check()
