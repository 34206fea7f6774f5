"""Every type of index against a scoring of everything in float64, and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import ConfigError, GalleryError
from facerec.types import FloatArray
from gallery import Gallery, faiss_rows, live
from gallery.cuda import CudaEngine
from gallery.engines import AUTO_INT8, KINDS, choose_kind, make_engine, open_engine, save_engine
from gallery.index import ExactIndex, TableIndex
from gallery.indexfile import INDEX_NAME, engine_path
from gallery.joining import give
from gallery.people import PeopleIndex
from tests.gallery_samples import CONTRACT, DIM, TABLE, fill, near, template, unit

EXACT = ["flat", "float16", "int8"]
CODED = ["float16", "int8"]
APPROXIMATE = ["hnsw", "ivf"]


def cone(seed: int, n: int, dim: int, narrowness: float) -> FloatArray:
    """(n, dim) unit vectors around one direction; strangers' cosine grows with ``narrowness``."""
    rows = unit(seed, n, dim) + narrowness * unit(seed + 1, 1, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def crowd(seed: int, people: int, each: int, dim: int, noise: float = 0.5) -> FloatArray:
    """(people * each, dim) unit vectors, each person's around a centre."""
    centres = np.repeat(unit(seed, people, dim), each, axis=0)
    rows = centres + noise * unit(seed + 1, people * each, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def exact_scores(vectors: FloatArray, queries: FloatArray) -> np.ndarray:
    return queries.astype(np.float64) @ vectors.astype(np.float64).T


def table_of(kind: str, vectors: FloatArray) -> TableIndex:
    """An index of that kind whose base has ids 1, 2, ..."""
    base = vectors.copy()
    ids = np.arange(1, len(base) + 1)
    return TableIndex(vectors.shape[1], ids, base, make_engine(choose_kind(kind, 0), base))


# Types and their bounds


def test_the_type_is_chosen_by_size_or_by_hand() -> None:
    assert choose_kind("auto", AUTO_INT8 - 1) == "flat"
    assert choose_kind("auto", AUTO_INT8) == "int8"
    assert [choose_kind(kind, 0) for kind in KINDS] == list(KINDS)
    with pytest.raises(ConfigError, match=r"'pq'.*auto, flat, float16, int8, hnsw, ivf"):
        choose_kind("pq", 10)


@given(
    st.sampled_from(CODED),
    st.integers(0, 2**20),
    st.integers(1, 200),
    st.sampled_from([2, 7, 16, 64, 128]),
    st.sampled_from([0.0, 1.0, 6.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_code_is_farther_off_than_the_bound_says(
    kind: str, seed: int, n: int, dim: int, narrowness: float
) -> None:
    vectors, queries = cone(seed, n, dim, narrowness), cone(seed + 5, 6, dim, narrowness)
    engine = make_engine(choose_kind(kind, 0), vectors)
    similarities, rows = engine.search(queries, n, None)
    assert (np.sort(rows, axis=1) == np.arange(n)).all()
    right = np.take_along_axis(exact_scores(vectors, queries), rows, axis=1)
    tolerances = engine.tolerances(queries)
    assert (np.abs(similarities - right).max(axis=1) <= tolerances).all()
    # And the bound says something.
    assert tolerances.max() < (0.002 if kind == "float16" else 0.05)


@given(
    st.sampled_from(EXACT),
    st.integers(0, 2**20),
    st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=20),
    st.integers(1, 12),
)
@settings(max_examples=80, deadline=None)
def test_the_nearest_people_are_exact_through_additions_and_removals(
    kind: str, seed: int, history: list[tuple[bool, int]], k: int
) -> None:
    dim, n = 16, 60
    vectors = np.concatenate([cone(seed, n, dim, 2.0), unit(seed + 9, 40, dim)])
    owners = np.random.default_rng(seed).integers(0, 15, 100)
    index = table_of(kind, vectors[:n])
    ids = np.arange(1, n + 1)
    people = PeopleIndex(index, ids, owners[:n].copy())
    present = set(range(1, n + 1))
    for adding, number in history:
        one = np.array([number])
        if adding and number not in present:
            present.add(number)
            people.put(one, owners[one - 1], vectors[one - 1])
        elif not adding:
            present.discard(number)
            people.remove(one)
    left = np.array(sorted(present), dtype=np.int64)
    reference = PeopleIndex(ExactIndex(dim))
    reference.put(left, owners[left - 1], vectors[left - 1])
    probes = np.concatenate([unit(seed + 3, 4, dim), vectors[:4]])
    assert people.nearest(probes, k) == reference.nearest(probes, k)
    assert people.people == reference.people
    for ours, theirs in zip(people.rows, reference.rows, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_types_find_almost_all_and_never_what_was_removed(kind: str) -> None:
    vectors = crowd(1, 400, 5, 32)
    index = table_of(kind, vectors)
    assert not index.exact
    probes = crowd(1, 400, 5, 32)[::7] + 0.05 * unit(5, len(vectors[::7]), 32)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    best = exact_scores(vectors, probes).argmax(axis=1) + 1
    assert np.mean(index.search(probes, 5)[1][:, 0] == best) > 0.97
    index.remove(best)
    late = np.array([5000, 5001])
    index.add(late, probes[:2])
    similarities, found = index.search(probes, 5)
    assert not np.isin(found, best).any()
    assert found[0, 0] == 5000 and found[1, 0] == 5001
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_an_approximate_type_that_finds_too_few_says_so() -> None:
    index = table_of("ivf", crowd(1, 2000, 1, 16))
    similarities, found = index.search(unit(3, 2, 16), 2000)
    assert (similarities[found < 0] == -np.inf).all()
    people = PeopleIndex(index, np.arange(1, 2001), np.arange(2000))
    hits = people.nearest(unit(3, 2, 16), 2000)  # comes to an end
    assert all(0 < len(row) <= 2000 for row in hits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_handful_of_vectors_makes_an_index_of_any_type(kind: str, n: int) -> None:
    index = table_of(kind, unit(1, n, 8))
    similarities, found = index.search(unit(2, 2, 8), 4)
    assert found.shape == (2, n) and similarities.shape == (2, n)
    index.add(np.array([77]), unit(9, 1, 8))
    assert index.search(unit(9, 1, 8), 1)[1][0, 0] == 77


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_opened_from_its_file_answers_alike(kind: str, tmp_path: Path) -> None:
    vectors, probes = crowd(2, 100, 4, 32), unit(7, 5, 32)
    engine = make_engine(choose_kind(kind, 0), vectors)
    arrays = save_engine(engine, tmp_path / "engine")
    again = open_engine(choose_kind(kind, 0), vectors, tmp_path / "engine", arrays)
    assert np.array_equal(again.tolerances(probes), engine.tolerances(probes))
    for ours, theirs in zip(
        again.search(probes, 9, None), engine.search(probes, 9, None), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_cuda_is_refused_where_it_is_not_there(tmp_path: Path) -> None:
    import faiss

    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        pytest.skip("there is a CUDA device here, and a FAISS that uses it")
    with pytest.raises(GalleryError, match="device cuda"):
        Gallery.open(tmp_path, contract=CONTRACT, device="cuda")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(
    not hasattr(__import__("faiss"), "StandardGpuResources"), reason="needs faiss-gpu and a GPU"
)
def test_a_cuda_device_finds_the_same_people() -> None:
    vectors = crowd(1, 300, 3, 64)
    ids, owners = np.arange(1, 901), np.repeat(np.arange(300), 3)
    base = vectors.copy()
    people = PeopleIndex(TableIndex(64, ids, base, CudaEngine(base)), ids, owners.copy())
    reference = PeopleIndex(ExactIndex(64))
    reference.put(ids, owners, vectors)
    for removed in (np.array([5, 6, 7]), np.arange(100, 140)):
        people.remove(removed)
        reference.remove(removed)
        assert people.nearest(unit(3, 9, 64), 5) == reference.nearest(unit(3, 9, 64), 5)


@given(st.integers(0, 2**20), st.integers(1, 60), st.sets(st.integers(0, 59), max_size=59))
@settings(max_examples=40, deadline=None)
def test_a_batch_by_products_is_what_faiss_finds(seed: int, k: int, removed: set[int]) -> None:
    vectors = cone(seed, 60, 16, 1.0)
    vectors[sorted(removed)] = np.nan
    queries = unit(seed + 1, faiss_rows.BATCH, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_rows, "_FIRST_PRODUCT", 7)
        patch.setattr(faiss_rows, "_PRODUCT", 11)
        similarities, rows = faiss_rows.search_flat(vectors, queries, k)
    for query, similar, found in zip(queries, similarities, rows, strict=True):
        theirs = faiss_rows.search_flat(vectors, query[None], k)
        there = theirs[1][0] >= 0
        assert (found >= 0).sum() == there.sum() == min(k, 60 - len(removed))
        np.testing.assert_allclose(similar[: there.sum()], theirs[0][0][there], atol=1e-6)
        assert not removed & set(found.tolist())


@pytest.mark.parametrize("kind", EXACT)
def test_one_query_shared_among_threads_finds_the_same(kind: str, monkeypatch) -> None:
    vectors = crowd(4, 100, 3, 32)
    index = table_of(kind, vectors)
    index.remove(np.arange(1, 200, 3))
    probes = unit(6, 5, 32)
    right = [index.search(probe[None], 60) for probe in probes]
    monkeypatch.setattr(faiss_rows, "_WORTH_SHARING", 0)
    monkeypatch.setattr(faiss_rows, "available_threads", lambda: 3)
    for probe, (similarities, ids) in zip(probes, right, strict=True):
        shared = index.search(probe[None], 60)
        assert np.array_equal(shared[1], ids)
        np.testing.assert_allclose(shared[0], similarities, atol=1e-6)


# In a gallery


def open_kind(folder: Path, kind: str) -> Gallery:
    return Gallery.open(folder, contract=CONTRACT, thresholds=TABLE, pack_name="sample", index=kind)


def probes_of(vectors: FloatArray) -> FloatArray:
    return np.stack([near(v, 0.9, seed) for seed, v in enumerate(vectors.reshape(-1, DIM)[:30])])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gallery_of_any_type_lives_on_across_openings(kind: str, tmp_path: Path) -> None:
    with open_kind(tmp_path, kind) as gallery:
        vectors = fill(gallery, 60, 3)
        gallery.rebuild_index()
        assert gallery.live.kind == kind
        probes = probes_of(vectors)
        names = [d.match.name for d in gallery.identify(probes) if d.match]
        assert names == [f"person {i // 3}" for i in range(30)]
    assert engine_path(tmp_path / INDEX_NAME).exists() == (kind != "flat")
    with open_kind(tmp_path, kind) as gallery:
        assert gallery.live.kind == kind
        assert [d.match.name for d in gallery.identify(probes) if d.match] == names
        gallery.remove("person 0")
        late = unit(123)
        gallery.enroll("late", [template(late, "late")])
        decisions = gallery.identify(np.stack([*probes[:3], late]))
        assert [d.match.name if d.match else None for d in decisions] == [None] * 3 + ["late"]
        gallery.check()


@pytest.mark.parametrize("damaged", ["cut", "changed", "lost"])
def test_a_damaged_engine_is_made_anew_from_good_vectors(damaged: str, tmp_path: Path) -> None:
    with open_kind(tmp_path, "int8") as gallery:
        vectors = fill(gallery, 20, 2)
        gallery.rebuild_index()
        right = gallery.identify(probes_of(vectors))
    file = engine_path(tmp_path / INDEX_NAME)
    data = bytearray(file.read_bytes())
    data[-40] ^= 0x55
    if damaged == "lost":
        file.unlink()
    else:
        file.write_bytes(data[:-30] if damaged == "cut" else data)
    with open_kind(tmp_path, "int8") as gallery:
        assert gallery.live.kind == "int8"
        assert gallery.identify(probes_of(vectors)) == right


def test_a_large_gallery_is_renewed_beside_its_searches(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(live, "_CHEAP", 10)
    monkeypatch.setattr(live, "_SAVE_AFTER", 8)
    with open_kind(tmp_path, "int8") as gallery:
        vectors = fill(gallery, 50, 2)
        for _ in range(200):
            if gallery.live.kind == "int8":
                break
            gallery.live.wait()
            gallery.enroll("again", [template(unit(len(gallery)), f"more {len(gallery)}")])
        assert gallery.live.kind == "int8"
        names = [d.match.name for d in gallery.identify(probes_of(vectors)) if d.match]
        assert names == [f"person {i // 2}" for i in range(30)]
        gallery.check()


def test_what_is_removed_while_the_copy_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch
) -> None:
    """The copy is left out, and comes to be without them when the gallery is closed."""
    with open_kind(tmp_path, "flat") as gallery:
        vectors = fill(gallery, 12)
        write = live.LiveIndex._write

        def interrupted(self: live.LiveIndex, *args: object) -> None:
            write(self, *args)
            monkeypatch.undo()
            gallery.remove("person 3")

        monkeypatch.setattr(live.LiveIndex, "_write", interrupted)
        gallery.live.renew_now()
        assert not (tmp_path / INDEX_NAME).exists()
    secret = vectors[3, 0].astype("<f4").tobytes()
    assert (tmp_path / INDEX_NAME).exists()
    assert all(secret not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize("kind", CODED)
def test_rows_that_go_while_an_index_is_made_spoil_it_for_nobody(
    tmp_path: Path, monkeypatch, kind: str, removal: bool
) -> None:
    """They become NaN where the codes are made from; that must not end in any mean."""
    with open_kind(tmp_path, kind) as gallery:
        vectors = fill(gallery, 40)
        gone = gallery.templates("person 3")[0].id
        make = live.make_engine

        def interrupted(*args: Any) -> object:
            monkeypatch.undo()
            if removal:
                gallery.remove("person 3")
            else:
                with gallery.writing() as change:
                    give(change, [gone], change.add_unnamed(1)[0])
            return make(*args)

        monkeypatch.setattr(live, "make_engine", interrupted)
        gallery.live.renew_now()
        for _ in range(2):
            gallery.live.renew_now()  # this time nobody is in the way
            found = [d.candidates[0].name for d in gallery.identify(vectors[[0, 5, 39], 0], 1)]
            assert found == ["person 0", "person 5", "person 39"]
    with open_kind(tmp_path, kind) as gallery:
        assert gallery.live.kind == kind
        assert gallery.identify(vectors[5, 0][None], 1)[0].match.name == "person 5"
        assert gallery.identify(vectors[3, 0][None], 1)[0].match is None


def test_an_index_that_takes_minutes_comes_back_where_a_process_stays(
    tmp_path: Path, monkeypatch
) -> None:
    """A removal takes it away, and a command that is soon over does not build it again."""
    monkeypatch.setattr(live, "_CHEAP", 10)
    with Gallery.open(tmp_path, contract=CONTRACT, thresholds=TABLE) as gallery:
        vectors = fill(gallery, 40, 2)
        gallery.rebuild_index("hnsw")
        gallery.remove("person 39")
    with Gallery.open(tmp_path) as gallery:
        gallery.identify(probes_of(vectors))
        gallery.live.wait()
        assert gallery.live.kind == "flat"
    monkeypatch.setattr(live, "_SETTLED_S", 0.0)
    with Gallery.open(tmp_path) as gallery:
        gallery.identify(probes_of(vectors))
        gallery.live.wait()
        assert gallery.live.kind == "hnsw"
        names = [d.match.name for d in gallery.identify(probes_of(vectors)) if d.match]
        assert names == [f"person {i // 2}" for i in range(30)]
    with Gallery.open(tmp_path) as gallery:
        assert gallery.live.kind == "hnsw"


def test_a_small_gallery_keeps_such_an_index_through_every_change(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, contract=CONTRACT, thresholds=TABLE) as gallery:
        fill(gallery, 40, 2)
        gallery.rebuild_index("ivf")
    for change in (lambda g: g.enroll("new", [template(unit(77))]), lambda g: g.remove("new")):
        with Gallery.open(tmp_path) as gallery:
            change(gallery)
        with Gallery.open(tmp_path) as gallery:
            assert gallery.live.kind == "ivf"


# Those without a name


def test_the_unnamed_are_found_apart_and_move_over_when_they_are_named(tmp_path: Path) -> None:
    with open_kind(tmp_path, "auto") as gallery, open_kind(tmp_path, "auto") as other:
        known = fill(gallery, 3)
        faces = unit(50, 4)
        with gallery.writing() as change:
            ids = change.add_unnamed(4)
            change.add_templates(
                [(i, template(v, f"street {i}")) for i, v in zip(ids, faces, strict=True)]
            )
        assert gallery.count() == (3, 3) and gallery.people()[0].name == "person 0"
        assert gallery.identify(faces[:1])[0].match is None
        for each in (gallery, other):
            with each.unnamed.searching() as state:
                assert len(state.people) == 4
                assert [h.identity_id for [h] in state.people.nearest(faces, 1)] == ids
        with gallery.writing() as change:
            change.set_state(ids[0], "named", "Zoë")
            change.set_state(ids[1], "dismissed")
        for each in (gallery, other):
            assert each.identify(faces[:1])[0].match.name == "Zoë"  # type: ignore[union-attr]
            assert each.identify(known[0])[0].match.name == "person 0"  # type: ignore[union-attr]
            assert each.identify(faces[1:2])[0].match is None
            with each.unnamed.searching() as state:
                assert len(state.people) == 3
            each.check()
    with open_kind(tmp_path, "auto") as gallery:
        assert gallery.count() == (4, 4)
        with gallery.unnamed.searching() as state:
            assert len(state.people) == 3
        secret = faces[2].astype("<f4").tobytes()
        person = gallery.person(ids[2])
        assert person.state == "unnamed" and person.name == f"unknown #{ids[2]}"
        gallery.remove(ids[2])
    assert all(secret not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_type_chosen_by_hand_stays_the_gallery_s(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, contract=CONTRACT, thresholds=TABLE) as gallery:
        vectors = fill(gallery, 40, 2)
        assert gallery.live.kind == "flat"
        gallery.rebuild_index("hnsw")
        assert gallery.live.kind == "hnsw"
        with pytest.raises(ConfigError, match="pq"):
            gallery.rebuild_index("pq")
    for _ in range(2):
        with Gallery.open(tmp_path) as gallery:
            assert gallery.live.kind == "hnsw"
            names = [d.match.name for d in gallery.identify(probes_of(vectors)) if d.match]
            assert names == [f"person {i // 2}" for i in range(30)]
    with Gallery.open(tmp_path, index="flat") as gallery:  # for now, not for good
        assert gallery.live.kind == "flat"
    with Gallery.open(tmp_path) as gallery:
        gallery.rebuild_index("auto")
    with Gallery.open(tmp_path) as gallery:
        assert gallery.live.kind == "flat"
