"""A gallery whose vectors are in Milvus: it follows the store, and is never trusted."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import ConfigError, GalleryError
from gallery import Gallery, follower, milvus
from gallery.index import ExactIndex
from gallery.milvus import Mark, MilvusCollection, shown
from gallery.people import PeopleIndex
from gallery.records import VectorBatch
from tests.gallery_engines import PostgresServer, milvus_server, why_no_milvus_lite
from tests.gallery_samples import CONTRACT, DIM, TABLE, fill, near, template, unit

_names = itertools.count()
PROBES = unit(99, 20)


@pytest.fixture(autouse=True)
def _needs_milvus() -> None:
    if reason := why_no_milvus_lite():
        pytest.skip(reason)


@pytest.fixture
def place(postgres_server: PostgresServer, tmp_path: Path) -> str:
    """A URL with a schema and a file of Milvus Lite of its own."""
    schema = f"milvus_{next(_names)}"
    return postgres_server.url(schema, milvus=str(tmp_path / "vectors.db"), timeout="20")


def open_at(place: str, **options: str) -> Gallery:
    about = {"contract": CONTRACT, "thresholds": TABLE, "pack_name": "sample"}
    return Gallery.open(place, **about, **options)


@pytest.fixture
def gallery(place: str) -> Iterator[Gallery]:
    with open_at(place) as opened:
        yield opened


@pytest.fixture
def collection(gallery: Gallery, place: str, tmp_path: Path) -> Iterator[MilvusCollection]:
    """The gallery's own, as an operator's tool would reach it."""
    name = f"facerec_{gallery._store.uuid}_1"
    other = MilvusCollection(str(tmp_path / "vectors.db"), name, DIM, "flat", 20)
    other.attach()
    yield other
    other.close()


def oracle(gallery: Gallery) -> PeopleIndex:
    people = PeopleIndex(ExactIndex(DIM))
    with gallery.reading() as view:
        for batch in view.vectors_since(0):
            people.put(batch.ids, batch.owners, batch.vectors)
    return people


def agrees(gallery: Gallery, k: int = 5) -> bool:
    expected = oracle(gallery).nearest(PROBES, k)
    with gallery.live.searching() as state:
        return state.people.nearest(PROBES, k) == expected


def ids_in(collection: MilvusCollection) -> list[int]:
    return collection.rows(np.arange(1, 200)).ids.tolist()


# Answers


@pytest.mark.parametrize("k", [1, 5, 12, 40])
def test_the_k_most_similar_people_are_exactly_those(gallery: Gallery, k: int) -> None:
    fill(gallery, 25, 3)
    assert agrees(gallery, k)


def test_people_with_more_templates_than_a_search_returns(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_WIDTH", 8)
    monkeypatch.setattr(milvus, "MAX_WIDTH", 8)
    fill(gallery, 15, 2)
    for name, count in (("many", 40), ("more", 30)):
        views = [template(near(PROBES[0], 0.99, i), f"{name}-{i}") for i in range(count)]
        gallery.enroll(name, views)
    for k in (1, 2, 3, 10, 17, 30):
        assert agrees(gallery, k)


def test_an_approximate_index_is_made_where_it_is_asked_for(place: str) -> None:
    with open_at(place, index="hnsw") as gallery:
        vectors = fill(gallery, 30, 2)
        assert gallery.live.kind == "Milvus hnsw"
        for person in (0, 13, 29):
            match = gallery.identify(vectors[person, :1])[0].match
            assert match is not None and match.name == f"person {person}"
    with open_at(place) as gallery:
        assert gallery.live.kind == "Milvus hnsw", "it is as it was made"
        gallery.rebuild_index("int8")
        assert gallery.live.kind == "Milvus flat", "the one that is as exact"
        assert agrees(gallery, 12)
    with open_at(place) as gallery, open_at(place) as elsewhere:
        assert gallery.live.kind == "Milvus flat"
        gallery.rebuild_index("ivf")
        assert gallery.live.kind == "Milvus ivf"
        match = elsewhere.identify(vectors[5, :1])[0].match
        assert match is not None and match.name == "person 5"
        assert elsewhere.live.kind == "Milvus ivf"


def test_an_address_is_shown_without_its_password() -> None:
    assert shown("http://root:secret@milvus:19530") == "http://milvus:19530"
    assert shown("vectors.db") == "vectors.db"


# Following


def test_what_was_removed_is_not_in_milvus(gallery: Gallery, collection: MilvusCollection) -> None:
    fill(gallery, 3, 2)
    assert ids_in(collection) == [1, 2, 3, 4, 5, 6] and len(collection) == 6
    removal = gallery.remove("person 1")
    assert not removal.vacuumed and "when it next compacts" in (removal.problem or "")
    assert ids_in(collection) == [1, 2, 5, 6] and len(collection) == 4
    gallery.merge("person 0", "person 2")
    assert set(collection.rows(np.arange(1, 9)).owners.tolist()) == {1}


def test_a_collection_that_fell_behind_catches_up(gallery: Gallery, place: str) -> None:
    fill(gallery, 3)
    with open_at(place.partition("&milvus")[0]) as without:  # as a process that Milvus was off for
        fill(without, 4, seed=5)
        without.remove("person 0")
    assert agrees(gallery)


@pytest.mark.parametrize("damage", ["dropped", "emptied", "ahead", "unfinished", "unmarked"])
def test_a_collection_that_cannot_be_relied_on_is_made_anew(
    gallery: Gallery, collection: MilvusCollection, damage: str, place: str
) -> None:
    fill(gallery, 6, 2)
    if damage == "dropped":
        collection.drop()
    elif damage == "emptied":
        collection.create()
    elif damage == "ahead":  # of a store that was set back
        collection.remove(np.arange(1, 9))
        collection.set_mark(Mark(10_000))
    elif damage == "unfinished":
        collection.remove(np.arange(5, 13))
        collection.set_mark(Mark(gallery.revision, 4))
    else:
        collection._client.delete(collection.name, ids=[-1], partition_name="marks")
    if damage == "dropped":
        assert agrees(gallery)  # while it is open, too
    with open_at(place) as again:
        assert agrees(again)
        again.check()


def test_who_may_only_look_changes_nothing_in_milvus(
    place: str, gallery: Gallery, collection: MilvusCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process on a standby server, which is behind the database that Milvus follows."""
    from gallery.postgres import PostgresDatabase

    fill(gallery, 4)
    monkeypatch.setattr(PostgresDatabase, "allow_writing", lambda self: None)
    ahead = collection.mark()
    assert ahead is not None
    collection.set_mark(Mark(ahead.revision + 5, people=4, counted=ahead.counted))
    with open_at(place) as standby:
        assert standby.read_only and agrees(standby)
        standby.check()
    assert collection.mark() == Mark(ahead.revision + 5, people=4, counted=ahead.counted)
    collection.set_mark(Mark(ahead.revision - 1))
    with pytest.raises(GalleryError, match="one that may write the gallery, has to bring it up"):
        open_at(place.replace("timeout=20", "timeout=1"))


@pytest.mark.parametrize("damage", ["missing", "foreign", "owner", "vector"])
def test_a_check_finds_what_differs_and_mends_it(
    gallery: Gallery, collection: MilvusCollection, damage: str
) -> None:
    fill(gallery, 6, 2)
    row = collection.rows(np.array([3]))
    if damage == "missing":
        collection.remove(row.ids)
    elif damage == "foreign":
        collection.put(VectorBatch(np.array([77]), row.owners, row.vectors))
        assert agrees(gallery), "what Milvus has too much does no harm"
    elif damage == "owner":
        collection.put(VectorBatch(row.ids, np.array([1]), row.vectors))
        assert agrees(gallery), "whose a template is, is the store's word"
    else:
        collection.put(VectorBatch(row.ids, row.owners, unit(5, 1)))
    gallery.check()
    assert agrees(gallery) and len(collection) == 12
    with gallery.reading() as view:
        [batch] = view.vectors_since(0)
    there = collection.rows(batch.ids)
    assert np.array_equal(there.owners, batch.owners)
    assert np.array_equal(there.vectors, batch.vectors)


def test_a_filling_that_was_stopped_goes_on(
    place: str, gallery: Gallery, collection: MilvusCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_FILL", 4)
    fill(gallery, 10)
    collection.drop()
    sent: list[list[int]] = []
    put = MilvusCollection.put

    def stopped(self: MilvusCollection, batch: VectorBatch) -> None:
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(batch.ids.tolist())
        put(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusCollection, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            open_at(place)
    gallery.remove("person 1")  # goes on with the filling first
    assert sent == [[1, 2, 3, 4]] and ids_in(collection) == [1, *range(3, 11)]
    assert agrees(gallery)


def test_vectors_of_a_model_that_was_left_do_not_stay(
    place: str, gallery: Gallery, tmp_path: Path
) -> None:
    fill(gallery, 2)
    uuid = gallery._store.uuid
    old = MilvusCollection(str(tmp_path / "vectors.db"), f"facerec_{uuid}_0", DIM, "flat", 20)
    stranger = MilvusCollection(str(tmp_path / "vectors.db"), "facerec_x_1", DIM, "flat", 20)
    old.create()
    stranger.create()
    open_at(place).close()
    assert not old.attach() and stranger.attach()
    old.close()
    stranger.close()


def test_people_are_counted_after_every_change_or_once_it_matters(
    place: str, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def people() -> int:
        return gallery.identify(PROBES[:1])[0].people

    fill(gallery, 10)
    _, [only] = gallery.enroll("one", [template(unit(70), "o")])
    assert people() == 11
    gallery.remove_template(only)
    assert people() == 10, "of people without a template nobody is found"
    monkeypatch.setattr(follower, "_COUNT_ALWAYS", 5)
    monkeypatch.setattr(follower, "_COUNT_TOLERANCE", 0.2)
    for i in range(2):
        gallery.enroll(f"few {i}", [template(unit(80 + i), f"f{i}")])
    assert people() == 10
    gallery.enroll("enough", [template(unit(90), "e")])
    assert people() == 13
    with open_at(place) as again:
        assert again.identify(PROBES[:1])[0].people == 13


def test_threads_search_while_others_write(gallery: Gallery) -> None:
    vectors = fill(gallery, 10)[:, 0]
    wrong: list[str] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            for i, decision in enumerate(gallery.identify(vectors, k=1)):
                if decision.match is None or decision.match.name != f"person {i}":
                    wrong.append(f"person {i}: {decision}")

    searchers = [threading.Thread(target=search) for _ in range(3)]
    for searcher in searchers:
        searcher.start()
    for i in range(15):
        gallery.enroll(f"new {i}", [template(unit(500 + i), f"n{i}")])
        if i % 3 == 0:
            gallery.remove(f"new {i}")
    stop.set()
    for searcher in searchers:
        searcher.join()
    assert not wrong and agrees(gallery)


# Milvus that is not there


def test_a_file_of_milvus_lite_is_for_one_process(gallery: Gallery, tmp_path: Path) -> None:
    code = f"""
from gallery.milvus import MilvusCollection
MilvusCollection({str(tmp_path / "vectors.db")!r}, "facerec_x_1", 4, "flat", 5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "Milvus Lite is for one process at a time" in last and "milvus-lite server" in last


def test_the_file_is_free_once_the_last_gallery_is_closed(place: str, tmp_path: Path) -> None:
    first, second = open_at(place), open_at(place)
    first.close()
    fill(second, 2)
    second.close()
    code = f"""
from gallery.milvus import MilvusCollection
MilvusCollection({str(tmp_path / "vectors.db")!r}, "facerec_x_1", 4, "flat", 5).close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_milvus_that_is_not_there_is_a_sentence(postgres_server: PostgresServer) -> None:
    schema = f"milvus_{next(_names)}"
    place = postgres_server.url(schema, milvus="http://root:secret@127.0.0.1:1", timeout="3")
    with pytest.raises(GalleryError, match="Milvus does not answer") as caught:
        open_at(place)
    assert "secret" not in str(caught.value) and "http://127.0.0.1:1" in str(caught.value)
    with pytest.raises(ConfigError, match=r"ends in \.db"):
        open_at(place.replace("http%3A%2F%2Froot%3Asecret%40127.0.0.1%3A1", "vectors"))


def test_a_milvus_that_went_away_loses_nothing(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    schema = f"milvus_{next(_names)}"
    with milvus_server(tmp_path / "data") as (address, server):
        place = postgres_server.url(schema, milvus=address, timeout="4")
        with open_at(place) as gallery:
            fill(gallery, 3)
            server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(GalleryError, match="Milvus does not answer"):
                gallery.enroll("frozen", [template(unit(50), "f")])
            assert time.monotonic() - began < 30
            server.send_signal(signal.SIGCONT)
            assert agrees(gallery)
            server.kill()
            server.wait()
            with pytest.raises(GalleryError, match="Milvus does not answer"):
                gallery.enroll("late", [template(unit(51), "l")])
            with pytest.raises(GalleryError, match="Milvus does not answer"):
                gallery.identify(PROBES[:1])
            port = int(address.rpartition(":")[2])
            with milvus_server(tmp_path / "data", port):
                gallery.check()
                assert agrees(gallery)
                assert gallery.count() == (3, 3), "what was refused has not happened"
