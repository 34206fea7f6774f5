"""An evaluation as one HTML file that needs nothing beside it. Imports the core.

No script, no font, no picture from elsewhere: it can be mailed, and opened offline.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape

from facerec.evaluation import Point
from facerec.metrics import MIN_IMPOSTORS
from facerec.reporting import percent
from training.evaluation.charts import (
    cmc_picture,
    det_picture,
    histogram_picture,
    roc_picture,
)
from training.evaluation.results import EvaluationReport, PairResult, SetResult
from training.evaluation.summary import summary_head, summary_row

_NAMED = 20
_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1c1e21;--soft:#5b6068;--line:#d9dce1;
--s0:#1f5fa8;--s1:#c2610c;--panel:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e8eaed;--soft:#a3a9b3;--line:#363b43;
--s0:#6fb1ff;--s1:#ff9d4d;--panel:#1d2025}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1rem 4rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.25rem;margin:2.5rem 0 .5rem;
border-top:1px solid var(--line);padding-top:1.25rem}h3{font-size:1rem;margin:1.5rem 0 .25rem}
p{margin:.35rem 0}.soft,figcaption,.caption{color:var(--soft)}a{color:var(--s0)}
.big{font-size:1.5rem;font-weight:600;line-height:1.3;white-space:nowrap}
.tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:1rem 0}
.tile{background:var(--panel);border-radius:.5rem;padding:.6rem 1rem;flex:1 1 10rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem;margin:.5rem 0}
.caption{font-size:.9rem;margin:1rem 0 0}
th,td{padding:.3rem .8rem .3rem 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}th:first-child,td:first-child{text-align:left}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem}figcaption b{color:var(--ink)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
svg path,svg polyline{fill:none;stroke-width:1.8}.grid{stroke:var(--line);stroke-width:.8}
.axis{stroke:var(--soft);stroke-width:1}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s0.dot{fill:var(--s0)}.s1.dot{fill:var(--s1)}
.area{stroke-width:1.2;fill-opacity:.22}.s0.area{fill:var(--s0)}.s1.area{fill:var(--s1)}
.legend{display:block}.key{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;
margin:0 .35rem 0 0;vertical-align:-.1rem}.key:not(:first-child){margin-left:.8rem}
.key.s0{background:var(--s0)}.key.s1{background:var(--s1)}
code{font-size:.85rem;overflow-wrap:anywhere}
"""


def to_html(report: EvaluationReport) -> str:
    """The report as a page: summary, then each set with pictures and tables."""
    model = report.model
    title = f"Evaluation of {model.name}"
    sections = "".join(_section(f"set{at}", item) for at, item in enumerate(report.sets))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(report.date)}</p>'
        f"{_summary(report)}{_facts(report)}{sections}{_definitions()}</body></html>\n"
    )


def _summary(report: EvaluationReport) -> str:
    rows = []
    for at, item in enumerate(report.sets):
        name, *cells = summary_row(item)
        rows.append([f'<a href="#set{at}">{escape(name)}</a>', *map(escape, cells)])
    return _table("All in %", summary_head(), rows)


def _facts(report: EvaluationReport) -> str:
    model = report.model
    facts = [
        ("Model", f"{model.kind} {model.path or model.name}"),
        ("Contract", model.contract_id or "none: not exported"),
        ("SHA-256", model.sha256 or "none: in no file"),
        ("Input", f"{model.template}, {model.input_size}x{model.input_size} pixels"),
        (
            "Embedding",
            f"{model.dim} numbers, "
            + ("mean of chip and mirror image" if model.flip else "of the chip alone"),
        ),
        ("Ran on", f"{model.runs_on}; {report.machine}"),
        ("facerec", report.facerec + (f", git {report.git}" if report.git else "")),
        ("Command", shlex.join(report.command)),
    ]
    return f"<h3>Model</h3>{_list(facts)}"


def _list(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _section(anchor: str, item: SetResult) -> str:
    pictures = [roc_picture(item.pairs), *(histogram_picture(p.histogram) for p in item.pairs)]
    if item.closed_set:
        pictures.append(cmc_picture(item.closed_set))
    if item.open_set and len(item.open_set.curve) > 1:
        pictures.append(det_picture(item.open_set))
    if len(item.pairs) > 1:
        for at, pairs in enumerate(item.pairs, 1):
            pictures[at] = pictures[at].replace("similarities", f"{escape(pairs.title)}", 1)
    people = f" of {item.people:,} people" if item.people is not None else ""
    return (
        f'<h2 id="{anchor}">{escape(item.name)}</h2>'
        f'<p class="soft">{item.images:,} images{people}; {item.seconds:.1f} s to decode, align '
        f"and embed</p>{_tiles(item)}"
        f'<div class="pictures">{"".join(pictures)}</div>'
        f"{''.join(map(_pairs_table, item.pairs))}{_identification(item)}{_how(item)}"
    )


def _tiles(item: SetResult) -> str:
    tiles = []
    if item.accuracy:
        accuracy = item.accuracy
        tiles.append(
            (
                f"{percent(accuracy.mean)} ± {percent(accuracy.std)} %",
                (
                    f"accuracy, ± deviation over {len(accuracy.per_fold)} folds "
                    f"(standard error {percent(accuracy.stderr)})"
                ),
            )
        )
    rates = item.pairs[-1].rates
    tiles.append((f"{percent(rates.eer)} %", f"equal error rate; AUC {rates.auc:.5f}"))
    measured = [p for p in rates.points if p.point.is_measured]
    if measured:
        point = measured[-1]
        tiles.append((f"{percent(1 - point.point.fnmr)} %", f"TAR at FAR {_rate(point.point.fmr)}"))
    if item.closed_set:
        closed = item.closed_set
        tiles.append((f"{percent(closed.cmc[0])} %", f"rank 1 of {closed.enrolled:,} people"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><div class="big">{escape(a)}</div><div class="soft">{escape(b)}'
            "</div></div>"
            for a, b in tiles
        )
        + "</div>"
    )


def _rate(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _pairs_table(pairs: PairResult) -> str:
    curve = pairs.rates.curve
    caption = f"{pairs.title}: {curve.genuine:,} genuine, {curve.impostor:,} impostor"
    head = (
        "FAR",
        "cosine",
        "TAR",
        f"95 % interval, {pairs.resampled} resampled",
        "impostors above",
    )
    return _table(caption, head, [_point(p) for p in pairs.rates.points])


def _point(row: Point) -> list[str]:
    p, interval = row.point, row.fnmr_interval
    span = f"{percent(1 - interval.high)} to {percent(1 - interval.low)} %" if interval else ""
    return [
        _rate(p.fmr) + ("" if p.is_measured else "*"),
        f"{p.cosine:.4f}",
        f"{percent(1 - p.fnmr)} %",
        span,
        f"{p.impostors_above:,}",
    ]


def _identification(item: SetResult) -> str:
    text = ""
    if item.closed_set:
        closed = item.closed_set
        cells = [f"{percent(closed.cmc[rank - 1])} %" for rank in (1, 5, 10)]
        caption = (
            f"Closed set: {closed.enrolled:,} people enrolled with one photo, "
            f"{closed.searches:,} searches for them"
        )
        text += _table(caption, ("", "rank 1", "rank 5", "rank 10"), [["found", *cells]])
    if item.open_set and item.open_set.points:
        found = item.open_set
        caption = (
            f"Open set: {found.enrolled:,} people enrolled, {found.searches:,} searches for them, "
            f"{found.strangers:,} by strangers ({found.strangers_are})"
        )
        rows = [
            [
                f"{p.fpir:g}",
                f"{p.threshold:.4f}",
                f"{percent(p.fnir)} %",
                f"{p.misses:,} of {p.mated:,}",
                f"{p.false_positives:,} of {p.nonmated:,}",
            ]
            for p in found.points
        ]
        head = ("FPIR", "cosine", "FNIR", "missed", "strangers matched")
        text += _table(caption, head, rows)
    return text


def _how(item: SetResult) -> str:
    facts = [("Path", item.path)]
    if item.sha256:
        facts.append(("SHA-256", item.sha256))
    if item.left_out:
        named = ", ".join(item.left_out[:_NAMED])
        more = ", ..." if len(item.left_out) > _NAMED else ""
        facts.append(("Without a face, or not readable", f"{len(item.left_out):,}: {named}{more}"))
    if item.accuracy:
        folds = " ".join(percent(fold) for fold in item.accuracy.per_fold)
        facts.append(("Accuracy by fold, %", folds))
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in item.how)
    return f"<h3>How it was measured</h3>{sentences}{_list(facts)}"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows`` are HTML, the rest is text."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<p class="caption">{escape(caption)}</p><div class="wide"><table><thead><tr>{titles}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _definitions() -> str:
    return (
        "<h2>What the figures mean</h2>"
        "<p>A pair is accepted when its cosine is at or above the threshold. FAR (FMR): the share "
        "of impostor pairs accepted. TAR: the share of genuine pairs accepted, at a threshold "
        "whose measured FAR is at most the one named; nothing is interpolated. EER: where FAR is "
        "1 - TAR. FPIR: the share of strangers' searches whose best match reaches the threshold. "
        "FNIR: the share of enrolled people's searches that do not, or whose best match is "
        "somebody else. Accuracy after ±: standard deviation over the folds.</p>"
        f"<p>* Not measured: fewer than {MIN_IMPOSTORS} impostor pairs may lie above the "
        "threshold, so that it is a guess about the largest few.</p>"
    )
