"""Grouping faces: against SciPy's average linkage on all similarities, and by its rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from facerec.clustering_metrics import pairwise
from facerec.errors import ConfigError
from gallery.clustering import Pairs, average_linkage, find_links, linking_point
from tests.gallery_samples import DIM, TABLE, near, unit


def people(seed: int, count: int, each: int, cosine: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """(count * each, DIM) vectors around as many centres, shuffled, and whose each is."""
    centres = unit(seed, count)
    rows = np.stack([near(c, cosine, seed * 1000 + i) for c in centres for i in range(each)])
    whose = np.repeat(np.arange(count), each)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order], whose[order]


def group(vectors: np.ndarray, threshold: float, **how) -> np.ndarray:
    return average_linkage(vectors, find_links(vectors, threshold), threshold, **how)


def by_scipy(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Average linkage of all pairs, cut at the threshold."""
    distances = 1 - vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, 1 - threshold, "distance")


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 12),
    each=st.integers(1, 6),
    threshold=st.floats(0.1, 0.95),
)
def test_the_groups_are_those_of_scipys_average_linkage(
    seed: int, count: int, each: int, threshold: float
) -> None:
    vectors, _ = people(seed, count, each)
    if len(vectors) > 1:
        assert same_partition(group(vectors, threshold), by_scipy(vectors, threshold))


def test_of_many_unstructured_faces_too() -> None:
    vectors = unit(5, 400, dim=8)
    for threshold in (0.5, 0.7, 0.9):
        assert same_partition(
            average_linkage(vectors, find_links(vectors, threshold, neighbours=400), threshold),
            by_scipy(vectors, threshold),
        )


def test_people_are_found_and_a_group_is_called_by_its_lowest_row() -> None:
    vectors, whose = people(1, 30, 8, cosine=0.9)
    labels = group(vectors, 0.6)
    assert pairwise(whose, labels).f == 1
    for label in np.unique(labels):
        assert label == np.flatnonzero(labels == label)[0]


def test_a_person_of_far_more_photos_than_links_stays_one() -> None:
    vectors, whose = people(2, 3, 200, cosine=0.9)
    threshold = 0.6
    few = find_links(vectors, threshold, neighbours=8)
    assert pairwise(whose, average_linkage(vectors, few, threshold)).f == 1


def test_one_face_between_two_people_does_not_join_them() -> None:
    a, b = unit(3, 2)
    group_a = [near(a, 0.95, i) for i in range(5)]
    group_b = [near(b, 0.95, 10 + i) for i in range(5)]
    between = (a + b) / np.linalg.norm(a + b)
    vectors = np.stack([*group_a, *group_b, between.astype(np.float32)])
    threshold = 0.6
    links = find_links(vectors, threshold)
    reached = {int(i) for pair in zip(links.first, links.second, strict=True) for i in pair}
    assert 10 in reached, "the face is linked to somebody"
    labels = average_linkage(vectors, links, threshold)
    assert len(set(labels[:5])) == len(set(labels[5:10])) == 1
    assert labels[0] != labels[5]


def test_order_of_the_faces_changes_nothing() -> None:
    vectors, _ = people(4, 15, 5, cosine=0.6)
    order = np.random.default_rng(0).permutation(len(vectors))
    assert same_partition(group(vectors, 0.3)[order], group(vectors[order], 0.3))


def test_groups_that_are_there_stay_whole() -> None:
    vectors = unit(6, 6)  # strangers all
    start = np.array([0, 1, 0, 3, 4, 4])
    labels = group(vectors, 0.9, start=start)
    assert labels.tolist() == [0, 1, 0, 3, 4, 4]


def test_faces_of_two_owners_are_never_joined_and_a_new_face_goes_to_the_more_similar() -> None:
    new = unit(7)
    vectors = np.stack([near(new, c, i) for i, c in enumerate((0.7, 0.7, 0.9, 0.9))] + [new])
    owners = np.array([1, 1, 2, 2, -1])
    labels = group(vectors, 0.3, owners=owners)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert labels[4] == labels[2]
    assert len(set(group(vectors, 0.3))) == 1, "without owners they are one"


def test_what_is_kept_apart_stays_apart_whatever_lies_between() -> None:
    centre = unit(8)
    vectors = np.stack([near(centre, 0.95, i) for i in range(6)])
    labels = group(vectors, 0.3, apart=Pairs.of([4], [1]))
    assert labels[1] != labels[4]
    assert len(set(labels)) == 2, "everybody else goes to one of them"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_rules_hold_for_any_faces(seed: int, data: st.DataObject) -> None:
    vectors, _ = people(seed, 6, 4, cosine=0.7)
    n = len(vectors)
    row = st.integers(0, n - 1)
    never = data.draw(st.lists(st.tuples(row, row).filter(lambda p: p[0] != p[1]), max_size=8))
    owners = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    apart = Pairs.of([a for a, _ in never], [b for _, b in never])
    labels = group(vectors, 0.3, owners=owners, apart=apart)
    assert all(labels[a] != labels[b] for a, b in never)
    for label in np.unique(labels):
        assert len(set(owners[labels == label]) - {-1}) <= 1


def test_an_inverted_file_finds_nearly_all_links() -> None:
    vectors, _ = people(9, 400, 5, cosine=0.9)
    exact = find_links(vectors, 0.6)
    found = find_links(vectors, 0.6, exact_up_to=100)
    assert 0.99 * len(exact) <= len(found) <= len(exact)


def test_progress_is_told_and_few_faces_are_no_problem() -> None:
    told: list[tuple[int, int]] = []
    find_links(unit(1, 1500), 0.9, progress=lambda done, total: told.append((done, total)))
    assert told == [(1024, 1500), (1500, 1500)]
    assert len(find_links(unit(1, 1), 0.5)) == len(find_links(np.empty((0, DIM)), 0.5)) == 0
    assert group(np.empty((0, DIM), np.float32), 0.5).shape == (0,)


def test_the_threshold_lets_one_stranger_in_for_each_face() -> None:
    def rate(faces: int, **asked: float) -> float:
        return linking_point(TABLE, faces, pack_name="sample", **asked).fmr

    assert rate(5000) == pytest.approx(1 / 5000)
    assert rate(20) == 1e-3, "few faces: the default of a single comparison"
    assert rate(10**9) == 1e-4, "more than was measured: the lowest rate of the table"
    assert rate(5000, fmr=1e-2) == 1e-2
    assert linking_point(None, 9, pack_name="p", threshold=0.4).threshold == 0.4
    with pytest.raises(ConfigError, match="no threshold table"):
        linking_point(None, 9, pack_name="p")
