"""Killed at any moment, a gallery has everything that was acknowledged, and nothing by halves."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gallery import backup
from gallery.sqlite import DB_NAME
from tests.gallery_crashes import (
    TASKS,
    People,
    assert_no_trace,
    assert_sound,
    do_and_die,
    expected,
    index_it,
    open_it,
    perform,
    read_people,
    work,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")

# Children are forked from a process that has imported everything and opened nothing.
SERVER = multiprocessing.get_context("forkserver") if os.name != "nt" else multiprocessing
if os.name != "nt":
    SERVER.set_forkserver_preload(["tests.gallery_crashes_ready"])


class Child:
    """A process that works until it is killed, and what it said."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._said, theirs = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=target, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        assert self._said.recv_bytes() == b"ready"

    def hear(self, lines: int) -> list[bytes]:
        """The next lines that it says; fewer where it is done before."""
        said: list[bytes] = []
        while len(said) < lines and b"done" not in said:
            said.append(self._said.recv_bytes())
        return said

    def kill(self, after_steps: int, and_s: float) -> list[bytes]:
        """Kill it some time after so many steps were acknowledged; all that it had said."""
        said: list[bytes] = []
        while said.count(b"done") < after_steps:
            said.append(self._said.recv_bytes())
        time.sleep(and_s)
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        return said + self.end()

    def end(self) -> list[bytes]:
        """All that it says until it dies."""
        said = []
        try:
            while True:
                said.append(self._said.recv_bytes())
        except EOFError:
            pass
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL
        self._said.close()
        return said


class Torment:
    """A gallery, what it should hold, and rounds of work that end with a kill."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.folder, self.outside = tmp_path / "people", tmp_path / "outside"
        self.outside.mkdir()
        self.rng = random.Random(seed)
        self.people: People = {}
        self.files: dict[str, People] = {"import": {"imported": {-1 & 0xFFFF: True, 7: False}}}
        with open_it(tmp_path / "other") as other:
            for name, kept in self.files["import"].items():
                for seed_of_one, crop in kept.items():
                    perform(("enroll", [name, [seed_of_one], crop]), other, tmp_path, tmp_path)
            other.export(self.outside / "import")
        self.kills = self.steps = 0

    def round(self) -> None:
        child = Child(work, self.folder, self.outside, self.rng.getrandbits(32), self.people)
        child.wait_until_ready()
        said = child.kill(self.rng.randrange(6), self.rng.uniform(0, 0.06))
        self.kills += 1
        removed: set[int] = set()
        candidates = [self.people]
        for line in said:
            if line == b"done":
                self._note_files(candidates[-1])
                candidates = candidates[-1:]
                self.steps += 1
                continue
            self.step = tuple(json.loads(line))
            before = candidates[-1]
            after = expected(self.step, before, self.files)
            removed |= {s for kept in before.values() for s in kept}
            candidates.append(after)
        # Who was removed, and that acknowledged, is gone at once; whatever was going on then.
        still = {seed for people in candidates for kept in people.values() for seed in kept}
        assert_no_trace(self.folder, removed - still)
        found = assert_sound(self.folder, removed)
        assert found in candidates, (self.step, found, candidates)
        self.people = found
        self._check_files(said)

    def _note_files(self, people: People) -> None:
        if self.step[0] in ("backup", "export"):
            self.files[self.step[0]] = people

    def _check_files(self, said: list[bytes]) -> None:
        """A backup or an export is the last acknowledged one, or the one that was under way."""
        kind = self.step[0] if said and said[-1] != b"done" else ""
        if kind == "backup":
            self._take_over(kind, lambda to: backup.restore(self.outside / "backup", to))
        if kind == "export":
            from gallery import from_export

            self._take_over(kind, lambda to: from_export(self.outside / "export", to).close())

    def _take_over(self, kind: str, make: Callable[[Path], object]) -> None:
        if (self.outside / kind).exists():
            make(self.outside / "made")
            found = read_people(self.outside / "made" / DB_NAME)
            assert found in (self.files.get(kind), self.people)
            self.files[kind] = found
            shutil.rmtree(self.outside / "made")
        else:
            assert kind not in self.files


def torment(tmp_path: Path, seed: int, kills: int) -> None:
    ordeal = Torment(tmp_path, seed)
    for _ in range(kills):
        ordeal.round()
    assert ordeal.steps > kills  # it came to something in between
    hidden = [path.name for path in ordeal.outside.iterdir() if path.name.startswith(".")]
    assert len(hidden) <= 2  # at most one for each file: the next that writes it sweeps
    with open_it(ordeal.folder) as gallery:
        for kind in ("backup", "export"):
            perform((kind, []), gallery, ordeal.folder, ordeal.outside)
    assert not [path for path in ordeal.outside.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("seed", range(3))
def test_forty_kills_at_random_lose_nothing(tmp_path: Path, seed: int) -> None:
    torment(tmp_path, seed, 40)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(100, 105))
def test_hundreds_of_kills_at_random_lose_nothing(tmp_path: Path, seed: int) -> None:
    torment(tmp_path, seed, 200)


# Batches


def folders_of_photos(folder: Path) -> People:
    """What a gallery of them should hold."""
    return {
        person.name: {int(photo.stem): True for photo in person.iterdir()}
        for person in folder.iterdir()
    }


def change_photos(folder: Path, rng: random.Random) -> None:
    """Add some and remove some."""
    for _ in range(12):
        person = folder / f"person {rng.randrange(6)}"
        person.mkdir(parents=True, exist_ok=True)
        seed = rng.getrandbits(40)
        (person / f"{seed}.jpg").write_text(str(seed))
    there = sorted(folder.rglob("*.jpg"))
    for photo in rng.sample(there, min(3, len(there) // 4)):
        photo.unlink()


@pytest.mark.parametrize("indexers", [1, 2])
def test_killed_runs_of_the_indexer_lose_and_double_nothing(tmp_path: Path, indexers: int) -> None:
    """One at a time, or two at once; photos come and go between the runs."""
    rng = random.Random(indexers)
    folder, photos = tmp_path / "people", tmp_path / "photos"
    cut_short = 0
    ever: set[int] = set()
    for _ in range(24 // indexers):
        change_photos(photos, rng)
        before = read_people(folder / DB_NAME) if folder.exists() else {}
        children = [Child(index_it, folder, photos) for _ in range(indexers)]
        for child in children:
            child.wait_until_ready()
        heard = [child.hear(rng.randrange(12)) for child in children]
        time.sleep(rng.uniform(0, 0.05))
        said = [early + child.kill(0, 0) for early, child in zip(heard, children, strict=True)]
        if not (folder / DB_NAME).exists():
            folder.mkdir(exist_ok=True)
        found = assert_sound(folder, set())
        wanted = folders_of_photos(photos)
        cut_short += found != wanted
        ever |= {seed for seeds in found.values() for seed in seeds}
        for name, seeds in found.items():
            assert set(seeds) <= set(wanted.get(name, {})) | set(before.get(name, {}))
        if indexers == 1:
            new = sum(len(set(seeds) - set(before.get(n, {}))) for n, seeds in found.items())
            reported = [int(line) for line in said[0] if line != b"done"]
            assert new >= max(reported, default=0)
    child = Child(index_it, folder, photos)
    child.wait_until_ready()
    assert child.hear(10_000)[-1] == b"done"
    child.kill(0, 0)
    assert len(ever) > 50 and (cut_short > 0 or indexers > 1)
    wanted = folders_of_photos(photos)
    gone = ever - {seed for seeds in wanted.values() for seed in seeds}
    assert {n: s for n, s in assert_sound(folder, gone).items() if s} == wanted
    with sqlite3.connect(folder / DB_NAME) as opened:
        counts = [
            opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("files", "photos", "templates")
        ]
    opened.close()
    assert counts == [len(list(photos.rglob("*.jpg")))] * 3


# Every place of one task


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of a, b and c; a backup and an export of x and y beside it."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "outside").mkdir()
    for name, people in (("other", "xy"), ("people", "abc")):
        with open_it(root / name) as gallery:
            for i, person in enumerate(people):
                seeds = [100 * ord(person) + i, 100 * ord(person) + 50]
                perform(("enroll", [person, seeds, i == 0]), gallery, root, root)
    with open_it(root / "other") as gallery:
        gallery.export(root / "outside" / "import")
    backup.back_up(root / "other", root / "outside" / "backup")
    return root


def run_until(task: str, prepared: Path, tmp_path: Path, place: int) -> tuple[Path, Path, bool]:
    """(folder, outside, whether the task was done) after a kill at a place."""
    root = tmp_path / f"{place}"
    shutil.copytree(prepared, root)
    folder = root / "people"
    if task in ("create", "import anew", "restore"):
        folder = root
    child = Child(do_and_die, task, folder, root / "outside", place)
    return folder, root / "outside", child.end() == [b"done"]


def outcome(task: str, folder: Path, outside: Path, before: People, other: People) -> list[People]:
    """What there may be after a task that was cut short."""
    if task in ("create", "import anew", "restore"):
        return [{}, other]
    after = dict(before)
    if task == "enrol":
        after["new"] = {1: True, 2: True}
    elif task == "remove":
        del after["a"]
    elif task == "import":
        after |= other
    elif task == "restore over":
        after = other
    return [before, after]


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_kill_at_any_place_leaves_all_or_nothing(task, step, prepared, tmp_path) -> None:
    before, other = (read_people(prepared / name / DB_NAME) for name in ("people", "other"))
    place = random.Random(task).randrange(step)
    done = False
    seen: list[People] = []
    while not done:
        folder, outside, done = run_until(task, prepared, tmp_path, place)
        if task in ("create", "import anew", "restore"):
            folder = folder / "new"
            folder.mkdir(exist_ok=True)
        found = assert_sound(folder, {100 * ord("a"), 100 * ord("a") + 50})
        assert found in outcome(task, folder, outside, before, other), place
        seen.append(found)
        if (outside / "b").exists():
            backup.restore(outside / "b", outside / "made")
            assert read_people(outside / "made" / DB_NAME) == before
        if (outside / "e").exists():
            from gallery import from_export

            from_export(outside / "e", outside / "made").close()
            assert read_people(outside / "made" / DB_NAME) == before
        shutil.rmtree(outside.parent)
        place += step
    assert place > step  # there were such places
    assert seen[-1] == outcome(task, folder, outside, before, other)[task != "create"]
