"""A store on PostgreSQL: what is particular to it. A real server, or skipped with the reason."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from facerec.errors import ConfigError, GalleryError
from gallery import postgres
from gallery.location import Location
from gallery.store import Store
from tests.gallery_engines import PASSWORD, PostgresServer, url_of
from tests.gallery_samples import CONTRACT, DIM, TABLE, template, unit

_names = itertools.count()


@pytest.fixture
def schema() -> str:
    return f"store_{next(_names)}"


@pytest.fixture
def location(postgres_server: PostgresServer, schema: str) -> Location:
    """Of a store that has just been made."""
    place = Location.of(postgres_server.url(schema, timeout="20"))
    Store.create(place, CONTRACT, "sample", TABLE)
    return place


@pytest.fixture
def store(location: Location):
    opened = Store.open(location)
    yield opened
    opened.close()


def enrol(store: Store, name: str, *seeds: int) -> tuple[int, list[int | None]]:
    with store.writing() as change:
        person = change.add_identity(name)
        new = [(person, template(unit(seed), f"{name}-{seed}")) for seed in seeds]
        return person, change.add_templates(new)


# Where it is


def test_a_location_never_shows_a_password() -> None:
    place = Location.of(
        "postgresql://me:secret@db.example:5433/faces?milvus=http://root:hidden@m:19530&timeout=5"
    )
    assert str(place) == "postgresql://me@db.example:5433/faces"
    assert place.milvus == "http://root:hidden@m:19530" and place.timeout_s == 5
    for text in (str(place), repr(place)):
        assert "secret" not in text and "hidden" not in text
    assert str(Location.of("some/folder")) == str(Path("some/folder"))
    assert Location.of("postgres://h/d?password=secret&sslmode=require").url is not None
    assert "secret" not in str(Location.of("postgres://h/d?password=secret"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://h/d", "mysql:// is neither"),
        ("http://h/d", "http:// is neither"),
        ("postgresql://me:secret@h:port/d", "not of the form postgresql://"),
        ("postgresql://me:secret@h/d?timeout=never", "number of seconds"),
        ("postgresql://me:secret@h/d?timeout=-1", "number of seconds"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Location.of(url)
    assert "secret" not in str(caught.value)


# Making and opening


def test_a_store_is_made_once_and_found_again(postgres_server: PostgresServer, schema: str) -> None:
    place = Location.of(postgres_server.url(schema))
    assert not Store.exists(place)
    Store.create(place, CONTRACT, "sample", TABLE)
    assert Store.exists(place)
    Store.create(place, CONTRACT, "another", None)  # quietly nothing
    store = Store.open(place)
    meta = store.meta()
    assert (meta.contract, meta.pack_name, meta.thresholds) == (CONTRACT, "sample", TABLE)
    assert not store.read_only and store.revision() == meta.revision == 1
    with pytest.raises(GalleryError, match="this one is on a server"):
        _ = store.db
    store.close()


def test_many_who_make_a_store_at_once_make_one(
    postgres_server: PostgresServer, schema: str
) -> None:
    place = Location.of(postgres_server.url(schema))
    makers = [
        threading.Thread(target=Store.create, args=(place, CONTRACT, "sample", TABLE))
        for _ in range(4)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    store = Store.open(place)
    assert store.revision() == 1
    store.close()


@pytest.mark.parametrize("table", ["gallery", "photos"])
def test_tables_of_another_program_are_left_alone(
    postgres_server: PostgresServer, schema: str, table: str
) -> None:
    place = Location.of(postgres_server.url(schema))
    with postgres_server.connection() as connection:
        connection.execute(f"CREATE TABLE {schema}.{table} (picture text)")
    with pytest.raises(GalleryError, match=r"not facerec's|another program|not to facerec"):
        Store.create(place, CONTRACT, "sample", TABLE)
        Store.open(place)
    with postgres_server.connection() as connection:
        tables = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = %s", [schema]
        ).fetchone()
    assert tables == (1,)


def test_a_database_that_not_every_name_fits_is_refused(postgres_server: PostgresServer) -> None:
    with postgres_server.connection() as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    place = Location.of(url_of(postgres_server.folder, "public").replace("/postgres?", "/latin?"))
    with pytest.raises(GalleryError, match="encoding is LATIN1"):
        Store.create(place, CONTRACT, "sample", TABLE)


# Reading and writing


def test_a_view_stays_while_others_write_and_vectors_stream(store: Store) -> None:
    enrol(store, "Ann", 1, 2)
    with store.reading() as view:
        before = view.revision()
        enrol(store, "Bob", 3)
        assert view.revision() == before and view.find("Bob") is None
        batches = view.vectors_since(0)
        batch = next(batches)
        cursors = view.connection.exec_driver_sql("SELECT count(*) FROM pg_cursors")
        assert cursors.scalar_one() >= 1, "all rows were fetched at once"
        assert batch.ids.tolist() == [1, 2] and batch.vectors.shape == (2, DIM)
        assert list(batches) == []
    assert store.revision() == before + 1


def test_names_are_sorted_by_code_point_as_elsewhere(store: Store) -> None:
    for i, name in enumerate(["b", "a z", "ab", "Č", "_"]):
        enrol(store, name, 10 + i)
    with store.reading() as view:
        assert [person.name for person in view.identities(None, 0, None)] == [
            "_", "a z", "ab", "b", "Č",
        ]  # fmt: skip


def test_writers_take_turns_and_lose_nothing(location: Location) -> None:
    def write(worker: int) -> None:
        store = Store.open(location)
        for i in range(15):
            enrol(store, f"{worker}-{i}", 100 * worker + i)
        store.close()

    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    store = Store.open(location)
    with store.reading() as view:
        assert view.count_identities() == view.count_templates() == 45
    assert store.revision() == 1 + 45
    store.close()


def test_what_is_raised_in_a_change_undoes_it(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.writing() as change:
        change.add_identity("Ann")
        raise KeyboardInterrupt
    with store.reading() as view:
        assert view.count_identities() == 0
    assert store.revision() == 1


def test_a_change_of_another_that_does_not_end_is_not_waited_for_for_ever(
    postgres_server: PostgresServer, schema: str, location: Location
) -> None:
    hasty = Store.open(Location.of(url_of(postgres_server.folder, schema, timeout="1")))
    slow = Store.open(location)
    with slow.writing() as change:
        change.add_identity("Ann")
        with pytest.raises(GalleryError, match=r"using it for too long|no answer within 1 s"):
            enrol(hasty, "Bob", 1)
    enrol(hasty, "Bob", 1)
    with hasty.reading() as view:
        assert {person.name for person in view.identities(None, 0, None)} == {"Ann", "Bob"}
    hasty.close()
    slow.close()


def test_who_may_only_look_looks(postgres_server: PostgresServer, schema: str) -> None:
    place = Location.of(postgres_server.url(schema))
    Store.create(place, CONTRACT, "sample", TABLE)
    with postgres_server.connection() as connection:
        connection.execute(f"CREATE ROLE {schema} LOGIN PASSWORD 'x'")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}")
    url = url_of(postgres_server.folder, schema)
    visitor = f"postgresql://{schema}:x@" + url.partition("@")[2]
    store = Store.open(Location.of(visitor))
    assert store.read_only
    with store.reading() as view:
        assert view.count_identities() == 0
    with pytest.raises(GalleryError, match="read-only here"), store.writing():
        pass
    store.close()


# A removal


def bytes_are_on_disk(server: PostgresServer, wanted: bytes) -> bool:
    with server.connection() as connection:
        connection.execute("CHECKPOINT")
    files = [p for p in (server.data / "base").rglob("*") if p.is_file()]
    return any(wanted in path.read_bytes() for path in files)


def test_a_removed_vector_leaves_the_tables(postgres_server: PostgresServer, store: Store) -> None:
    person, _ = enrol(store, "Ann", 77)
    enrol(store, "Bob", 78)
    gone, kept = unit(77).astype("<f4").tobytes(), unit(78).astype("<f4").tobytes()
    assert bytes_are_on_disk(postgres_server, gone)
    with store.writing() as change:
        change.set_meta(vacuum_due=True)
        change.remove_identity(person)
    assert store.compact() is None and not store.meta().vacuum_due
    assert not bytes_are_on_disk(postgres_server, gone)
    assert bytes_are_on_disk(postgres_server, kept)


@pytest.mark.parametrize("reader", ["of the gallery", "of something else"])
def test_a_removal_says_when_a_reader_keeps_the_rows(
    postgres_server: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    monkeypatch.setattr(postgres, "COMPACT_TIMEOUT_S", 0.2)
    person, _ = enrol(store, "Ann", 77)
    with ExitStack() as reading:
        if reader == "of the gallery":
            reading.enter_context(store.reading())
        else:  # whose older view would see the removed rows, should it come to read them
            other = reading.enter_context(postgres_server.connection())
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT 1")
        with store.writing() as change:
            change.set_meta(vacuum_due=True)
            change.remove_identity(person)
        problem = store.compact()
        assert problem is not None
        assert "reading the gallery" in problem or "using it for too long" in problem
        assert store.meta().vacuum_due
    assert store.compact() is None and not store.meta().vacuum_due


def test_a_large_gallery_is_not_rewritten_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "COMPACT_BYTES", 0)
    person, _ = enrol(store, "Ann", 77)
    with store.writing() as change:
        change.set_meta(vacuum_due=True)
        change.remove_identity(person)
    problem = store.compact()
    assert problem is not None and "facerec compact" in problem and PASSWORD not in problem
    assert store.meta().vacuum_due
    assert store.compact(now=True) is None and not store.meta().vacuum_due


def test_a_check_walks_everything(postgres_server: PostgresServer, store: Store) -> None:
    enrol(store, "Ann", 1, 2)
    store.check()
    with postgres_server.connection() as connection:
        schema = store.location.url.query["options"].partition("=")[2]
        connection.execute(f"UPDATE {schema}.embeddings SET vector = 'abc' WHERE template_id = 2")
    with pytest.raises(GalleryError, match=r"template #2 has no vector of 32 numbers"):
        store.check()


# A server that is not there, or does not answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/postgres?", "/nowhere?"), "no such database"),
        (("facerec:", "facerec:wrong"), "password is wrong"),
        (("facerec:", "nobody:"), r"password is wrong|may not connect"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence_without_the_password(
    postgres_server: PostgresServer, change: tuple[str, str], message: str
) -> None:
    url = url_of(postgres_server.folder, "public").replace(*change)
    with pytest.raises(GalleryError, match=message) as caught:
        Store.exists(Location.of(url))
    assert PASSWORD not in str(caught.value) and "se%20cret" not in str(caught.value)


def test_where_no_server_is_is_a_sentence() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(GalleryError, match=r"me@127\.0\.0\.1:1/d: the server cannot be reached"):
        Store.exists(Location.of("postgresql://me:secret@127.0.0.1:1/d"))


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    postgres_server: PostgresServer, schema: str, location: Location
) -> None:
    store = Store.open(Location.of(url_of(postgres_server.folder, schema, timeout="1")))
    enrol(store, "Ann", 1)
    with postgres_server.frozen():
        began = time.monotonic()
        with pytest.raises(GalleryError, match=r"does not answer|cannot be reached"):
            store.revision()
        with pytest.raises(GalleryError, match=r"does not answer|cannot be reached"):
            enrol(store, "Bob", 2)
        assert time.monotonic() - began < 30
    enrol(store, "Bob", 2)
    with store.reading() as view:
        assert view.count_identities() == 2
    store.close()


def test_after_a_crash_of_the_server_what_was_acknowledged_is_there(
    postgres_server: PostgresServer, location: Location
) -> None:
    store = Store.open(location)
    acknowledged: list[str] = []
    refused: list[str] = []

    def write() -> None:
        for i in range(100_000):
            try:
                enrol(store, f"p{i}", i)
            except GalleryError as exc:
                refused.append(str(exc))
                return
            acknowledged.append(f"p{i}")

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 30:
        time.sleep(0.01)
    postgres_server.crash()
    writer.join()
    assert len(refused) == 1 and ("undone" in refused[0] or "unchanged" in refused[0])
    with pytest.raises(GalleryError, match="cannot be reached"):
        store.revision()
    postgres_server.start()
    with store.reading() as view:
        there = {person.name for person in view.identities(None, 0, None)}
        assert view.count_templates() == len(there)
    assert there >= set(acknowledged) and len(there) <= len(acknowledged) + 1
    enrol(store, "after", 1)
    store.check()
    store.close()
