"""The paired bootstrap: two models on the same photos, against a loop over everything drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec import intervals, metrics, pairs
from facerec.intervals import paired_tar_difference


def faces(seed: int, people: int, photos: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of people of whom some are much harder than others, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), photos)
    spread = rng.uniform(0.5, 2.0, people)[labels, None] * noise
    rows = rng.normal(size=(people, 12))[labels]
    return normalised(rows + 2 * spread * rng.normal(size=rows.shape)), labels


def normalised(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def shaken(rows: np.ndarray, seed: int, noise: float) -> np.ndarray:
    """Another model that errs nearly as the first."""
    return normalised(rows + noise * np.random.default_rng(seed).normal(size=rows.shape))


def brute_force(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, far: float, seed: int, times: int
) -> tuple[float, float, float]:
    """Low, high, share: every pair written out as often as its people were drawn."""
    rng = np.random.default_rng(seed)
    people = np.unique(labels)
    differences = []
    for _ in range(times):
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people))
        often = dict(zip(people, drawn, strict=True))
        tars = []
        for rows in (first, second):
            genuine, impostor = [], []
            scores = (rows @ rows.T).clip(-1, 1)
            for a, b in itertools.combinations(range(len(labels)), 2):
                if labels[a] == labels[b]:
                    genuine += [scores[a, b]] * often[labels[a]]
                else:
                    impostor += [scores[a, b]] * (often[labels[a]] * often[labels[b]])
            if genuine and impostor:
                tars.append(metrics.tar_at_far(np.array(genuine), np.array(impostor), far))
        if tars:
            differences.append(tars[1] - tars[0])
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(low), float(high), float(np.mean(np.array(differences) > 0))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 7), st.integers(2, 4), st.sampled_from([0.1, 0.01]))
def test_it_is_the_bootstrap_that_writes_every_pair_out(seed, people, photos, far):
    first, labels = faces(seed, people, photos)
    second = shaken(first, seed + 1, 0.2)
    found = paired_tar_difference(first, second, labels, far, seed=seed, replicates=25)
    low, high, share = brute_force(first, second, labels, far, seed, 25)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-6)
    assert found.share_better == pytest.approx(share, abs=1e-9)
    for rows, tar in ((first, found.first), (second, found.second)):
        assert tar == metrics.tar_at_far(*pairs.pair_scores(rows, labels), far)
    assert found.people == people
    assert found.difference == found.second - found.first


def test_pairing_narrows_what_alike_models_leave_open():
    first, labels = faces(3, 40, 5, noise=0.6)
    second = shaken(first, 4, 0.05)
    found = paired_tar_difference(first, second, labels, 0.01, seed=1)
    alone = []
    for rows in (first, second):
        genuine, _ = pairs.pair_scores(rows, labels)
        top = pairs.top_impostors(rows, labels, -1.0)
        subjects = pairs.genuine_subjects(labels)
        alone += intervals.bootstrap_tar_all_pairs(genuine, subjects, top, (0.01,), seed=1)
    unpaired = np.hypot(*(i.high - i.low for i in alone))
    assert found.interval.high - found.interval.low < 0.6 * unpaired


def test_a_model_against_itself_differs_by_nothing():
    rows, labels = faces(5, 15, 4)
    found = paired_tar_difference(rows, rows, labels, 0.01, seed=1)
    assert (found.difference, found.interval.low, found.interval.high) == (0, 0, 0)
    assert found.share_better == 0


def test_the_order_of_photos_and_dimensions_do_not_matter_but_the_models_order_does():
    first, labels = faces(6, 20, 4)
    second = normalised(np.pad(shaken(first, 7, 0.4), ((0, 0), (0, 5))))
    found = paired_tar_difference(first, second, labels, 0.01, seed=1)
    order = np.random.default_rng(0).permutation(len(labels))
    again = paired_tar_difference(first[order], second[order], labels[order], 0.01, seed=1)
    assert again.interval.low == pytest.approx(found.interval.low, abs=1e-6)
    back = paired_tar_difference(second, first, labels, 0.01, seed=1)
    assert back.difference == -found.difference
    assert back.interval.low == pytest.approx(-found.interval.high)


def test_few_people_with_most_of_the_photos_and_ties_need_the_whole_list():
    """A drawn pair of heavy people can push the threshold below any fixed share of the top."""
    rng = np.random.default_rng(8)
    labels = np.concatenate((np.repeat([0, 1], 40), np.repeat(np.arange(2, 8), 3)))
    rows = normalised(rng.normal(size=(8, 6))[labels] + 0.8 * rng.normal(size=(len(labels), 6)))
    found = paired_tar_difference(rows, rows, labels, 0.1, seed=1, replicates=100)
    assert found.difference == 0
    same = np.ones((12, 2)) / np.sqrt(2)
    tied = paired_tar_difference(same, same, np.repeat(np.arange(4), 3), 0.1, seed=1)
    assert (tied.first, tied.second) == (0, 0)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    def models(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, labels = faces(seed, 30, 5, noise=0.5)
        return first, shaken(first, seed + 10**6, 0.15), labels

    truth = []
    for seed in range(1000, 1060):
        first, second, labels = models(seed)
        tars = [metrics.tar_at_far(*pairs.pair_scores(r, labels), 0.01) for r in (first, second)]
        truth.append(tars[1] - tars[0])
    mean = float(np.mean(truth))
    covered = 0
    for seed in range(40):
        found = paired_tar_difference(*models(seed), 0.01, seed=seed, replicates=200)
        covered += found.interval.low <= mean <= found.interval.high
    assert covered >= 34


def test_what_does_not_fit_is_refused():
    rows, labels = faces(9, 6, 3)
    with pytest.raises(ValueError, match="too few people"):
        paired_tar_difference(rows[:3], rows[:3], np.array([0, 0, 1]), 0.1, seed=0, replicates=400)
    with pytest.raises(ValueError, match="expected embeddings"):
        paired_tar_difference(rows, rows[:-1], labels, 0.1, seed=0)
    with pytest.raises(ValueError, match="every FAR"):
        paired_tar_difference(rows, rows, labels, -0.1, seed=0)
    with pytest.raises(ValueError, match="confidence"):
        paired_tar_difference(rows, rows, labels, 0.1, seed=0, confidence=0)
