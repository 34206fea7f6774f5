"""Value types: what they refuse, that they are frozen, and the arithmetic of thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from facerec.types import (
    Candidate,
    Decision,
    Detections,
    EmbeddingContract,
    Face,
    ThresholdTable,
)

UNIT = np.array([0.6, 0.8], np.float32)
BOX = np.array([1, 2, 3, 4], np.float32)
POINTS = np.arange(10, dtype=np.float32).reshape(5, 2)


def _detections(n: int = 3) -> Detections:
    rng = np.random.default_rng(0)
    return Detections(rng.random((n, 4)), np.linspace(0.9, 0.5, n), rng.random((n, 5, 2)))


# Arrays


@pytest.mark.parametrize(
    ("boxes", "scores", "landmarks", "named"),
    [
        ((3, 4), (2,), (2, 5, 2), "boxes_xyxy"),
        ((2, 5), (2,), (2, 5, 2), "boxes_xyxy"),
        ((8,), (2,), (2, 5, 2), "boxes_xyxy"),
        ((2, 4), (2,), (2, 10), "landmarks"),
        ((2, 4), (2,), (1, 5, 2), "landmarks"),
        ((2, 4), (2, 1), (2, 5, 2), "scores"),
    ],
)
def test_detections_of_wrong_shape_are_refused(
    boxes: tuple[int, ...], scores: tuple[int, ...], landmarks: tuple[int, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=f"{named}: expected shape"):
        Detections(np.zeros(boxes), np.zeros(scores), np.zeros(landmarks))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for changed in ("box_xyxy", "landmarks", "embedding"):
        fields = {"box_xyxy": BOX, "landmarks": POINTS, "embedding": UNIT}
        fields[changed] = np.full_like(fields[changed], bad)
        with pytest.raises(ValueError, match=f"{changed}: holds NaN or infinity"):
            Face(det_score=0.9, **fields)
    with pytest.raises(ValueError, match="scores: holds NaN or infinity"):
        Detections(np.zeros((1, 4)), np.array([bad]), np.zeros((1, 5, 2)))


@pytest.mark.parametrize("embedding", [[0.6, 0.9], [0, 0], [3.0, 4.0], [[0.6, 0.8]]])
def test_an_embedding_is_a_vector_of_unit_length(embedding: list[float]) -> None:
    with pytest.raises(ValueError, match="embedding: expected"):
        Face(BOX, POINTS, 0.9, np.array(embedding))


def test_arrays_become_float32_and_read_only() -> None:
    face = Face(BOX.astype(np.float64), POINTS.tolist(), 0.9, UNIT.astype(np.float64))
    found = _detections()
    for array in (face.box_xyxy, face.landmarks, face.embedding, found.boxes_xyxy, found.scores):
        assert array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        face.det_score = 0.1  # type: ignore[misc]


def test_the_callers_array_stays_writable() -> None:
    mine = UNIT.copy()
    Face(BOX, POINTS, 0.9, mine)
    mine[0] = 0.5


def test_detections_are_taken_and_iterated_by_row() -> None:
    found = _detections(3)
    assert len(found) == 3
    picked = found.take([2, 0])
    np.testing.assert_array_equal(picked.boxes_xyxy, found.boxes_xyxy[[2, 0]])
    np.testing.assert_array_equal(picked.scores, found.scores[[2, 0]])
    rows = list(found)
    assert len(rows) == 3
    box, score, points = rows[1]
    np.testing.assert_array_equal(box, found.boxes_xyxy[1])
    np.testing.assert_array_equal(points, found.landmarks[1])
    assert isinstance(score, float)
    assert len(found.take([])) == len(Detections.empty()) == 0
    assert list(Detections.empty()) == []


# The contract

CONTRACT = EmbeddingContract(
    embedder_sha256="0123456789abcdef" * 4,
    template="arcface-112",
    input_size=112,
    colour="RGB",
    mean=(127.5, 127.5, 127.5),
    scale=(0.0078125, 0.0078125, 0.0078125),
    flip=True,
    dim=512,
)
CONTRACT_ID = "846eef095b2be54c"
"""Galleries on disk are bound to such ids: another hash would orphan them all."""


def test_the_id_never_changes() -> None:
    assert CONTRACT.contract_id == CONTRACT_ID


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedder_sha256", "f" * 64),
        ("template", "dlib-150"),
        ("input_size", 113),
        ("colour", "BGR"),
        ("mean", (127.5, 127.5, 127.4999)),
        ("scale", (0.0078125, 0.0078126, 0.0078125)),
        ("flip", False),
        ("dim", 511),
    ],
)
def test_every_field_changes_the_id(field: str, value: object) -> None:
    assert field in {f.name for f in dataclasses.fields(EmbeddingContract)}
    assert dataclasses.replace(CONTRACT, **{field: value}).contract_id != CONTRACT_ID


def test_no_field_is_left_untested() -> None:
    mark = test_every_field_changes_the_id.pytestmark[0]
    tested = {field for field, _ in mark.args[1]}
    assert tested == {f.name for f in dataclasses.fields(EmbeddingContract)}


def test_the_id_is_the_same_in_another_process() -> None:
    code = (
        "from facerec.types import EmbeddingContract\n"
        "import sys; print(EmbeddingContract.from_json(sys.argv[1]).contract_id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CONTRACT.to_json()],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
        env={"PYTHONHASHSEED": "123"},
    )
    assert done.stdout.strip() == CONTRACT_ID


_floats = st.floats(-1e6, 1e6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    mean=st.tuples(_floats, _floats, _floats),
    scale=st.tuples(_floats, _floats, _floats),
    template=st.text(min_size=1, max_size=20),
    flip=st.booleans(),
)
def test_a_contract_survives_json(
    mean: tuple[float, float, float],
    scale: tuple[float, float, float],
    template: str,
    flip: bool,
) -> None:
    contract = dataclasses.replace(CONTRACT, mean=mean, scale=scale, template=template, flip=flip)
    again = EmbeddingContract.from_json(contract.to_json())
    assert again == contract
    assert again.contract_id == contract.contract_id
    assert set(json.loads(contract.to_json())) == {
        f.name for f in dataclasses.fields(EmbeddingContract)
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ([127, 127, 127], (127.0, 127.0, 127.0)),
        (np.array([0.5, 1.5, 2.5], np.float32), (0.5, 1.5, 2.5)),
        ((-0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_equal_numbers_give_equal_contracts_and_equal_ids(one: object, other: object) -> None:
    a = dataclasses.replace(CONTRACT, mean=one)
    b = dataclasses.replace(CONTRACT, mean=other)
    assert a == b
    assert a.contract_id == b.contract_id
    assert hash(a) == hash(b)


# Thresholds


def _table(**changes: object) -> ThresholdTable:
    fields: dict[str, object] = {
        "fmr": (1e-1, 1e-2, 1e-3, 1e-4),
        "cosine": (0.2, 0.3, 0.35, 0.5),
        "fnmr": (0.001, 0.01, 0.02, 0.1),
        "measured_on": "a test",
    }
    return ThresholdTable(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fmr": (1e-1, 1e-2, 1e-3)}, "differ in length"),
        ({"fmr": (0.1,), "cosine": (0.2,), "fnmr": (0.3,)}, "at least two"),
        ({"fmr": (), "cosine": (), "fnmr": ()}, "at least two"),
        ({"fmr": (1e-1, 1e-2, 1e-2, 1e-4)}, "decreases strictly"),
        ({"fmr": (1e-4, 1e-3, 1e-2, 1e-1)}, "decreases strictly"),
        ({"fmr": (1.0, 1e-2, 1e-3, 1e-4)}, "between 0 and 1"),
        ({"fmr": (1e-1, 1e-2, 1e-3, 0.0)}, "between 0 and 1"),
        ({"fmr": (math.nan, 1e-2, 1e-3, 1e-4)}, "between 0 and 1"),
        ({"cosine": (0.2, 0.3, 0.29, 0.5)}, "does not decrease"),
        ({"cosine": (0.2, 0.3, math.nan, 0.5)}, "between -1 and 1"),
        ({"cosine": (0.2, 0.3, 0.35, 30.0)}, "between -1 and 1"),
        ({"cosine": (-2.0, 0.3, 0.35, 0.5)}, "between -1 and 1"),
        ({"fnmr": (0.1, 0.2, 0.3, 1.5)}, "every fnmr"),
        ({"fnmr": (0.1, 0.2, math.nan, 0.5)}, "every fnmr"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _table(**changes)


def test_measured_points_come_back_exactly() -> None:
    table = _table()
    for fmr, cosine in zip(table.fmr, table.cosine, strict=True):
        assert table.cosine_at(fmr) == pytest.approx(cosine, abs=1e-12)
        assert table.fmr_at(cosine) == pytest.approx(fmr, rel=1e-9)


def test_between_points_it_is_linear_in_the_logarithm() -> None:
    table = _table()
    assert table.cosine_at(10**-1.5) == pytest.approx(0.25)
    assert table.cosine_at(10**-3.25) == pytest.approx(0.35 + 0.25 * 0.15)


@pytest.mark.parametrize("fmr", [0.2, 1.0, 0.99e-4, 0.0, -1e-3, math.nan, math.inf])
def test_nothing_is_known_outside_the_table(fmr: float) -> None:
    with pytest.raises(ValueError, match=r"no threshold was measured.*0\.0001 to 0\.1"):
        _table().cosine_at(fmr)


def test_rounding_at_the_ends_is_forgiven() -> None:
    table = _table()
    assert table.cosine_at(1e-4 * (1 - 1e-12)) == 0.5
    assert table.cosine_at(1e-1 * (1 + 1e-12)) == 0.2


_tables = st.integers(2, 8).flatmap(
    lambda n: st.builds(
        lambda fmr, cosine: ThresholdTable(
            tuple(sorted(fmr, reverse=True)), tuple(sorted(cosine)), (0.5,) * n, "a test"
        ),
        st.lists(st.floats(1e-8, 0.99), min_size=n, max_size=n, unique=True),
        st.lists(st.floats(-1, 1), min_size=n, max_size=n),
    )
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(table=_tables, a=st.floats(0, 1), b=st.floats(0, 1))
def test_a_rarer_false_match_never_lowers_the_threshold(
    table: ThresholdTable, a: float, b: float
) -> None:
    low, high = math.log(table.fmr[-1]), math.log(table.fmr[0])
    rare, common = sorted(math.exp(low + (high - low) * share) for share in (a, b))
    assert table.cosine_at(rare) >= table.cosine_at(common) - 1e-12
    assert table.cosine[0] <= table.cosine_at(common) <= table.cosine[-1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(table=_tables, share=st.floats(0, 1))
def test_fmr_at_inverts_cosine_at(table: ThresholdTable, share: float) -> None:
    low, high = math.log(table.fmr[-1]), math.log(table.fmr[0])
    fmr = math.exp(low + (high - low) * share)
    cosine = table.cosine_at(fmr)
    back = table.fmr_at(cosine)
    assert table.cosine_at(back) == pytest.approx(cosine, abs=1e-6)
    steps = np.diff(table.cosine)
    assume((steps > 1e-4).all())
    assert back == pytest.approx(fmr, rel=1e-5)


def test_fmr_at_is_unknown_outside_and_takes_the_lowest_of_equals() -> None:
    table = _table(cosine=(0.2, 0.3, 0.3, 0.5))
    assert math.isnan(table.fmr_at(0.19))
    assert math.isnan(table.fmr_at(0.51))
    assert math.isnan(table.fmr_at(math.nan))
    assert table.fmr_at(0.3) == pytest.approx(1e-3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(fpir=st.floats(1e-9, 0.999), people=st.integers(1, 10_000_000))
def test_fpir_round_trips(fpir: float, people: int) -> None:
    """1 - (1 - FMR)^N, by logarithms: naive powers lose all digits for a large gallery."""
    fmr = _table().fmr_for_fpir(fpir, people)
    assert 0 < fmr <= fpir * (1 + 1e-12)
    assert -math.expm1(people * math.log1p(-fmr)) == pytest.approx(fpir, rel=1e-6)


def test_fpir_of_one_person_or_none_is_the_fmr() -> None:
    assert _table().fmr_for_fpir(0.01, 1) == pytest.approx(0.01)
    assert _table().fmr_for_fpir(0.01, 0) == pytest.approx(0.01)


@pytest.mark.parametrize("fpir", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_an_fpir_that_is_no_rate_is_refused(fpir: float) -> None:
    with pytest.raises(ValueError, match="FPIR lies between 0 and 1"):
        _table().fmr_for_fpir(fpir, 10)


# Decisions


def test_a_match_reaches_the_threshold_and_unknown_does_not() -> None:
    ada, bob = Candidate(1, "Ada", 0.5, 7), Candidate(2, "Bob", 0.4, 9)
    assert Decision((ada, bob), 0.5, 1e-3, 2e-3).match is ada
    assert Decision((ada, bob), 0.5000001, 1e-3, 2e-3).match is None
    assert Decision((), 0.5, 1e-3, 0.0).match is None
