"""The indexes against the exact reference, and people against a full scoring of everything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.types import FloatArray
from gallery.index import ExactIndex, TableIndex, VectorIndex
from gallery.people import PeopleIndex
from tests.gallery_samples import unit

INDEXES = [ExactIndex, TableIndex]


@pytest.fixture(params=INDEXES, ids=lambda cls: cls.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[int], VectorIndex]:
    return request.param  # type: ignore[no-any-return]


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_search_returns_similarities_and_ids_nearest_first(make) -> None:
    index = make(4)
    index.add(ids(7, 3, 9), np.eye(4, dtype=np.float32)[:3])
    similarities, found = index.search(np.array([[0.6, 0.8, 0, 0]], np.float32), 2)
    assert found.tolist() == [[3, 7]] and found.dtype == np.int64
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, [[0.8, 0.6]], atol=1e-6)


def test_an_empty_index_finds_nothing(make) -> None:
    index = make(4)
    similarities, found = index.search(unit(0, 3, 4), 5)
    assert similarities.shape == found.shape == (3, 0)
    index.add(ids(1), unit(1, 1, 4))
    index.remove(ids(1))
    assert index.search(unit(0, 3, 4), 5)[1].shape == (3, 0) and len(index) == 0


def test_more_neighbours_than_vectors_gives_all_of_them(make) -> None:
    index = make(4)
    index.add(ids(1, 2), unit(1, 2, 4))
    assert index.search(unit(0, 2, 4), 10)[1].shape == (2, 2)
    assert index.search(np.empty((0, 4), np.float32), 10)[1].shape == (0, 2)


def test_equal_similarities_come_in_the_order_of_ids(make) -> None:
    index = make(8)
    same = np.repeat(unit(1, 1, 8), 5, axis=0)
    index.add(ids(40, 10, 30, 20, 50), same)
    assert index.search(unit(2, 1, 8), 5)[1].tolist() == [[10, 20, 30, 40, 50]]


def test_vectors_come_back_bit_by_bit_in_any_order(make) -> None:
    index = make(16)
    vectors = unit(3, 4, 16)
    index.add(ids(5, 2), vectors[:2])
    index.add(ids(1, 9), vectors[2:])
    assert np.array_equal(index.vectors(ids(9, 5, 1, 2)), vectors[[3, 0, 2, 1]])
    index.remove(ids(2, 77))
    assert np.array_equal(index.vectors(ids(1, 5)), vectors[[2, 0]])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 2**32 - 1)), max_size=25),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_faiss_agrees_with_the_exact_index_through_any_history(
    history: list[tuple[bool, int, int]], queries: int, k: int
) -> None:
    exact, fast = ExactIndex(8), TableIndex(8)
    present: set[int] = set()
    for adding, number, seed in history:
        if adding and number not in present:
            present.add(number)
            for index in (exact, fast):
                index.add(ids(number), unit(seed, 1, 8))
        elif not adding:
            present.discard(number)
            for index in (exact, fast):
                index.remove(ids(number))
    assert len(exact) == len(fast) == len(present)
    probes = unit(99, queries, 8)
    right, fast_found = exact.search(probes, k), fast.search(probes, k)
    tolerance = fast.tolerances(probes).max()
    np.testing.assert_allclose(fast_found[0], right[0], atol=tolerance)
    everyone = np.array(sorted(present), np.int64)
    assert np.array_equal(exact.vectors(everyone), fast.vectors(everyone))
    # The same ids, but for neighbours that float32 cannot tell apart.
    gaps = np.abs(np.diff(right[0], axis=1))
    if gaps.size and gaps.min() > 10 * tolerance and k >= len(present):
        assert np.array_equal(fast_found[1], right[1])


def best_people(
    vectors: FloatArray, owners: list[int], probe: FloatArray, k: int
) -> list[tuple[int, int]]:
    """(owner, template) of the k best people: score all, then take the best of each."""
    scored = []
    for template, (vector, owner) in enumerate(zip(vectors, owners, strict=True)):
        score = float(np.sum(vector.astype(np.float64) * probe.astype(np.float64)))
        scored.append((-min(1.0, max(-1.0, score)), template, owner))
    result: dict[int, int] = {}
    for _, template, owner in sorted(scored):
        result.setdefault(owner, template)
    return list(result.items())[:k]


# A few directions, so that equal vectors, and equal similarities of unequal ones, abound.
_LATTICE = np.array(
    [v / np.linalg.norm(v) for v in np.ndindex(3, 3, 3) if any(v)], dtype=np.float32
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(_LATTICE) - 1), st.integers(0, 6)), min_size=1, max_size=120
    ),
    st.integers(1, 8),
    st.sampled_from(INDEXES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_k_nearest_people_are_exact_with_ties(
    templates: list[tuple[int, int]], k: int, make: Callable[[int], VectorIndex], seed: int
) -> None:
    vectors = _LATTICE[[which for which, _ in templates]]
    owners = [owner for _, owner in templates]
    people = PeopleIndex(make(3))
    people.put(np.arange(len(owners)), np.array(owners), vectors)
    probes = np.concatenate([_LATTICE, unit(seed, 3, 3)])
    for probe, hits in zip(probes, people.nearest(probes, k), strict=True):
        assert [(h.identity_id, h.template_id) for h in hits] == best_people(
            vectors, owners, probe, k
        )


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from(INDEXES))
@settings(max_examples=25, deadline=None)
def test_a_person_with_most_of_the_templates_does_not_crowd_out_others(
    seed: int, k: int, make: Callable[[int], VectorIndex]
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(seed, 400, 16)
    centre = vectors[0]
    vectors[:370] = centre + 0.02 * vectors[:370]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = [1] * 370 + rng.integers(2, 10, 30).tolist()
    people = PeopleIndex(make(16))
    people.put(np.arange(400), np.array(owners), vectors)
    probes = np.concatenate([centre[None], unit(seed + 1, 2, 16)])
    for probe, hits in zip(probes, people.nearest(probes, k), strict=True):
        found = [(h.identity_id, h.template_id) for h in hits]
        assert found == best_people(vectors, owners, probe, k)


def test_a_score_does_not_depend_on_the_company_it_is_computed_in() -> None:
    people = PeopleIndex(TableIndex(64))
    people.put(np.arange(500), np.arange(500) % 50, unit(1, 500, 64))
    probes = unit(2, 40, 64)
    together = people.nearest(probes, 5)
    assert together == [people.nearest(probe[None], 5)[0] for probe in probes]
    for probe, hits in zip(probes, together, strict=True):
        assert hits[0] == people.best_of(hits[0].identity_id, probe)


def test_owners_change_and_templates_go() -> None:
    people = PeopleIndex(TableIndex(8))
    vectors = unit(5, 4, 8)
    people.put(np.array([10, 20, 40]), np.array([1, 1, 2]), vectors[[0, 1, 3]])
    people.put(np.array([20, 30]), np.array([2, 3]), vectors[[1, 2]])
    assert (len(people), people.people) == (4, 3)
    assert [a.tolist() for a in people.rows[:2]] == [[10, 20, 30, 40], [1, 2, 3, 2]]
    assert np.array_equal(people.rows[2], vectors)
    people.remove(np.array([10, 30, 99]))
    assert (len(people), people.people) == (2, 1)
    assert people.best_of(1, vectors[0]) is None
    [hits] = people.nearest(vectors[:1], 3)
    assert [hit.identity_id for hit in hits] == [2]


@given(st.integers(0, 2**32 - 1), st.sampled_from(INDEXES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_a_fork_gains_the_others_do_not_see(
    seed: int, make: Callable[[int], VectorIndex], counted: bool
) -> None:
    """Every state that somebody may be searching stays what it was; only the last one grows."""
    rng = np.random.default_rng(seed)
    people, truth, states = PeopleIndex(make(8)), dict[int, tuple[int, FloatArray]](), []
    for step in range(12):
        people = people.fork()
        n = int(rng.integers(1, 40))
        new = len(truth) + 1 + np.arange(n)
        moved = rng.choice(sorted(truth), min(len(truth), 3), replace=False) if truth else []
        ids = np.concatenate([np.array(moved, np.int64), new])
        ids.sort()
        owners, vectors = rng.integers(1, 12, len(ids)), unit(seed + step, len(ids), 8)
        vectors = np.stack([truth[i][1] if i in truth else v
                            for i, v in zip(ids.tolist(), vectors, strict=True)])  # fmt: skip
        people.put(ids, owners, vectors)
        truth |= {i: (int(o), v) for i, o, v in zip(ids.tolist(), owners, vectors, strict=True)}
        states.append((people, dict(truth)))
        if counted:
            assert people.people == len({owner for owner, _ in truth.values()})
    probes = unit(seed + 100, 3, 8)
    for state, then in states:
        assert state.people == len({owner for owner, _ in then.values()})
        reference = PeopleIndex(ExactIndex(8))
        reference.put(
            np.array(sorted(then)),
            np.array([then[i][0] for i in sorted(then)]),
            np.stack([then[i][1] for i in sorted(then)]),
        )
        assert state.nearest(probes, 4) == reference.nearest(probes, 4)
