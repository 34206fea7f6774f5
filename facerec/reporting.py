"""An evaluation as text, and its thresholds into a pack. Imports the core, numpy and tomlkit.

The picture of it is ``facerec.plots``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tomlkit
from tomlkit.exceptions import ParseError

from facerec.errors import ModelError
from facerec.evaluation import LfwReport, Point, Verification
from facerec.files import write_atomically
from facerec.growth import GallerySize, GrowthReport, Spread, fewest_strangers
from facerec.identification import FPIRS
from facerec.metrics import MIN_IMPOSTORS
from facerec.packs.manifest import MANIFEST_NAME, PackManifest
from facerec.types import ThresholdTable

_NAMED_PHOTOS = 10
_CLOSEST = 5


def format_table(report: LfwReport) -> str:
    """The report for a terminal: plain text, under 90 columns, no trailing newline."""
    accuracy = report.accuracy
    lines = [
        f"{report.data} with pack {report.pack} (contract {report.contract_id})",
        (
            f"{report.photos:,} photos of {report.people:,} people in {report.seconds:.0f} s; "
            f"no face in {_missed(report.missed)}"
        ),
        "",
        (
            f"accuracy  {percent(accuracy.mean)} ± {percent(accuracy.std)} % "
            f"(standard deviation over {len(accuracy.per_fold)} folds; "
            f"standard error {percent(accuracy.stderr)})"
        ),
        "folds     " + " ".join(percent(fold) for fold in accuracy.per_fold),
        "",
        *verification_lines("The protocol's pairs", report.protocol),
        "",
        *verification_lines("Every pair among the photos", report.all_pairs),
        "",
        "Most alike under two names (a wrong label, or the hardest strangers):",
        *(f"{pair.cosine:.4f}  {pair.photo}  {pair.other}" for pair in report.closest[:_CLOSEST]),
    ]
    if report.open_set is not None:
        ranks = ", ".join(f"rank {r} {percent(rate)} %" for r, rate in report.open_set.hit_rates)
        lines += ["", f"Open set: {report.open_set.enrolled:,} people enrolled, one photo each"]
        lines += [f"enrolled people found, whatever the similarity: {ranks}"]
        rows = [
            (
                f"{p.fpir:g}",
                f"{p.threshold:.4f}",
                f"{percent(p.fnir)} %",
                f"{p.misses:,} of {p.mated:,}",
                f"{p.false_positives:,} of {p.nonmated:,}",
            )
            for p in report.open_set.points
        ]
        lines += columns(("FPIR", "cosine", "FNIR", "missed", "strangers matched"), rows)
    return "\n".join(lines)


def _missed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NAMED_PHOTOS:,} more" if len(names) > _NAMED_PHOTOS else ""
    return f"{len(names):,}: {', '.join(names[:_NAMED_PHOTOS])}{more}"


def verification_lines(title: str, result: Verification) -> list[str]:
    """Error rates at each operating point, as lines of text."""
    head = ("FMR", "cosine", "FNMR", "95 % interval", "TAR", "impostors at or above")
    title = f"{title}: {result.curve.genuine:,} genuine, {result.curve.impostor:,} impostor"
    rows = [_point(p) for p in result.points]
    lines = [title, f"EER {percent(result.eer)} %, AUC {result.auc:.5f}", *columns(head, rows)]
    if any(not p.point.is_measured for p in result.points):
        lines.append(f"* not measured: fewer than {MIN_IMPOSTORS} impostor pairs may lie above")
    return lines


def _point(row: Point) -> tuple[str, ...]:
    p, interval = row.point, row.fnmr_interval
    return (
        f"{p.fmr:.0e}".replace("e-0", "e-") + ("" if p.is_measured else "*"),
        f"{p.cosine:.4f}",
        f"{percent(p.fnmr)} %",
        f"{percent(interval.low)} to {percent(interval.high)} %" if interval else "",
        f"{percent(1 - p.fnmr)} %",
        f"{p.impostors_above:,}",
    )


def percent(share: float) -> str:
    """A share as a number of percent, two decimals."""
    return f"{100 * share:.2f}"


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Right-aligned columns, two blanks between them."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def format_growth(report: GrowthReport) -> str:
    """Open-set error over gallery size for a terminal, under 100 columns."""
    lines = [
        f"{report.data} with pack {report.pack} (contract {report.contract_id})",
        (
            f"{report.photos:,} photos of {report.people:,} people in {report.seconds:.0f} s; "
            f"no face in {_missed(report.missed)}"
        ),
        (
            f"Enrolled: one photo a person, of up to {report.enrollable:,} people; "
            f"{report.draws} draws (seed {report.seed})"
        ),
        f"Strangers: {report.strangers:,} photos, {report.strangers_are}; the same at every size",
        "",
        "Mean ± standard deviation over the draws, %:",
        *columns(_growth_head(), [_growth_row(size) for size in report.sizes]),
    ]
    for fpir in FPIRS:
        if report.strangers < fewest_strangers(fpir):
            lines.append(
                f"FPIR {fpir:g} is not measured: it takes {fewest_strangers(fpir):,} strangers"
            )
    if report.thresholds_from is None:
        return "\n".join([*lines, "", "The pack has no thresholds, so none were put to the test."])
    head = ("people", "FPIR wanted", "FMR", "cosine", "FPIR had, %", "FNIR, %")
    return "\n".join(
        [
            *lines,
            "",
            "With the pack's own threshold for FPIR = 1 - (1 - FMR)^people, measured on",
            *textwrap.wrap(report.thresholds_from, 96),
            *columns(head, [row for size in report.sizes for row in _predicted_rows(size)]),
        ]
    )


def _growth_head() -> tuple[str, ...]:
    rates = (part for f in FPIRS for part in (f"FNIR at FPIR {f:g}", "cosine"))
    return ("people", "searches", "rank 1", "rank 5", *rates)


def _growth_row(size: GallerySize) -> tuple[str, ...]:
    cells = [f"{size.enrolled:,}", f"{size.searches:,.0f}"]
    cells += [_plus_minus(rate) for _, rate in size.hit_rates]
    by_fpir = {rate.fpir: rate for rate in size.measured}
    for fpir in FPIRS:
        rate = by_fpir.get(fpir)
        cells += [_plus_minus(rate.fnir), f"{rate.threshold.mean:.4f}"] if rate else ["", ""]
    return tuple(cells)


def _predicted_rows(size: GallerySize) -> list[tuple[str, ...]]:
    return [
        (
            f"{size.enrolled:,}",
            f"{p.fpir:g}",
            f"{p.fmr:.1e}".replace("e-0", "e-"),
            f"{p.threshold:.4f}",
            _plus_minus(p.measured_fpir, digits=2),
            _plus_minus(p.fnir),
        )
        for p in size.predicted
    ]


def _plus_minus(value: Spread, digits: int = 1) -> str:
    mean = f"{100 * value.mean:.{digits}f}"
    return mean if value.std is None else f"{mean} ± {100 * value.std:.{digits}f}"


def write_thresholds(
    pack_folder: Path, table: ThresholdTable, *, lfw_accuracy: float | None = None
) -> None:
    """Put ``table`` into the pack's pack.toml as ``[thresholds]``; all else there stays as it is.

    lfw_accuracy: written too, if given. Comments and order of the file are kept; it is
    replaced in one step, and only by a manifest that reads back as meant. Raises ModelError
    for a folder without a valid pack.toml, or one that cannot be written.
    """
    path = pack_folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
        PackManifest.parse(text, str(path))
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, ParseError) as exc:
        raise ModelError(f"{path}: cannot be read: {exc}") from exc
    section = tomlkit.table()
    section["measured_on"] = table.measured_on
    section["fmr"] = list(table.fmr)
    section["cosine"] = [fewest_digits(cosine) for cosine in table.cosine]
    section["fnmr"] = [round(fnmr, 6) for fnmr in table.fnmr]
    document["thresholds"] = section
    if lfw_accuracy is not None:
        document["lfw_accuracy"] = round(lfw_accuracy, 5)
    result = tomlkit.dumps(document)
    PackManifest.parse(result, str(path))
    try:
        write_atomically(path, result.encode())
    except OSError as exc:
        raise ModelError(
            f"{path}: the thresholds cannot be written: {exc}. Copy the pack to a folder of "
            "yours and name that folder as the pack."
        ) from exc


def fewest_digits(cosine: float) -> float:
    """The shortest decimal that decides every float32 similarity as ``cosine`` does.

    It may not exceed ``cosine`` (float64 comparisons) and rounds to it in float32.
    """
    for digits in range(4, 17):
        shorter: float = math.floor(cosine * 10**digits) / 10**digits
        if shorter <= cosine and np.float32(shorter) == np.float32(cosine):
            return shorter
    return cosine
