"""Pictures of an evaluation as SVG that takes its colours from the page around it.

Imports the standard library and the results. Classes: ``ink`` axes and text, ``grid``, and the
series ``s0``, ``s1``; the page's style sheet gives them colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.evaluation.results import ClosedSetResult, Histogram, OpenSetResult, PairResult

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 42


@dataclass(frozen=True)
class Axis:
    """One axis of a picture: where values lie, and which are marked. log: base 10."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str
    log: bool = False
    percent: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        if self.log:
            value, low, high = (math.log10(v) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def text(self, tick: float) -> str:
        """The mark's label."""
        if self.log:
            return f"1e{round(math.log10(tick))}" if tick < 1 else "1"
        return f"{100 * tick:g} %" if self.percent else f"{tick:g}"


def roc_picture(pairs: Sequence[PairResult]) -> str:
    """TAR over FAR of one or two kinds of pairs, with the intervals of the operating points."""
    lowest = min((1 / p.rates.curve.impostor for p in pairs), default=1e-1)
    x = _decades(lowest, "false accept rate")
    floors = [
        tar
        for p in pairs
        for far, tar in zip(p.rates.curve.far, p.rates.curve.tar, strict=True)
        if far >= x.low
    ]
    lows = [1 - p.fnmr_interval.high for q in pairs for p in q.rates.points if p.fnmr_interval]
    y = _upper(min([*floors, *lows]), "true accept rate")
    parts = []
    for series, p in enumerate(pairs):
        curve = zip(p.rates.curve.far, p.rates.curve.tar, strict=True)
        parts.append(_steps(x, y, [(f, t) for f, t in curve if f >= x.low], series))
        for point in p.rates.points:
            interval = point.fnmr_interval
            if interval is not None and point.point.fmr >= x.low:
                tar = 1 - point.point.fnmr
                bar = (1 - interval.high, tar, 1 - interval.low)
                parts.append(_error_bar(x, y, point.point.fmr, bar, series))
    return _picture(x, y, parts, [p.title for p in pairs], "ROC")


def histogram_picture(shown: Histogram) -> str:
    """How the similarities of genuine and of impostor pairs lie."""
    low, high = shown.edges[0], shown.edges[-1]
    top = max((*shown.genuine, *shown.impostor)) * 1.05
    x = Axis(low, high, _round_ticks(low, high), "cosine")
    y = Axis(0, top, _round_ticks(0, top), "share of the pairs in a bin", percent=True)
    parts = []
    for series, shares in enumerate((shown.genuine, shown.impostor)):
        corners = [(low, 0.0)]
        for at, share in enumerate(shares):
            corners += [(shown.edges[at], share), (shown.edges[at + 1], share)]
        corners.append((high, 0.0))
        path = " ".join(f"{_x(x, a)},{_y(y, b)}" for a, b in corners)
        parts.append(f'<polygon class="s{series} area" points="{path}"/>')
    return _picture(x, y, parts, ["genuine", "impostor"], "similarities")


def cmc_picture(found: ClosedSetResult) -> str:
    """Share of searches that find the person among the first r."""
    ranks = len(found.cmc)
    x = Axis(1, ranks, (1, 5, 10, 15, 20), "rank")
    y = _upper(found.cmc[0], "person among the first r")
    points = list(enumerate(found.cmc, 1))
    path = " ".join(f"{_x(x, r)},{_y(y, share)}" for r, share in points)
    dots = "".join(
        f'<circle class="s0 dot" cx="{_x(x, r)}" cy="{_y(y, share)}" r="3"/>' for r, share in points
    )
    return _picture(x, y, [f'<polyline class="s0" points="{path}"/>{dots}'], [], "CMC")


def det_picture(found: OpenSetResult) -> str:
    """FNIR over FPIR, with the two operating points of the table."""
    x = _decades(found.curve[0][0] / 10, "false positive identification rate")
    top = max(fnir for _, fnir in found.curve)
    top = next((t for t in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8) if top <= t), 1.0)
    y = Axis(0, top, tuple(top * k / 4 for k in range(5)), "FNIR", percent=True)
    parts = [_steps(x, y, list(found.curve), 0)]
    parts += [
        f'<circle class="s0 dot" cx="{_x(x, p.fpir)}" cy="{_y(y, p.fnir)}" r="4"/>'
        for p in found.points
    ]
    return _picture(x, y, parts, [], "open set")


def _decades(lowest: float, label: str) -> Axis:
    """From the decade at or above ``lowest``, which is as far as the data goes, to 1."""
    first = max(-6, min(-1, math.ceil(math.log10(lowest) - 1e-9)))
    ticks = tuple(10.0**k for k in range(first, 1))
    return Axis(10.0**first, 1, ticks, label, log=True)


def _upper(lowest: float, label: str) -> Axis:
    """To 1, from a round number below ``lowest``."""
    floor = next((f for f in (0.95, 0.9, 0.8, 0.6, 0.4, 0.2) if lowest > f), 0.0)
    return Axis(floor, 1, _round_ticks(floor, 1), label, percent=True)


def _round_ticks(low: float, high: float, wanted: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten, about ``wanted`` of them."""
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(k * step, 9) for k in range(first, math.floor(high / step + 1e-9) + 1))


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT), 2)


def _y(axis: Axis, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _BOTTOM - _TOP), 2)


def _steps(x: Axis, y: Axis, points: Sequence[tuple[float, float]], series: int) -> str:
    """A step curve: the value holds until the next point."""
    corners: list[str] = []
    height = 0.0
    for at, (a, b) in enumerate(points):
        if at:
            corners.append(f"{_x(x, a)},{height}")
        height = _y(y, b)
        corners.append(f"{_x(x, a)},{height}")
    return f'<polyline class="s{series}" points="{" ".join(corners)}"/>'


def _error_bar(x: Axis, y: Axis, at: float, bar: tuple[float, float, float], series: int) -> str:
    """bar: low, value, high."""
    centre = _x(x, at) + 2 * series  # two kinds of pairs have the same rates
    low, value, high = (_y(y, v) for v in bar)
    return (
        f'<path class="s{series}" d="M{centre - 4},{low}h8M{centre},{low}V{high}'
        f'M{centre - 4},{high}h8"/>'
        f'<circle class="s{series} dot" cx="{centre}" cy="{value}" r="3.5"/>'
    )


def _picture(
    x: Axis,
    y: Axis,
    parts: Sequence[str],
    names: Sequence[str],
    title: str,
) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    frame = []
    for tick in x.ticks:
        at = _x(x, tick)
        frame.append(f'<path class="grid" d="M{at},{_TOP}V{bottom}"/>')
        frame.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{x.text(tick)}</text>')
    for tick in y.ticks:
        at = _y(y, tick)
        frame.append(f'<path class="grid" d="M{_LEFT},{at}H{right}"/>')
        frame.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{y.text(tick)}</text>')
    frame.append(f'<path class="axis" d="M{_LEFT},{_TOP}V{bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    frame.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    label = escape(f"{title}: {y.label} over {x.label}")
    key = "".join(
        f'<span class="key s{at}"></span>{escape(name)} ' for at, name in enumerate(names)
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b>: {escape(y.label)}"
        f'<span class="legend">{key}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(frame)}{''.join(parts)}</svg></figure>"
    )
