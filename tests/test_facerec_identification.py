"""Open-set error over gallery size: the searches, the draws, the report and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from facerec import growth, identification
from facerec.cli import app
from facerec.errors import ConfigError
from facerec.growth import GrowthReport, draw_enrolled, grow, summarise, usual_sizes
from facerec.identification import choose_strangers, search
from facerec.image import load_image, to_jpeg
from facerec.pipeline import Pipeline
from facerec.plots import save_growth
from facerec.reporting import format_growth
from facerec.types import ThresholdTable
from gallery import Gallery, NewTemplate
from tests.gallery_samples import CONTRACT, DIM, sha

KNOWN, ALONE = 60, 150


def made(noise: float = 1.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, found and labels: 60 people of 2 to 5 photos, 150 of one; some without a face."""
    rng = np.random.default_rng(seed)
    photos = np.concatenate([rng.integers(2, 6, KNOWN), np.ones(ALONE, int)])
    labels = rng.permutation(np.repeat(np.arange(KNOWN + ALONE), photos))
    rows = rng.normal(size=(KNOWN + ALONE, DIM))[labels] + noise * rng.normal(
        size=(len(labels), DIM)
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = rng.random(len(labels)) > 0.04
    rows[~found] = 0
    return rows.astype(np.float32), found, labels


def table(cosines: tuple[float, ...], fmrs: tuple[float, ...] = (1e-1, 1e-2, 1e-3)):
    return ThresholdTable(fmrs, cosines, (0.0,) * len(fmrs), "made data")


# --- the searches ------------------------------------------------------------------------


def test_the_searches_are_those_of_the_products_own_gallery(tmp_path: Path) -> None:
    rows, found, labels = made()
    strangers, _ = choose_strangers(labels)
    enrolled = draw_enrolled(found, labels, strangers, np.random.default_rng(5))[:40]
    mated = np.setdiff1d(np.flatnonzero(np.isin(labels, labels[enrolled])), enrolled)
    outside = np.flatnonzero(strangers)
    ours = search(rows, found, labels, enrolled, mated, outside)
    with Gallery.open(tmp_path / "people", contract=CONTRACT) as gallery:
        for row in enrolled:
            gallery.enroll(
                str(labels[row]), [NewTemplate(rows[row], f"{row}.jpg", sha(str(row)), 0.9)]
            )
        theirs = {}
        for probe in (*mated, *outside):
            if found[probe]:
                [decision] = gallery.identify(rows[probe][None], k=len(enrolled), threshold=0.4)
                theirs[probe] = decision
    for at, probe in enumerate(mated):
        if not found[probe]:
            assert ours.mated[at] == -np.inf and not ours.right[at]
            assert ours.ranks[at] > len(enrolled)
            continue
        names = [int(candidate.name) for candidate in theirs[probe].candidates]
        assert names.index(labels[probe]) + 1 == ours.ranks[at]
        assert ours.right[at] == (names[0] == labels[probe])
        assert theirs[probe].candidates[0].similarity == pytest.approx(ours.mated[at], abs=1e-6)
    for at, probe in enumerate(outside):
        if found[probe]:
            best = theirs[probe].candidates[0].similarity
            assert best == pytest.approx(ours.strangers[at], abs=1e-6)
    point = ours.at_threshold(0.4, 0.1)
    matched = [theirs[p].match for p in outside if found[p]]
    assert point.false_positives == sum(match is not None for match in matched) > 0
    hits = [theirs[p].match for p in mated if found[p]]
    right = [
        hit is not None and int(hit.name) == labels[p]
        for hit, p in zip(hits, mated[found[mated]], strict=True)
    ]
    assert point.mated - point.misses == sum(right) > 0
    assert (point.mated, point.nonmated) == (len(mated), ALONE)


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found, labels = made()
    strangers, _ = choose_strangers(labels)
    at_once = identification.search_first_photos(rows, found, labels, strangers)
    monkeypatch.setattr(identification, "_SCORES_AT_ONCE", 7 * KNOWN)
    in_blocks = identification.search_first_photos(rows, found, labels, strangers)
    assert at_once is not None and in_blocks is not None
    assert (at_once.ranks == in_blocks.ranks).all()
    assert at_once.mated == pytest.approx(in_blocks.mated, abs=1e-6)
    assert at_once.strangers == pytest.approx(in_blocks.strangers, abs=1e-6)


# --- the draws ---------------------------------------------------------------------------


def test_a_draw_is_one_found_photo_of_everybody_and_the_seed_decides_which() -> None:
    _, found, labels = made()
    strangers, who = choose_strangers(labels)
    assert who == "the people of a single photo"
    drawn = [
        draw_enrolled(found, labels, strangers, np.random.default_rng(seed)) for seed in (1, 1, 2)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (labels[drawn[0]] != labels[drawn[2]]).any(), "the order of people is drawn"
    assert set(drawn[0]) != set(drawn[2]), "the photo is drawn too"
    for rows in drawn:
        assert found[rows].all() and not strangers[rows].any()
        people = np.unique(labels[found & ~strangers])
        assert sorted(labels[rows]) == people.tolist()


def test_rates_at_each_size_are_those_of_one_search_at_a_time() -> None:
    rows, found, labels = made()
    strangers, _ = choose_strangers(labels)
    thresholds = table((0.2, 0.35, 0.5))
    sizes = grow(rows, found, labels, strangers, sizes=(5, 20), draws=3, seed=9, table=thresholds)
    assert [size.enrolled for size in sizes] == [5, 20]
    for size in sizes:
        fnirs, hits, fpirs, searches = [], [], [], []
        fmr = 1 - 0.9 ** (1 / size.enrolled)
        cosine = thresholds.cosine_at(fmr)
        for draw in range(3):
            rng = np.random.default_rng((9, draw))
            enrolled = draw_enrolled(found, labels, strangers, rng)[: size.enrolled]
            best_of = {}
            for probe in range(len(labels)):
                scores = [
                    (float(rows[probe] @ rows[row]) if found[probe] else -np.inf, int(labels[row]))
                    for row in enrolled
                ]
                best_of[probe] = max(scores)
            tops = sorted((best_of[p][0] for p in np.flatnonzero(strangers)), reverse=True)
            refused = tops[ALONE // 10]  # FPIR 0.1 lets as many through, and not this one
            mated = [
                p
                for p in range(len(labels))
                if labels[p] in labels[enrolled] and p not in set(enrolled)
            ]
            right = [best_of[p][1] == labels[p] and found[p] for p in mated]
            accepted = [best_of[p][0] > refused for p in mated]
            found_them = [r and a for r, a in zip(right, accepted, strict=True)]
            fnirs.append(1 - np.mean(found_them))
            hits.append(np.mean(right))
            fpirs.append(np.mean([top >= cosine for top in tops]))
            searches.append(len(mated))
        [measured] = size.measured  # 150 strangers cannot show FPIR 0.01
        assert measured.fpir == 0.1
        assert measured.fnir.mean == pytest.approx(np.mean(fnirs))
        assert measured.fnir.std == pytest.approx(np.std(fnirs, ddof=1))
        assert (measured.fnir.low, measured.fnir.high) == pytest.approx((min(fnirs), max(fnirs)))
        assert size.hit_rates[0][1].mean == pytest.approx(np.mean(hits))
        assert size.searches == pytest.approx(np.mean(searches))
        predicted = size.predicted[0]
        assert (predicted.fpir, predicted.fmr) == pytest.approx((0.1, fmr))
        assert predicted.measured_fpir.mean == pytest.approx(np.mean(fpirs))


def test_a_rate_that_the_table_does_not_reach_is_left_out() -> None:
    rows, found, labels = made()
    strangers, _ = choose_strangers(labels)
    [few, many] = grow(
        rows, found, labels, strangers, sizes=(2, 50), draws=2, seed=0, table=table((0, 0.3, 0.6))
    )
    assert [p.fpir for p in few.predicted] == [0.1, 0.01]
    assert [p.fpir for p in many.predicted] == [0.1], "FMR 2e-4 is not in the table"
    [alone] = grow(rows, found, labels, strangers, sizes=(2,), draws=1, seed=0, table=None)
    assert alone.predicted == ()
    assert alone.hit_rates[0][1].std is None, "one draw has no spread"


def test_among_independent_strangers_the_approximation_holds() -> None:
    """FPIR = 1 - (1 - FMR)^N where every comparison is drawn for itself, from uniform scores."""
    n, people = 40_000, 100
    best = np.random.default_rng(0).uniform(-1, 1, (n, people)).max(axis=1).astype(np.float32)
    one = np.ones(1)
    searches = identification.Searches(
        people, one.astype(np.int64), one.astype(np.float32), one.astype(bool), best
    )
    fmr = 1 - 0.9 ** (1 / people)
    [predicted] = summarise([searches], table((0.0, 1 - 2 * fmr), (0.5, fmr))).predicted
    assert predicted.fpir == 0.1
    assert predicted.measured_fpir.mean == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / n))


def test_usual_sizes_and_what_cannot_be_drawn(tmp_path: Path, pipeline: Pipeline) -> None:
    assert usual_sizes(1559) == (10, 30, 100, 300, 1000, 1559)
    assert usual_sizes(7) == (7,)
    assert usual_sizes(30) == (10, 30)
    for name in ("Ann", "Bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(to_jpeg(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ConfigError, match="two people with two photos each"):
        growth.evaluate_identification(pipeline, tmp_path)
    for name in ("Ann", "Bob"):
        (tmp_path / name / "2.jpg").write_bytes(to_jpeg(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ConfigError, match="a gallery of 9 people; from 1 to 1"):
        growth.evaluate_identification(pipeline, tmp_path, sizes=(9,))
    with pytest.raises(ConfigError, match="draws"):
        growth.evaluate_identification(pipeline, tmp_path, draws=0)
    with pytest.raises(ConfigError, match="no such folder"):
        growth.evaluate_identification(pipeline, tmp_path / "none")


# --- the report, the picture, the command ------------------------------------------------


def made_report(strangers: int = 2000, **changes: object) -> GrowthReport:
    rows, found, labels = made()
    outside, who = choose_strangers(labels)
    fields = {
        "pack": "made",
        "contract_id": "0123",
        "data": "made data",
        "photos": len(labels),
        "people": KNOWN + ALONE,
        "enrollable": KNOWN,
        "strangers": strangers,
        "strangers_are": who,
        "missed": (),
        "draws": 4,
        "seed": 1,
        "thresholds_from": "made data; " * 12,
        "sizes": grow(
            rows,
            found,
            labels,
            outside,
            sizes=(10, 30, 60),
            draws=4,
            seed=1,
            table=table((0.2, 0.4, 0.6), (1e-1, 1e-2, 1e-4)),
        ),
        "seconds": 1.0,
    }
    return GrowthReport(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_report_as_text_and_json() -> None:
    report = made_report()
    text = format_growth(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "FNIR at FPIR 0.1" in text
    assert "FPIR had" in text
    assert "is not measured" not in text
    fewer = format_growth(made_report(strangers=150, thresholds_from=None))
    assert "FPIR 0.01 is not measured: it takes 1,000 strangers" in fewer
    assert "no thresholds" in fewer
    raw = json.loads(report.to_json())
    assert raw["sizes"][1]["enrolled"] == 30
    assert raw["sizes"][1]["measured"][0]["fnir"]["mean"] == report.sizes[1].measured[0].fnir.mean


def test_the_picture_shows_both_panels_where_there_are_thresholds(tmp_path: Path) -> None:
    report = made_report()
    save_growth(report, tmp_path / "growth.png")
    with_table = load_image(tmp_path / "growth.png")
    assert (np.abs(with_table.astype(int) - (31, 95, 168)).max(axis=2) < 8).sum() > 500
    rows, found, labels = made()
    outside, _ = choose_strangers(labels)
    bare = grow(rows, found, labels, outside, sizes=(10, 60), draws=1, seed=0, table=None)
    save_growth(made_report(sizes=bare), tmp_path / "bare.png")
    assert load_image(tmp_path / "bare.png").shape[1] < with_table.shape[1]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_growth(report, tmp_path / "nowhere" / "growth.png")


@pytest.fixture(scope="module")
def people(tmp_path_factory, pipeline: Pipeline, group_photo: np.ndarray) -> Path:
    """Six people with three photos each."""
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    for at, face in enumerate(pipeline.extract([group_photo])[0]):
        x0, y0, x1, y1 = face.box_xyxy
        half = int(max(x1 - x0, y1 - y0))
        x, y = int(x0 + x1) // 2 + half, int(y0 + y1) // 2 + half
        padded = np.pad(group_photo, ((half, half), (half, half), (0, 0)), mode="edge")
        crop = padded[y - half : y + half, x - half : x + half]
        (folder / f"Person {at}").mkdir()
        for number in range(3):
            noisy = np.clip(crop + rng.normal(0, 4, crop.shape), 0, 255).astype(np.uint8)
            (folder / f"Person {at}" / f"{number}.jpg").write_bytes(to_jpeg(noisy))
    return folder


def test_the_command_measures_draws_and_keeps_the_embeddings(people: Path, tmp_path: Path) -> None:
    kept, picture, out = tmp_path / "kept.npz", tmp_path / "growth.png", tmp_path / "report.json"
    words = ["evaluate", "identification", str(people), "--draws", "3", "--sizes", "1,3"]
    words += ["--embeddings", str(kept), "--pack", "bundled", "--device", "cpu"]
    runner = CliRunner()
    first = runner.invoke(
        app, [*words, "--json", "--plot", str(picture), "--out", str(out)], catch_exceptions=False
    )
    report = json.loads(first.stdout)
    assert (report["photos"], report["people"], report["enrollable"]) == (18, 6, 3)
    assert [size["enrolled"] for size in report["sizes"]] == [1, 3]
    assert report["sizes"][1]["hit_rates"][0] == [
        1,
        {"mean": 1.0, "std": 0.0, "low": 1.0, "high": 1.0},
    ]
    assert report["sizes"][1]["measured"] == [], "9 searches of strangers show no rate"
    assert json.loads(out.read_text()) == report
    assert load_image(picture).size
    again = runner.invoke(app, [*words, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout) == report, "read back, and seeded"
    text = runner.invoke(app, words, catch_exceptions=False).stdout
    assert "FPIR 0.1 is not measured: it takes 100 strangers" in text
    for bad in (["--sizes", "ten"], ["--sizes", "99"], ["--plot", str(tmp_path / "no" / "x.png")]):
        with pytest.raises(ConfigError):
            runner.invoke(app, [*words, *bad], catch_exceptions=False)
