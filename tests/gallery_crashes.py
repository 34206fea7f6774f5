"""What the crash tests do to a gallery, in processes that are killed, and what must be left.

A step is (kind, arguments), all JSON. :func:`perform` takes it in the process that will die;
:func:`expected` says what it makes of a gallery's people, in the test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from facerec.types import Face
from gallery import Gallery, backup, from_export, indexer, live
from gallery.crew import Chunk
from gallery.index import ExactIndex
from gallery.naming import Naming
from gallery.people import PeopleIndex
from gallery.photo_work import FoundFace, Looked
from gallery.schema import NAMED
from gallery.sources import Sources
from gallery.sqlite import DB_NAME
from tests.gallery_samples import CONTRACT, DIM, JPEG, TABLE, template, unit

MANY = 24
"""People, above whom there are more removals than enrolments."""

Step = tuple[str, list[Any]]
People = dict[str, dict[int, bool]]
"""name -> the seeds of their vectors, each with whether a crop is kept."""


def crop_of(seed: int) -> bytes:
    return np.random.default_rng((5, seed)).bytes(1500)


def new_template(seed: int, crop: bool) -> Any:
    return template(unit(seed), f"photo {seed}", crop_of(seed) if crop else None)


def open_it(folder: Path) -> Gallery:
    return Gallery.open(folder, contract=CONTRACT, thresholds=TABLE, pack_name="sample")


def next_step(rng: random.Random, people: People, outside: set[str]) -> Step:
    """One that can succeed. outside: which of the files it may read are there."""
    name = f"n{rng.getrandbits(40)}"
    names = sorted(people)
    if not names or rng.random() < (0.2 if len(names) > MANY else 0.5):
        seeds = [rng.getrandbits(40) for _ in range(rng.choice((1, 1, 2, 5)))]
        known = bool(names) and rng.random() < 0.3
        return "enroll", [rng.choice(names) if known else name, seeds, rng.random() < 0.5]
    one = rng.choice(names)
    steps: list[Step] = [
        ("remove", [one]),
        ("rename", [one, name]),
        ("note", [one, rng.getrandbits(30)]),
        ("reopen", []),
        ("rebuild", []),
        ("export", []),
        ("backup", []),
    ]
    if len(names) > 1:
        other = rng.choice([n for n in names if n != one])
        steps += [("merge", [one, other])] * 2
    if people[one]:
        steps.append(("remove one view", [one, rng.choice(sorted(people[one]))]))
    if "import" in outside:
        steps.append(("import", []))
    if "backup" in outside and rng.random() < 0.5:
        steps.append(("restore", []))
    return rng.choice(steps)


def expected(step: Step, people: People, files: dict[str, People]) -> People:
    """The people after a step; ``files``: those of the files outside."""
    kind, arguments = step
    after = {name: dict(kept) for name, kept in people.items()}
    if kind == "enroll":
        name, seeds, crop = arguments
        after.setdefault(name, {}).update(dict.fromkeys(seeds, crop))
    elif kind == "remove":
        del after[arguments[0]]
    elif kind == "rename":
        after[arguments[1]] = after.pop(arguments[0])
    elif kind == "merge":
        after[arguments[0]].update(after.pop(arguments[1]))
    elif kind == "remove one view":
        del after[arguments[0]][arguments[1]]
    elif kind == "import":
        for name, kept in files["import"].items():
            after[name] = {**kept, **after.get(name, {})}
    elif kind == "restore":
        after = files["backup"]
    return after


def perform(step: Step, gallery: Gallery, folder: Path, outside: Path) -> Gallery:
    """Take a step; returns the gallery, which may be another object then."""
    kind, arguments = step
    calls: dict[str, Callable[..., object]] = {
        "enroll": lambda name, seeds, crop: gallery.enroll(
            name, [new_template(seed, crop) for seed in seeds]
        ),
        "remove": gallery.remove,
        "rename": gallery.rename,
        "merge": gallery.merge,
        "note": lambda name, number: gallery.set_metadata(name, {"note": number}),
        "remove one view": lambda name, seed: gallery.remove_template(
            next(t.id for t in gallery.templates(name) if t.source == f"photo {seed}.jpg")
        ),
        "rebuild": gallery.rebuild_index,
        "export": lambda: gallery.export(outside / "export", overwrite=True),
        "backup": lambda: backup.back_up(folder, outside / "backup", overwrite=True),
        "import": lambda: gallery.import_(outside / "import", on_conflict="merge"),
    }
    if kind in calls:
        calls[kind](*arguments)
        return gallery
    gallery.close()
    if kind == "restore":
        backup.restore(outside / "backup", folder, replace=True)
    return open_it(folder)


def work(folder: Path, outside: Path, seed: int, people: People, say: Connection) -> None:
    """Take steps for ever: announce each, and acknowledge it once it is taken."""
    rng = random.Random(seed)
    live._SAVE_AFTER = 6  # renew the index file often
    files: dict[str, People] = {}
    here = {path.name for path in outside.iterdir()} & {"import"}
    say.send_bytes(b"ready")
    gallery = open_it(folder)
    while True:
        step = next_step(rng, people, here | set(files))
        say.send_bytes(json.dumps(step).encode())
        gallery = perform(step, gallery, folder, outside)
        people = {person.name: seeds_of(gallery, person.id) for person in gallery.people()}
        if step[0] == "backup":
            files["backup"] = people
        say.send_bytes(b"done")


def seeds_of(gallery: Gallery, person_id: int) -> dict[int, bool]:
    return {
        int(t.source.removeprefix("photo ").removesuffix(".jpg")): t.has_crop
        for t in gallery.templates(person_id)
    }


def warm_up() -> None:
    """Do everything once, so that processes forked from this one need not load it; leaves
    nothing open."""
    with tempfile.TemporaryDirectory() as name:
        folder, outside = Path(name) / "people", Path(name) / "outside"
        outside.mkdir()
        gallery = open_it(folder)
        steps: list[Step] = [
            ("enroll", ["a", [1, 2], True]), ("enroll", ["b", [3], False]), ("export", []),
            ("rename", ["a", "c"]), ("note", ["c", 1]), ("remove one view", ["c", 1]),
            ("merge", ["c", "b"]), ("backup", []), ("rebuild", []), ("restore", []),
            ("reopen", []), ("remove", ["c"]),
        ]  # fmt: skip
        for step in steps:
            gallery = perform(step, gallery, folder, outside)
            gallery.people()
        gallery.import_(outside / "export")
        gallery.close()


# Batches


class Readers:
    """A crew that needs no model: a photo is a number, the seed of the only face on it."""

    width = 2

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        done: Future[list[Looked]] = Future()
        done.set_result([self.look(int(photo)) for photo in chunk.photos])
        return done

    def look(self, seed: int) -> Looked:
        box, points = np.zeros(4, np.float32), np.zeros((5, 2), np.float32)
        face = Face(box, points, 0.9, unit(seed))
        jpeg = JPEG + crop_of(seed)
        return Looked((FoundFace(face, 0, crop_jpeg=jpeg, landmarks=points),), seen=1)

    def close(self) -> None:
        """Nothing to do."""


def index_it(folder: Path, photos: Path, say: Connection) -> None:
    """Index folders of photos with ``--prune``; says how many files are behind it, and "done"."""
    indexer._COMMIT_PHOTOS = 4
    live._SAVE_AFTER = 20
    say.send_bytes(b"ready")
    with open_it(folder) as gallery:
        run = indexer.Indexer(gallery, Readers())
        sources = Sources((photos,), naming=Naming(by_folder=True), known=run.ledger())
        run.run(
            sources,
            prune_gone=True,
            progress=lambda report: say.send_bytes(str(report.counts["enrolled"]).encode()),
        )
    say.send_bytes(b"done")
    time.sleep(60)


# What is left


def read_people(db: Path) -> People:
    """The people of a database, each vector and crop being what it was enrolled as."""
    people: People = {}
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as opened:
        for (name,) in opened.execute("SELECT name FROM identities WHERE state = ?", (NAMED,)):
            people[name] = {}
        rows = opened.execute(
            "SELECT i.name, t.source, e.vector, c.jpeg FROM identities i "
            "JOIN templates t ON t.identity_id = i.id "
            "LEFT JOIN embeddings e ON e.template_id = t.id "
            "LEFT JOIN crops c ON c.template_id = t.id"
        )
        for name, source, vector, jpeg in rows:
            seed = int(Path(source).stem.split()[-1])
            assert vector == unit(seed).tobytes(), source
            assert jpeg is None or jpeg[4:] == crop_of(seed), source
            people[name][seed] = jpeg is not None
    return people


def assert_no_trace(folder: Path, removed: set[int]) -> None:
    """No file of a folder has the vectors of ``removed`` (seeds)."""
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for seed in removed:
            assert unit(seed).tobytes() not in data, f"{path.name}: {seed} was removed"


def assert_sound(folder: Path, removed: set[int]) -> People:
    """Open what a killed process left, as anybody would; the people who are in it.

    The index must agree with an exact one made from the database, nothing be left of who was
    ``removed`` (seeds of vectors), nor any file that does not belong there.
    """
    with open_it(folder) as gallery:
        people = read_people(folder / DB_NAME)
        oracle = PeopleIndex(ExactIndex(DIM))
        with gallery.reading() as view:
            for batch in view.vectors_since(0):
                oracle.put(batch.ids, batch.owners, batch.vectors)
        for right, ours in zip(oracle.rows, gallery.live._state.people.rows, strict=True):
            np.testing.assert_array_equal(np.asarray(right), np.asarray(ours))
        seeds = sorted({seed for kept in people.values() for seed in kept})
        probes = np.array([unit(seed) for seed in seeds]).reshape(-1, DIM)
        decisions = gallery.identify(probes, k=3)
        for seed, decision, hits in zip(seeds, decisions, oracle.nearest(probes, 3), strict=True):
            assert decision.match is not None and seed in people[decision.match.name]
            assert [(c.identity_id, c.template_id) for c in decision.candidates] == [
                (h.identity_id, h.template_id) for h in hits
            ]
        gallery.check()
        assert not gallery.compaction_due
    names = {path.name for path in folder.iterdir()}
    assert names <= {DB_NAME, "gallery.index"}, names
    assert_no_trace(folder, removed.difference(seeds))
    return people


# Kills at one place


def die_at(place: int) -> None:
    """Kill this process when it is about to touch a file, or to run a statement, for the
    ``place``-th time from now on."""
    from sqlalchemy import Engine, event

    left = place

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def audit(what: str, arguments: tuple[Any, ...]) -> None:
        files = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod",
                 "tempfile.mkdtemp", "sqlite3.connect")  # fmt: skip
        writes = what == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wxa"
        if what in files or writes:
            count()

    real = os.fsync

    def fsync(handle: int) -> None:
        count()
        real(handle)

    os.fsync = fsync
    sys.addaudithook(audit)
    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)


TASKS: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda folder, outside: open_it(folder / "new").close(),
    "enrol": lambda folder, outside: perform(("enroll", ["new", [1, 2], True]), open_it(folder),
                                             folder, outside),
    "remove": lambda folder, outside: perform(("remove", ["a"]), open_it(folder), folder, outside),
    "rebuild": lambda folder, outside: open_it(folder).rebuild_index(),
    "close": lambda folder, outside: perform(("reopen", []), open_it(folder), folder, outside),
    "export": lambda folder, outside: open_it(folder).export(outside / "e", overwrite=True),
    "import": lambda folder, outside: open_it(folder).import_(outside / "import"),
    "import anew": lambda folder, outside: from_export(outside / "import", folder / "new").close(),
    "backup": lambda folder, outside: backup.back_up(folder, outside / "b", overwrite=True),
    "restore": lambda folder, outside: backup.restore(outside / "backup", folder / "new"),
    "restore over": lambda folder, outside: backup.restore(outside / "backup", folder,
                                                           replace=True),
}  # fmt: skip


def do_and_die(task: str, folder: Path, outside: Path, place: int, say: Connection) -> None:
    """Do a task and die at a place of it; says "done" where there was no such place."""
    live._SAVE_AFTER = 2
    die_at(place)
    TASKS[task](folder, outside)
    say.send_bytes(b"done")
    os.kill(os.getpid(), signal.SIGKILL)
