"""Clustering metrics: against loops over every pair and item, and by what must hold."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facerec.clustering_metrics import Agreement, bcubed, pairwise

Labels = list[int]


def pairwise_by_loop(true: Labels, found: Labels) -> tuple[float, float]:
    """Every pair, by the definition."""
    pairs = list(combinations(range(len(true)), 2))
    right = sum(true[i] == true[j] and found[i] == found[j] for i, j in pairs)
    said = sum(found[i] == found[j] for i, j in pairs)
    wanted = sum(true[i] == true[j] for i, j in pairs)
    return (right / said if said else 1.0), (right / wanted if wanted else 1.0)


def bcubed_by_loop(true: Labels, found: Labels) -> tuple[float, float]:
    """Every item, by the definition (Amigo et al. 2009, section 3)."""
    n = len(true)
    precision = recall = 0.0
    for i in range(n):
        cluster = [j for j in range(n) if found[j] == found[i]]
        person = [j for j in range(n) if true[j] == true[i]]
        both = [j for j in cluster if true[j] == true[i]]
        precision += len(both) / len(cluster) / n
        recall += len(both) / len(person) / n
    return precision, recall


@st.composite
def labellings(draw: st.DrawFn) -> tuple[Labels, Labels]:
    n = draw(st.integers(1, 30))
    label = st.integers(-3, 5)
    rows = st.lists(label, min_size=n, max_size=n)
    return draw(rows), draw(rows)


@given(labellings())
def test_both_measures_equal_the_loops_of_their_definitions(case: tuple[Labels, Labels]) -> None:
    true, found = case
    for fast, slow in ((pairwise, pairwise_by_loop), (bcubed, bcubed_by_loop)):
        score = fast(true, found)
        assert (score.precision, score.recall) == pytest.approx(slow(true, found), abs=1e-12)


@given(labellings())
def test_exchanging_the_labellings_exchanges_precision_and_recall(
    case: tuple[Labels, Labels],
) -> None:
    true, found = case
    for measure in (pairwise, bcubed):
        there, back = measure(true, found), measure(found, true)
        assert there.precision == pytest.approx(back.recall)
        assert there.f == pytest.approx(back.f)


@given(labellings(), st.permutations(range(-3, 6)))
def test_only_who_is_together_counts_not_the_numbers(
    case: tuple[Labels, Labels], names: list[int]
) -> None:
    true, found = case
    renamed = [names[label + 3] for label in found]
    for measure in (pairwise, bcubed):
        before, after = measure(true, found), measure(true, renamed)
        assert before.precision == pytest.approx(after.precision, abs=1e-12)
        assert before.recall == pytest.approx(after.recall, abs=1e-12)


@given(labellings())
def test_shares_are_shares_and_the_truth_itself_is_perfect(case: tuple[Labels, Labels]) -> None:
    true, found = case
    for measure in (pairwise, bcubed):
        score = measure(true, found)
        assert all(0 <= value <= 1 for value in (score.precision, score.recall, score.f))
        assert measure(true, true).f == 1


@given(labellings())
def test_everybody_apart_is_precise_and_everybody_together_recalls_all(
    case: tuple[Labels, Labels],
) -> None:
    true, _ = case
    for measure in (pairwise, bcubed):
        assert measure(true, list(range(len(true)))).precision == 1
        assert measure(true, [0] * len(true)).recall == 1


def test_a_worked_example() -> None:
    # Two people of three photos; one photo of the second was put with the first's.
    score = bcubed([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1])
    assert score.precision == pytest.approx((3 * 3 / 4 + 1 / 4 + 2) / 6)
    assert score.recall == pytest.approx((3 + 1 / 3 + 2 * 2 / 3) / 6)
    pairs = pairwise([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1])
    assert (pairs.precision, pairs.recall) == (pytest.approx(4 / 7), pytest.approx(4 / 6))
    assert Agreement(0.0, 0.0).f == 0


def test_a_million_items_are_counted_without_forming_pairs() -> None:
    true = np.arange(1_000_000) // 1000
    score = pairwise(true, true // 2)
    assert score.recall == 1
    assert score.precision == pytest.approx(999 / 1999)


@pytest.mark.parametrize(
    ("true", "found", "says"),
    [
        ([0, 1], [0], "one length"),
        ([[0], [1]], [[0], [1]], "one length"),
        ([], [], "no labels"),
        ([0.5, 1.0], [0, 1], "true: labels are integers"),
        ([0, 1], ["a", "b"], "found: labels are integers"),
    ],
)
def test_what_is_no_labelling_is_refused(true: Labels, found: Labels, says: str) -> None:
    for measure in (pairwise, bcubed):
        with pytest.raises(ValueError, match=says):
            measure(true, found)
