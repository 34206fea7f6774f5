"""facerec.metrics, pairs and intervals against scalar oracles, ties and boundaries included."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facerec import intervals, metrics, pairs

FMRS = (0.5, 0.29, 0.1, 0.01, 0.0)


def scores(max_size: int = 30) -> st.SearchStrategy[np.ndarray]:
    """Scores with many ties (a coarse grid) or few, float32 or float64."""
    coarse = st.sampled_from([-1.0, -0.25, 0.0, 0.1, 0.3, 0.30000001192092896, 0.5, 1.0])
    fine = st.floats(-1, 1, width=32)
    return st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(
            dtype, st.integers(1, max_size), elements=st.one_of(coarse, fine).map(dtype)
        )
    )


def accepted(values: np.ndarray, threshold: float) -> int:
    """The definition, one exact comparison at a time."""
    return sum(float(value) >= threshold for value in values)


def candidates(*arrays: np.ndarray) -> list[float]:
    """Thresholds that tell apart all that any threshold tells apart: +inf, then each score."""
    return [math.inf, *sorted({float(v) for a in arrays for v in a}, reverse=True)]


# --- one threshold -----------------------------------------------------------------------


@given(scores(), st.floats(-1.5, 1.5))
def test_rates_at_any_threshold_follow_the_definition(values, threshold):
    assert metrics.fmr_at(values, threshold) == accepted(values, threshold) / len(values)
    refused = len(values) - accepted(values, threshold)
    assert metrics.fnmr_at(values, threshold) == refused / len(values)


def test_a_threshold_that_float32_cannot_hold_is_compared_exactly():
    score = np.float32(0.3)  # 0.30000001192..., above 0.3
    just_above = float(score) + 1e-12
    assert metrics.fmr_at(np.array([score]), 0.3) == 1
    assert metrics.fmr_at(np.array([score]), just_above) == 0
    assert metrics.fnmr_at(np.array([score]), just_above) == 1


@given(scores(), st.sampled_from(FMRS))
def test_threshold_for_fmr_holds_the_rate_and_is_the_smallest_that_does(values, fmr):
    threshold = metrics.threshold_for_fmr(values, fmr)
    assert accepted(values, threshold) / len(values) <= fmr
    below = float(np.nextafter(values.dtype.type(threshold), values.dtype.type(-np.inf)))
    assert accepted(values, below) / len(values) > fmr


@given(scores(), st.sampled_from(FMRS))
def test_a_derived_threshold_decides_alike_in_float32_and_in_float64(values, fmr):
    threshold = metrics.threshold_for_fmr(values, fmr)
    assert float(values.dtype.type(threshold)) == threshold


def test_threshold_with_ties_refuses_them_together():
    impostor = np.array([0.9, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    threshold = metrics.threshold_for_fmr(impostor, 0.3)  # three would be allowed, the tie is wider
    assert threshold == np.nextafter(0.5, 1)
    assert metrics.fmr_at(impostor, threshold) == 0.1


@pytest.mark.parametrize(
    ("n", "rate", "k"),
    [(100, 0.29, 29), (30, 0.1, 3), (1000, 0.001, 1), (999, 0.001, 0), (7, 0.0, 0), (10, 0.7, 7)],
)
def test_allowed_count_is_not_off_by_one_where_the_product_rounds(n, rate, k):
    assert metrics.allowed_count(n, rate) == k


@given(st.integers(1, 10**8), st.floats(0, 1, exclude_max=True))
def test_allowed_count_is_the_largest_count_within_the_rate(n, rate):
    k = metrics.allowed_count(n, rate)
    assert k / n <= rate < (k + 1) / n


# --- curves ------------------------------------------------------------------------------


@given(scores(), scores())
def test_roc_counts_every_distinct_threshold(genuine, impostor):
    curve = metrics.roc(genuine, impostor)
    expected = candidates(genuine, impostor)
    assert [float(t) for t in curve.thresholds] == expected
    for threshold, far, tar in zip(expected, curve.far, curve.tar, strict=True):
        assert far == accepted(impostor, threshold) / len(impostor)
        assert tar == accepted(genuine, threshold) / len(genuine)
    assert (curve.far[0], curve.tar[0]) == (0, 0)
    assert (curve.far[-1], curve.tar[-1]) == (1, 1)


@given(scores(), scores(), st.sampled_from(FMRS))
def test_tar_at_far_is_the_best_tar_of_any_threshold_within_the_far(genuine, impostor, far):
    best = max(
        accepted(genuine, t) / len(genuine)
        for t in [*candidates(impostor, genuine), *np.nextafter(impostor.astype(float), 2)]
        if accepted(impostor, t) / len(impostor) <= far
    )
    assert metrics.tar_at_far(genuine, impostor, far) == best


@given(scores(), scores())
def test_auc_is_the_share_of_pairs_in_the_right_order(genuine, impostor):
    wins = sum(
        Fraction(1, 2) if float(g) == float(i) else Fraction(int(float(g) > float(i)))
        for g, i in itertools.product(genuine, impostor)
    )
    assert metrics.auc(genuine, impostor) == pytest.approx(
        float(wins / (len(genuine) * len(impostor))), abs=1e-12
    )


def eer_oracle(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Walk the ROC from the strict end; stop on the segment where FMR overtakes FNMR."""
    previous = (Fraction(0), Fraction(1))
    for threshold in candidates(genuine, impostor):
        fmr = Fraction(accepted(impostor, threshold), len(impostor))
        fnmr = 1 - Fraction(accepted(genuine, threshold), len(genuine))
        if fmr > fnmr:
            before, now = previous[0] - previous[1], fmr - fnmr
            return float(previous[0] + (fmr - previous[0]) * (-before) / (now - before))
        previous = (fmr, fnmr)
    raise AssertionError("the lowest threshold accepts everything")


@given(scores(), scores())
def test_eer_is_where_the_joined_curve_crosses(genuine, impostor):
    assert metrics.eer(genuine, impostor) == pytest.approx(eer_oracle(genuine, impostor), abs=1e-12)


@pytest.mark.parametrize(
    ("genuine", "impostor", "rate"),
    [
        ([0.9, 0.8], [0.1, 0.2], 0.0),
        ([0.1, 0.2], [0.9, 0.8], 1.0),
        ([0.5, 0.5], [0.5], 0.5),
        ([0.1, 0.9], [0.1, 0.9], 0.5),
        ([0.9, 0.8, 0.7, 0.3], [0.6, 0.2, 0.1, 0.0], 0.25),
    ],
)
def test_eer_of_known_cases(genuine, impostor, rate):
    assert metrics.eer(genuine, impostor) == pytest.approx(rate)


# --- threshold tables --------------------------------------------------------------------


def test_operating_points_agree_with_the_single_functions_and_count_their_evidence():
    rng = np.random.default_rng(5)
    genuine = rng.normal(0.6, 0.1, 500).astype(np.float32)
    impostor = rng.normal(0.1, 0.1, 20_000).astype(np.float32).round(3)
    points = metrics.operating_points(genuine, impostor)
    assert tuple(p.fmr for p in points) == metrics.DECADES
    for p in points:
        assert p.cosine == metrics.threshold_for_fmr(impostor, p.fmr)
        assert p.fnmr == metrics.fnmr_at(genuine, p.cosine)
        assert p.impostors_above == accepted(impostor, p.cosine) <= p.fmr * 20_000
    assert [p.is_measured for p in points] == [True, True, True, False, False, False]


def test_threshold_table_refuses_rates_that_the_pairs_cannot_show():
    rng = np.random.default_rng(6)
    genuine, impostor = rng.normal(0.6, 0.1, 100), rng.normal(0.1, 0.1, 5_000)
    table = metrics.threshold_table(genuine, impostor, (1e-1, 1e-2), measured_on="noise")
    assert table.cosine_at(1e-2) == metrics.threshold_for_fmr(impostor, 1e-2)
    assert table.fnmr == tuple(metrics.fnmr_at(genuine, c) for c in table.cosine)
    with pytest.raises(ValueError, match=r"0\.001 cannot be measured on 5,000.*10,000 or more"):
        metrics.threshold_table(genuine, impostor, (1e-1, 1e-3), measured_on="noise")


# --- k-fold accuracy ---------------------------------------------------------------------


def accuracy(values: np.ndarray, same: np.ndarray, threshold: float) -> Fraction:
    right = sum((float(v) >= threshold) == bool(s) for v, s in zip(values, same, strict=True))
    return Fraction(right, len(values))


labelled_scores = st.integers(2, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.sampled_from([-1, 0.1, 0.2, 0.3, 0.4, 1.0])),
        hnp.arrays(np.bool_, n),
    )
)


@given(labelled_scores)
def test_no_threshold_is_better_than_the_best(data):
    values, same = data
    threshold = metrics.best_accuracy_threshold(values, same)
    best = max(
        accuracy(values, same, t) for t in [*candidates(values), *np.nextafter(values, np.inf)]
    )
    assert accuracy(values, same, threshold) == best


def test_of_equally_good_cuts_the_middle_one_and_of_its_gap_the_middle():
    # Separable: one best cut, in the middle of the gap between 0.2 and 0.6.
    assert metrics.best_accuracy_threshold([0.2, 0.1, 0.6, 0.9], [0, 0, 1, 1]) == 0.4
    # Cuts at 0.15, 0.35 and 0.55 each decide five of six; the middle one is taken.
    values, same = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0, 1, 0, 1, 0, 1]
    assert metrics.best_accuracy_threshold(values, same) == pytest.approx(0.35)
    # Two equally good cuts, at 0.15 and 0.35: the lower.
    assert metrics.best_accuracy_threshold([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1]) == pytest.approx(
        0.15
    )
    assert metrics.best_accuracy_threshold([0.1, 0.3], [1, 1]) == 0.1
    assert metrics.best_accuracy_threshold([0.1, 0.3], [0, 0]) == np.nextafter(0.3, 1)
    tiny = np.nextafter(0.5, 1)  # no number lies between: the upper one separates
    assert metrics.best_accuracy_threshold([0.5, tiny], [0, 1]) == tiny


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.tuples(
            st.just(k), hnp.arrays(np.float32, 4 * k, elements=st.floats(-1, 1, width=32))
        )
    ),
    st.randoms(use_true_random=False),
)
def test_kfold_accuracy_never_looks_at_the_fold_it_judges(data, random):
    k, values = data
    same = np.array([random.random() < 0.5 for _ in values])
    folds = np.repeat(np.arange(k), 4)
    result = metrics.kfold_accuracy(values, same, folds)
    for fold, (got, threshold) in enumerate(zip(result.per_fold, result.thresholds, strict=True)):
        outside = folds != fold
        best = max(
            accuracy(values[outside], same[outside], t)
            for t in [*candidates(values), math.inf, *np.nextafter(values.astype(float), 2)]
        )
        assert accuracy(values[outside], same[outside], threshold) == best
        assert got == pytest.approx(float(accuracy(values[~outside], same[~outside], threshold)))
    assert result.mean == pytest.approx(sum(result.per_fold) / k)
    variance = sum((a - result.mean) ** 2 for a in result.per_fold)
    assert result.std == pytest.approx(math.sqrt(variance / k))
    assert result.stderr == pytest.approx(math.sqrt(variance / (k - 1)) / math.sqrt(k))


# --- identification ----------------------------------------------------------------------


@given(scores(), scores(), st.sampled_from(FMRS), st.randoms(use_true_random=False))
def test_fnir_at_fpir_counts_wrong_people_and_refusals_as_misses(mated, nonmated, fpir, random):
    right = np.array([random.random() < 0.8 for _ in mated])
    point = metrics.fnir_at_fpir(mated, right, nonmated, fpir)
    assert point.threshold == metrics.threshold_for_fmr(nonmated, fpir)
    assert point.false_positives == accepted(nonmated, point.threshold)
    found = sum(ok and float(s) >= point.threshold for s, ok in zip(mated, right, strict=True))
    assert (point.misses, point.mated) == (len(mated) - found, len(mated))
    assert point.fnir == pytest.approx(1 - found / len(mated))


def test_a_search_that_returned_nobody_is_never_a_false_positive():
    point = metrics.fnir_at_fpir([0.9], [True], [-np.inf, -np.inf, 0.4, 0.2], 0.5)
    assert point.false_positives <= 2
    assert point.fnir == 0


def cmc_oracle(
    similarity: np.ndarray, probes: list[int], gallery: list[int], max_rank: int
) -> list[float]:
    hits = [0] * max_rank
    for row, who in zip(similarity, probes, strict=True):
        best = {
            person: max(s for s, g in zip(row, gallery, strict=True) if g == person)
            for person in set(gallery)
        }
        rank = sum(best[person] >= best[who] for person in best)
        for r in range(max_rank):
            hits[r] += rank <= r + 1
    return [h / len(probes) for h in hits]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12))
def test_cmc_ranks_people_by_their_best_template(seed, probe_count, template_count):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-2, 3, template_count) * 7
    probes = rng.choice(gallery, probe_count)
    similarity = rng.choice([0.1, 0.2, 0.3, 0.4], (probe_count, template_count))
    got = metrics.cmc(similarity, probes, gallery, 5)
    assert got == pytest.approx(cmc_oracle(similarity, list(probes), list(gallery), 5))


def test_cmc_counts_a_tie_against_the_probe_and_names_a_probe_without_a_mate():
    assert list(metrics.cmc([[0.5, 0.5]], [1], [1, 2], 2)) == [0, 1]
    with pytest.raises(ValueError, match="probe 1: label 9"):
        metrics.cmc([[0.5, 0.5], [0.1, 0.2]], [1, 9], [1, 2], 1)
    with pytest.raises(ValueError, match="not empty"):
        metrics.cmc(np.zeros((0, 2)), [], [1, 2], 1)
    with pytest.raises(ValueError, match="max_rank"):
        metrics.cmc([[0.5]], [1], [1], 0)


# --- borders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        metrics.roc,
        metrics.auc,
        metrics.eer,
        metrics.operating_points,
        lambda g, i: metrics.tar_at_far(g, i, 0.1),
        lambda g, i: intervals.bootstrap_tar(g, i, (0.1,), seed=0),
    ],
)
@pytest.mark.parametrize("bad", [[], [0.1, math.nan], [[0.1]]])
def test_bad_scores_are_refused_by_name(function, bad):
    with pytest.raises(ValueError, match=r"^genuine: "):
        function(bad, [0.1])
    with pytest.raises(ValueError, match=r"^impostor: "):
        function([0.1], bad)


def test_bad_arguments_are_refused():
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="fmr lies in"):
            metrics.threshold_for_fmr([0.1], rate)
        with pytest.raises(ValueError, match="far lies in"):
            metrics.tar_at_far([0.1], [0.1], rate)
        with pytest.raises(ValueError, match="fpir lies in"):
            metrics.fnir_at_fpir([0.1], [True], [0.1], rate)
    with pytest.raises(ValueError, match="same: expected shape"):
        metrics.best_accuracy_threshold([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="scores, same and folds differ"):
        metrics.kfold_accuracy([0.1, 0.2], [True, False], [0])
    with pytest.raises(ValueError, match="at least two"):
        metrics.kfold_accuracy([0.1, 0.2], [True, False], [3, 3])
    with pytest.raises(ValueError, match="mated_is_right"):
        metrics.fnir_at_fpir([0.1], [True, False], [0.1], 0.1)


# --- every pair --------------------------------------------------------------------------


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 8), st.sampled_from([1, 3, 64])
)
def test_pair_scores_holds_every_pair_once(seed, n, people, block):
    rng = np.random.default_rng(seed)
    rows, labels = unit(rng, n, 5), rng.integers(-people, people, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_BLOCK", block)  # several blocks, without 500 rows
        genuine, impostor = pairs.pair_scores(rows, labels)
    expected: dict[bool, list[float]] = {True: [], False: []}
    subjects = []
    for a, b in itertools.combinations(range(n), 2):
        same = bool(labels[a] == labels[b])
        expected[same].append(float(rows[a].astype(float) @ rows[b].astype(float)))
        if same:
            subjects.append(int(labels[a]))
    assert np.sort(genuine) == pytest.approx(sorted(expected[True]), abs=1e-6)
    assert np.sort(impostor) == pytest.approx(sorted(expected[False]), abs=1e-6)
    assert list(pairs.genuine_subjects(labels)) == sorted(subjects)


def test_genuine_scores_come_in_the_order_of_their_subjects():
    rng = np.random.default_rng(1)
    rows, labels = unit(rng, 30, 4), rng.integers(0, 5, 30)
    genuine, _ = pairs.pair_scores(rows, labels)
    subjects = pairs.genuine_subjects(labels)
    for person in range(5):
        mine, _ = pairs.pair_scores(rows[labels == person], labels[labels == person])
        assert np.sort(genuine[subjects == person]) == pytest.approx(np.sort(mine), abs=1e-6)


def test_similarities_stay_within_one():
    rows = np.repeat(unit(np.random.default_rng(2), 20, 128), 2, axis=0)
    genuine, _ = pairs.pair_scores(rows, np.repeat(np.arange(20), 2))
    assert genuine.max() <= 1


@pytest.mark.parametrize("threshold", [-2.0, 0.2, 0.6, 2.0])
def test_top_impostors_names_the_pairs_behind_the_scores(threshold):
    rng = np.random.default_rng(3)
    rows, labels = unit(rng, 60, 4), rng.integers(10, 30, 60)
    _, impostor = pairs.pair_scores(rows, labels)
    top = pairs.top_impostors(rows, labels, threshold)
    assert list(top.scores) == sorted(impostor[impostor >= threshold], reverse=True)
    assert top.total == len(impostor)
    assert dict(zip(top.people, top.photos, strict=True)) == {
        label: int((labels == label).sum()) for label in np.unique(labels)
    }
    for score, (a, b), subjects in zip(top.scores, top.rows, top.subjects, strict=True):
        assert tuple(subjects) == (labels[a], labels[b])
        assert labels[a] != labels[b]
        assert float(rows[a] @ rows[b]) == pytest.approx(score, abs=1e-6)


def test_thirty_million_pairs_take_seconds():
    rng = np.random.default_rng(4)
    rows, labels = unit(rng, 7701, 128), rng.integers(0, 4281, 7701)
    began = time.perf_counter()
    genuine, impostor = pairs.pair_scores(rows, labels)
    assert len(genuine) + len(impostor) == 7701 * 7700 // 2
    assert time.perf_counter() - began < 15


def test_bad_embeddings_are_refused():
    rows = unit(np.random.default_rng(4), 4, 3)
    with pytest.raises(ValueError, match="row 2 has length"):
        pairs.pair_scores(rows * np.array([[1], [1], [1.1], [1]]), np.arange(4))
    with pytest.raises(ValueError, match="row 1 has length nan"):
        pairs.pair_scores(np.where(np.arange(4)[:, None] == 1, np.nan, rows), np.arange(4))
    with pytest.raises(ValueError, match="labels: expected integers"):
        pairs.pair_scores(rows, np.arange(4.0))
    with pytest.raises(ValueError, match="expected embeddings"):
        pairs.pair_scores(rows, np.arange(3))


# --- intervals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (3, 3000, 0.00034, 0.00294),
        (10, 10, 0.7225, 1),
    ],
)
def test_wilson_interval_of_known_cases(count, n, low, high):
    interval = intervals.wilson_interval(count, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_equation(case):
    count, n = case
    interval = intervals.wilson_interval(count, n, 0.9)
    rate = count / n
    assert 0 <= interval.low <= rate <= interval.high <= 1
    for bound in {interval.low, interval.high} - {0.0, 1.0}:
        assert abs(rate - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(
            1.6448536, rel=1e-5
        )


def people_scores(seed: int, people: int, photos: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of people, some much harder than others, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), photos)
    noise = rng.uniform(0.2, 1.6, people)[labels, None] * rng.normal(size=(len(labels), 16)) / 3
    rows = unit(rng, people, 16)[labels] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def all_pairs_interval(seed: int, photos: int = 6, **options) -> tuple[float, intervals.Interval]:
    rows, labels = people_scores(seed, 30, photos)
    genuine, impostor = pairs.pair_scores(rows, labels)
    top = pairs.top_impostors(rows, labels, options.pop("threshold", -2.0))
    (interval,) = intervals.bootstrap_tar_all_pairs(
        genuine, pairs.genuine_subjects(labels), top, (1e-2,), seed=1, **options
    )
    return metrics.tar_at_far(genuine, impostor, 1e-2), interval


def test_both_subject_bootstraps_agree_and_are_reproducible():
    rows, labels = people_scores(7, 30, 6)
    genuine, impostor = pairs.pair_scores(rows, labels)
    top = pairs.top_impostors(rows, labels, -2.0)
    subjects = pairs.genuine_subjects(labels)
    every = intervals.bootstrap_tar_all_pairs(genuine, subjects, top, (0.1, 1e-2), seed=1)
    listed = intervals.bootstrap_tar(
        genuine,
        top.scores,
        (0.1, 1e-2),
        genuine_subjects=subjects,
        impostor_subjects=top.subjects,
        seed=1,
    )
    assert every == listed
    cut = metrics.threshold_for_fmr(impostor, 0.4)
    short = pairs.top_impostors(rows, labels, cut)
    assert every == intervals.bootstrap_tar_all_pairs(genuine, subjects, short, (0.1, 1e-2), seed=1)
    other = intervals.bootstrap_tar_all_pairs(genuine, subjects, top, (0.1, 1e-2), seed=2)
    assert other != every
    for far, interval in zip((0.1, 1e-2), every, strict=True):
        assert interval.low <= metrics.tar_at_far(genuine, impostor, far) <= interval.high


def test_resampling_people_admits_more_doubt_than_resampling_pairs():
    rows, labels = people_scores(8, 30, 6)
    genuine, impostor = pairs.pair_scores(rows, labels)
    (naive,) = intervals.bootstrap_tar(genuine, impostor, (1e-2,), seed=1)
    _, honest = all_pairs_interval(8)
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


def test_an_interval_covers_the_rate_of_the_population_about_as_often_as_it_says():
    reference = np.mean([all_pairs_interval(1000 + s, replicates=1)[0] for s in range(60)])
    found = [all_pairs_interval(s, replicates=200)[1] for s in range(40)]
    covered = sum(i.low <= reference <= i.high for i in found)
    assert covered >= 34  # 95 % of 40 is 38; the bootstrap of 30 people falls a little short


@given(scores(), scores(), st.sampled_from(FMRS))
def test_the_bootstrap_with_everything_drawn_once_is_the_plain_rate(genuine, impostor, far):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_multiplicities", lambda rng, n: np.ones(n, np.int64))
        (interval,) = intervals.bootstrap_tar(genuine, impostor, (far,), seed=0, replicates=1)
    assert interval.low == interval.high == metrics.tar_at_far(genuine, impostor, far)


def test_bootstrap_says_what_it_lacks():
    rows, labels = people_scores(9, 10, 3)
    genuine, impostor = pairs.pair_scores(rows, labels)
    subjects = pairs.genuine_subjects(labels)
    top = pairs.top_impostors(rows, labels, float(np.sort(impostor)[-4]))
    with pytest.raises(ValueError, match=r"too short for FAR 0\.1"):
        intervals.bootstrap_tar_all_pairs(genuine, subjects, top, (0.1,), seed=0)
    with pytest.raises(ValueError, match="both or neither"):
        intervals.bootstrap_tar(genuine, impostor, (0.1,), genuine_subjects=subjects, seed=0)
    with pytest.raises(ValueError, match="expected genuine_subjects"):
        intervals.bootstrap_tar(
            genuine, impostor, (0.1,), genuine_subjects=[1], impostor_subjects=[[1, 2]], seed=0
        )
    with pytest.raises(ValueError, match="every FAR"):
        intervals.bootstrap_tar(genuine, impostor, (1.0,), seed=0)
    with pytest.raises(ValueError, match="confidence"):
        intervals.bootstrap_tar(genuine, impostor, (0.1,), seed=0, confidence=1.0)
    with pytest.raises(ValueError, match="too few people"):
        intervals.bootstrap_tar(
            [0.5], [0.1], (0.1,), genuine_subjects=[1], impostor_subjects=[[2, 3]], seed=0
        )
    with pytest.raises(ValueError, match="0 <= count <= n"):
        intervals.wilson_interval(4, 3)
