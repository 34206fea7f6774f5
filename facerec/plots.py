"""Evaluations as pictures: the ROC, and error over gallery size.

Imports the core; matplotlib only when drawing.

Drawn through matplotlib's objects, never pyplot, whose state is global to the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facerec.errors import ConfigError
from facerec.evaluation import LfwReport, Verification
from facerec.growth import GrowthReport, Spread
from facerec.identification import FPIRS

_BLUE, _ORANGE, _INK, _GRID = "#1f5fa8", "#d9771c", "#222222", "#d9d9d9"


def save_roc(report: LfwReport, path: Path) -> None:
    """Write the ROC of ``report`` to ``path``: PNG, or what its ending says (.svg, .pdf).

    TAR over FAR, logarithmic down to 1e-6: the protocol's pairs, every pair among the photos,
    and on the latter the operating points of the threshold table with their 95 % intervals.
    Raises ConfigError where matplotlib is missing or the file cannot be written.
    """
    figure = _empty_figure(8, 5.2)
    axes = figure.add_subplot()
    _draw_curve(axes, report.protocol, "protocol", _ORANGE)
    _draw_curve(axes, report.all_pairs, "every pair", _BLUE)
    lowest = _draw_points(axes, report.all_pairs)
    _dress(axes, report, lowest)
    _save(figure, path)


def save_growth(report: GrowthReport, path: Path) -> None:
    """Write the curves of ``report`` to ``path``: PNG, or what its ending says (.svg, .pdf).

    Left: FNIR over gallery size at each measured FPIR, mean and standard deviation over the draws.
    Right, where the pack has thresholds: the FPIR that they had over the one that was asked for.
    Raises ConfigError where matplotlib is missing or the file cannot be written.
    """
    with_table = any(size.predicted for size in report.sizes)
    figure = _empty_figure(11 if with_table else 6.5, 4.6)
    figure.suptitle(
        f"{report.data}, pack {report.pack}: one photo a person, "
        f"{report.strangers:,} searches of strangers",
        color=_INK,
        fontsize=12,
    )
    panels = figure.subplots(1, 2 if with_table else 1, squeeze=False)[0]
    _draw_misses(panels[0], report)
    if with_table:
        _draw_false_alarms(panels[1], report)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("people enrolled")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _clear(axes)
        if axes.lines:
            axes.legend(loc="upper left", fontsize=9, framealpha=0.95, edgecolor=_GRID)
    _save(figure, path)


def _draw_misses(axes: Any, report: GrowthReport) -> None:
    for fpir, colour in zip(FPIRS, (_BLUE, _ORANGE), strict=True):
        points = [(s.enrolled, m.fnir) for s in report.sizes for m in s.measured if m.fpir == fpir]
        if points:
            _draw_band(axes, points, f"FPIR {100 * fpir:g} %", colour)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("FNIR: enrolled people not found, %")
    axes.set_title("missed, at a measured share of false alarms", fontsize=10, loc="left")


def _draw_false_alarms(axes: Any, report: GrowthReport) -> None:
    for fpir, colour in zip(FPIRS, (_BLUE, _ORANGE), strict=True):
        rows = [
            (s.enrolled, p.measured_fpir)
            for s in report.sizes
            for p in s.predicted
            if p.fpir == fpir
        ]
        if rows:
            _draw_band(axes, rows, f"measured, {100 * fpir:g} % wanted", colour)
            axes.axhline(100 * fpir, color=colour, lw=1, ls="--")
    axes.set_yscale("log")
    axes.set_ylim(0.1, 100)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("FPIR: searches of strangers that match, %")
    axes.set_title("thresholds by FPIR = 1 - (1 - FMR)$^{people}$", fontsize=10, loc="left")


def _draw_band(axes: Any, points: Sequence[tuple[int, Spread]], label: str, colour: str) -> None:
    sizes = [size for size, _ in points]
    means = [100 * spread.mean for _, spread in points]
    axes.plot(sizes, means, "o-", color=colour, lw=1.8, markersize=4, label=label)
    off = [100 * (spread.std or 0) for _, spread in points]
    low = [max(m - o, 1e-3) for m, o in zip(means, off, strict=True)]
    high = [m + o for m, o in zip(means, off, strict=True)]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)


def _empty_figure(width: float, height: float) -> Any:
    """A figure that needs no display; inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("a picture needs matplotlib: pip install matplotlib") from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: the picture cannot be written: {exc}") from exc


def _clear(axes: Any) -> None:
    """Quiet grid behind the data, no frame above and to the right."""
    axes.grid(True, which="major", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_curve(axes: Any, result: Verification, name: str, colour: str) -> None:
    curve = result.curve
    label = (
        f"{name}: {_count(curve.genuine)} genuine, {_count(curve.impostor)} impostor; "
        f"EER {100 * result.eer:.2f} %"
    )
    axes.step(curve.far, curve.tar, where="post", color=colour, lw=1.8, label=label)


def _draw_points(axes: Any, result: Verification) -> float:
    """Mark the measured thresholds; returns the lowest TAR that the picture must show."""
    measured = [p for p in result.points if p.point.is_measured]
    lowest = 1.0
    for at, row in enumerate(measured):
        p, interval = row.point, row.fnmr_interval
        tar = 1 - p.fnmr
        low, high = (1 - interval.high, 1 - interval.low) if interval else (tar, tar)
        axes.errorbar(
            p.fmr,
            tar,
            yerr=[[max(0.0, tar - low)], [max(0.0, high - tar)]],
            fmt="o",
            color=_BLUE,
            markersize=5,
            capsize=3,
            label="thresholds (cosine beside), 95 % interval over people" if at == 0 else None,
        )
        axes.annotate(
            f"{p.cosine:.3f}",
            (p.fmr, tar),
            xytext=(7, -13),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
        )
        lowest = min(lowest, low)
    return lowest


def _dress(axes: Any, report: LfwReport, lowest: float) -> None:
    from matplotlib.ticker import PercentFormatter

    accuracy = report.accuracy
    axes.set_title(
        f"{report.data}, pack {report.pack}: accuracy {100 * accuracy.mean:.2f} "
        f"± {100 * accuracy.std:.2f} %",
        color=_INK,
        fontsize=12,
        loc="left",
    )
    axes.set_xscale("log")
    axes.set_xlim(7e-7, 1)
    floor = next((f for f in (0.95, 0.9, 0.8, 0.6, 0.4, 0.2) if lowest > f + 0.01), 0.0)
    axes.set_ylim(floor, 1 + (1 - floor) * 0.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("false accept rate (share of impostor pairs at or above the threshold)")
    axes.set_ylabel("true accept rate")
    _clear(axes)
    axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.95, edgecolor=_GRID)


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1_000_000 else f"{n:,}"
