"""An evaluation as a table of plain text. Imports the core only."""

from __future__ import annotations

from facerec.evaluation import Point
from facerec.metrics import MIN_IMPOSTORS
from facerec.reporting import columns, percent, verification_lines
from training.evaluation.results import EvaluationReport, SetResult

SUMMARY_FARS = (1e-3, 1e-4)
_NAMED = 5


def summary_head() -> tuple[str, ...]:
    """Titles of :func:`summary_row`."""
    tars = (f"TAR@{far:.0e}".replace("e-0", "e-") for far in SUMMARY_FARS)
    return ("set", "images", "accuracy", *tars, "EER", "rank 1")


def summary_row(item: SetResult) -> tuple[str, ...]:
    """One set in one line. TAR and EER: of every pair of images, where that was measured."""
    rates = item.pairs[-1].rates
    by_far = {p.point.fmr: p for p in rates.points}
    return (
        item.name,
        f"{item.images:,}",
        f"{percent(item.accuracy.mean)} ± {percent(item.accuracy.std)}" if item.accuracy else "",
        *(_tar(by_far.get(far)) for far in SUMMARY_FARS),
        percent(rates.eer),
        percent(item.closed_set.cmc[0]) if item.closed_set else "",
    )


def _tar(point: Point | None) -> str:
    if point is None:
        return ""
    return percent(1 - point.point.fnmr) + ("" if point.point.is_measured else "*")


def model_line(report: EvaluationReport) -> str:
    """What was measured, in a line."""
    model = report.model
    name = f"contract {model.contract_id}" if model.contract_id else model.kind
    flip = "mean of chip and mirror image" if model.flip else "without the mirror image"
    return (
        f"{model.name} ({name}): {model.template} at {model.input_size} pixels, {model.dim}-d, "
        f"{flip}; {model.runs_on}"
    )


def format_text(report: EvaluationReport) -> str:
    """The whole report for a terminal, no trailing newline."""
    head, *rows = [summary_head(), *map(summary_row, report.sets)]
    lines = [model_line(report), "", *_left_aligned(head, rows), "All in %."]
    if any("*" in cell for row in rows for cell in row):
        lines[-1] += f" * not measured: fewer than {MIN_IMPOSTORS} impostor pairs may lie above."
    for item in report.sets:
        lines += ["", f"== {item.name}: {item.path} =="]
        lines += list(item.how)
        if item.left_out:
            named = ", ".join(item.left_out[:_NAMED])
            more = ", ..." if len(item.left_out) > _NAMED else ""
            lines.append(f"Without a face, or not readable: {len(item.left_out):,}: {named}{more}")
        for pairs in item.pairs:
            lines += ["", *verification_lines(pairs.title, pairs.rates)]
        lines += _identification(item)
    return "\n".join(lines)


def _left_aligned(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """As :func:`columns`, with the names of the sets on the left."""
    width = max(len(row[0]) for row in (head, *rows))
    return columns((head[0].ljust(width), *head[1:]), [(r[0].ljust(width), *r[1:]) for r in rows])


def _identification(item: SetResult) -> list[str]:
    lines: list[str] = []
    if item.closed_set:
        closed = item.closed_set
        ranks = ", ".join(f"rank {r} {percent(closed.cmc[r - 1])} %" for r in (1, 5, 10))
        lines += ["", f"Closed set, {closed.enrolled:,} people enrolled with one photo: {ranks}"]
    if item.open_set and item.open_set.points:
        found = item.open_set
        lines += [
            "",
            f"Open set, {found.enrolled:,} people enrolled; strangers: {found.strangers_are}",
            *columns(
                ("FPIR", "cosine", "FNIR", "missed", "strangers matched"),
                [
                    (
                        f"{p.fpir:g}",
                        f"{p.threshold:.4f}",
                        f"{percent(p.fnir)} %",
                        f"{p.misses:,} of {p.mated:,}",
                        f"{p.false_positives:,} of {p.nonmated:,}",
                    )
                    for p in found.points
                ],
            ),
        ]
    return lines
