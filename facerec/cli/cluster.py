"""The ``facerec cluster`` commands: those whom nobody has named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    ThresholdOption,
    open_gallery,
    print_json,
    save_crops,
    say,
)
from facerec.errors import ConfigError

if TYPE_CHECKING:
    from facerec.types import Identity, Template
    from gallery import Gallery
    from gallery.grouping import GroupReport
    from gallery.joining import Joined
    from gallery.unknown import Suggestion

cluster_app = typer.Typer(help="Those whom nobody has named: group them, then say who they are.")

GroupArgument = Annotated[int, typer.Argument(metavar="ID", help="Number of an unknown.")]
GroupsArgument = Annotated[
    list[int], typer.Argument(metavar="ID...", help="Numbers of unknowns.", show_default=False)
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--fmr",
        metavar="RATE",
        help="False-match rate from which faces are linked.  [default: 1/faces, at most 0.001]",
    ),
]
SuggestOption = Annotated[
    bool, typer.Option("--suggest/--no-suggest", help="Say whom of the people each resembles.")
]


@cluster_app.callback(invoke_without_command=True)
def cluster_root(
    context: typer.Context,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    fmr: RateOption = None,
    threshold: ThresholdOption = None,
    json: JsonOption = False,
) -> None:
    """Those whom nobody has named: group them, then say who they are.

    On its own it is 'facerec cluster run'. A group keeps its number, and what a person decided
    is not undone by a later run.

    Example: facerec cluster
    """
    given = (gallery, pack, device, fmr, threshold)
    if context.invoked_subcommand is None:
        cluster_run(*given, json=json)
    elif json or any(value is not None for value in given):
        name = context.invoked_subcommand
        raise ConfigError(f"options come after the command: facerec cluster {name} ... --json")


@cluster_app.command("run")
def cluster_run(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    fmr: RateOption = None,
    threshold: ThresholdOption = None,
    json: JsonOption = False,
) -> None:
    """Group the faces that are one person's; new ones join the groups that are there.

    Run it again after each 'facerec index'. It may be stopped, and goes on the next time.

    Example: facerec cluster run
    """
    from gallery.grouping import group_unknown

    with open_gallery(gallery, pack, device) as opened, _Stages() as stages:
        report = group_unknown(opened, fmr=fmr, threshold=threshold, progress=stages)
    say(json, _report_to_dict(report), *_report_lines(report))


@cluster_app.command("list")
def cluster_list(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    at_least: Annotated[
        int, typer.Option("--min", metavar="N", help="Of N faces at least.", min=1)
    ] = 2,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="At most N.", min=1)] = 50,
    offset: Annotated[int, typer.Option("--offset", metavar="N", help="Skip N.", min=0)] = 0,
    dismissed: Annotated[
        bool, typer.Option("--dismissed", help="Those that were dismissed.")
    ] = False,
    suggest: SuggestOption = True,
    json: JsonOption = False,
) -> None:
    """List the groups, largest first, each with a source and whom it resembles.

    Example: facerec cluster list --min 5
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        unknown = Unknown(opened)
        groups = unknown.groups(at_least=at_least, dismissed=dismissed, offset=offset, limit=limit)
        hints = unknown.suggestions([g.id for g in groups] if suggest else [])
        samples = {g.id: opened.templates(g.id, limit=3) for g in groups}
        counts = unknown.count()
    if json:
        listed = [_group_to_dict(g, hints.get(g.id), samples[g.id]) for g in groups]
        print_json({"groups": listed, "count": vars(counts)})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "faces", "one of the sources", "probably", box=None)
    for group in groups:
        source = samples[group.id][0].source if samples[group.id] else ""
        hint = hints.get(group.id)
        cells = (str(group.id), str(group.template_count), source, hint.name if hint else "")
        table.add_row(*cells)
    Console(highlight=False, markup=False, emoji=False).print(table)
    print(
        f"{len(groups)} shown; {counts.groups} groups and {counts.single} single faces in all, "
        f"{counts.dismissed} dismissed."
    )


@cluster_app.command("show")
def cluster_show(
    group: GroupArgument,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the stored crops into a folder.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the faces of a group, and whom it resembles.

    Example: facerec cluster show 17 --crops seventeen/
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        unknown = Unknown(opened)
        found, hint = unknown.group(group), unknown.suggestion(group)
        templates = opened.templates(group)
        if crops is not None:
            save_crops(opened, templates, crops)
    lines = [f"{found.name}, {found.template_count} faces"]
    if hint:
        lines.append(f"  probably {hint.name}: {_reason(hint)}")
    lines += [
        f"  view {t.id}: {t.source}, face {t.face} ({'with' if t.has_crop else 'without'} crop)"
        for t in templates
    ]
    say(json, _group_to_dict(found, hint, templates), *lines)


@cluster_app.command("name")
def cluster_name(
    group: GroupArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Say who a group is; if the gallery has that person, the faces become theirs.

    Example: facerec cluster name 17 "Ada Lovelace"
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        person, joined = Unknown(opened).name(group, name)
    lines = [f"unknown #{group} is {person.name}, who has {person.template_count} views now."]
    value = {"id": person.id, "name": person.name, "views": person.template_count}
    say(json, value | vars(joined), *lines, *_left_lines(joined, person.name))


@cluster_app.command("merge")
def cluster_merge(
    into: Annotated[int, typer.Argument(metavar="INTO", help="The number that stays.")],
    others: GroupsArgument,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Say that groups are one person.

    Example: facerec cluster merge 17 23 40
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        group, joined = Unknown(opened).merge(into, others)
    lines = [f"{group.name} has {group.template_count} faces now."]
    value = _group_to_dict(group, None, []) | vars(joined)
    say(json, value, *lines, *_left_lines(joined, group.name))


@cluster_app.command("split")
def cluster_split(
    group: Annotated[
        str, typer.Argument(metavar="ID|NAME", help="Number of an unknown (17, #17), or a person.")
    ],
    views: Annotated[
        list[int],
        typer.Option("--view", metavar="VIEW", help="A face that is not theirs; see 'show'."),
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Say that some faces are somebody else: they become a group of their own.

    Example: facerec cluster split 17 --view 203 --view 205
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        who = _who(opened, group)
        new = Unknown(opened).split(who, views)
        old = opened.person(who)
    say(
        json,
        {"new": _group_to_dict(new, None, []), "old": {"id": old.id, "name": old.name}},
        f"{new.name} has {new.template_count} faces; {old.name} keeps {old.template_count}. "
        "They stay apart.",
    )


@cluster_app.command("apart")
def cluster_apart(
    group: GroupArgument,
    other: Annotated[
        str,
        typer.Argument(metavar="ID|NAME", help="Who it is not: an unknown (17, #17), or a person."),
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Say that a group is not somebody, so that they are neither joined nor suggested.

    Example: facerec cluster apart 17 "Ada Lovelace"
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        one, them = Unknown(opened).keep_apart(group, _who(opened, other))
    say(json, {"apart": [one.id, them.id]}, f"{one.name} is not {them.name}.")


@cluster_app.command("dismiss")
def cluster_dismiss(
    groups: GroupsArgument,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    undo: Annotated[bool, typer.Option("--undo", help="Show them again.")] = False,
    json: JsonOption = False,
) -> None:
    """Say that nobody wants to see groups; their new faces go there too. Nothing is removed.

    Example: facerec cluster dismiss 18 19
    """
    from gallery.unknown import Unknown

    with open_gallery(gallery, pack, device) as opened:
        found = Unknown(opened).dismiss(groups, undo=undo)
    what = "is back" if undo else "is dismissed"
    say(
        json,
        [_group_to_dict(group, None, []) for group in found],
        *(f"{group.name} {what}." for group in found),
    )


def _who(gallery: Gallery, text: str) -> int | str:
    """A name or an id: "#17" and "unknown #17" are ids, "17" is where no person is called so."""
    number = text.strip().removeprefix("unknown").strip()
    if number.startswith("#") and number[1:].isdecimal():
        return int(number[1:])
    if not number.isdecimal():
        return text
    with gallery.reading() as view:
        return int(number) if view.find(text) is None else text


def _group_to_dict(
    group: Identity, hint: Suggestion | None, templates: list[Template]
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": group.id,
        "state": group.state,
        "faces": group.template_count,
        "suggestion": None if hint is None else _finite(vars(hint)),
    }
    if templates:
        value["views"] = [
            {
                "id": t.id,
                "source": t.source,
                "face": t.face,
                "box_xyxy": None
                if t.box_xyxy is None
                else [round(float(v), 1) for v in t.box_xyxy],
                "has_crop": t.has_crop,
            }
            for t in templates
        ]
    return value


def _reason(hint: Suggestion) -> str:
    rate = "" if math.isnan(hint.fmr) else f" at FMR {hint.fmr:.2g}"
    return f"{hint.votes} of {hint.asked} faces{rate}, best {hint.similarity:.4f}"


def _left_lines(joined: Joined, name: str) -> list[str]:
    lines = []
    if joined.left:
        lines.append(
            f"  {joined.left} faces were left out: their photos show {name} elsewhere already."
        )
    if joined.same:
        lines.append(f"  {joined.same} faces were there already.")
    return lines


def _report_to_dict(report: GroupReport) -> dict[str, Any]:
    return _finite(vars(report))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: unmeasured is null."""
    unknown = {k for k, v in values.items() if isinstance(v, float) and math.isnan(v)}
    return {key: None if key in unknown else value for key, value in values.items()}


def _report_lines(report: GroupReport) -> list[str]:
    rate = "FMR unmeasured" if math.isnan(report.fmr) else f"FMR {report.fmr:.2g}"
    compared = f"{report.faces} unnamed faces compared in {report.seconds:.1f} s"
    groups = f"{report.joined} joined others; {report.groups} groups of two or more"
    lines = [
        f"{compared}, linked from {report.threshold:.4f} ({rate}).",
        f"{groups}. See 'facerec cluster list'.",
    ]
    if report.overtaken:
        lines.append(f"{report.overtaken} were changed meanwhile and left alone: run it again.")
    if report.without:
        lines.append(f"{report.without} have no embedding of this pack and were left alone.")
    return lines


class _Stages:
    """A progress bar for each thing that is done."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Progress | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *about: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*about)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.__exit__(None, None, None)
            self._what, self._bar = what, Progress(what.capitalize(), total).__enter__()
        if self._bar is not None:
            self._bar(done, total)
