"""The ``facerec people`` commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    PersonArgument,
    agree,
    gallery_exists,
    gallery_name,
    open_gallery,
    print_json,
    save_crops,
    say,
    settings_for,
)
from facerec.errors import ConfigError

if TYPE_CHECKING:
    from facerec.types import Identity

people_app = typer.Typer(help="The people of a gallery.", no_args_is_help=True)


def _person_to_dict(person: Identity) -> dict[str, Any]:
    return {
        "id": person.id,
        "name": person.name,
        "templates": person.template_count,
        "created_at": person.created_at.isoformat(),
        "metadata": dict(person.metadata),
    }


@people_app.command("list")
def people_list(
    search: Annotated[str | None, typer.Argument(help="Part of a name.")] = None,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """List the people, by name.

    Example: facerec people list ada
    """
    with open_gallery(gallery, pack, device) as opened:
        people = opened.people(search, limit=None)
        count_people, count_templates = opened.count()
    if json:
        print_json([_person_to_dict(p) for p in people])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "views", "since", box=None)
    for person in people:
        since = person.created_at.date().isoformat()
        table.add_row(str(person.id), person.name, str(person.template_count), since)
    Console(highlight=False, markup=False, emoji=False).print(table)
    print(f"{len(people)} shown; {count_people} people and {count_templates} views in all.")


@people_app.command("show")
def people_show(
    name: PersonArgument,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the stored crops into a folder.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what is kept of a person.

    Example: facerec people show "Ada Lovelace" --crops ada/
    """
    with open_gallery(gallery, pack, device) as opened:
        person = opened.person(name)
        templates = opened.templates(name)
        if crops is not None:
            save_crops(opened, templates, crops)
    rows = [
        {
            "id": t.id,
            "source": t.source,
            "det_score": round(t.det_score, 4),
            "created_at": t.created_at.isoformat(),
            "has_crop": t.has_crop,
        }
        for t in templates
    ]
    lines = [f"{person.name} (id {person.id}), {person.template_count} views"]
    lines += [f"  {key}: {value}" for key, value in person.metadata.items()]
    lines += [
        f"  view {t.id}: {t.source} ({t.created_at:%Y-%m-%d}, "
        f"{'with' if t.has_crop else 'without'} crop)"
        for t in templates
    ]
    say(json, _person_to_dict(person) | {"views": rows}, *lines)


@people_app.command("rename")
def people_rename(
    name: PersonArgument,
    new: Annotated[str, typer.Argument(help="The new name.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Give a person another name.

    Example: facerec people rename "Ada Byron" "Ada Lovelace"
    """
    with open_gallery(gallery, pack, device) as opened:
        person = opened.rename(name, new)
    say(json, _person_to_dict(person), f"{name} is now {person.name}.")


@people_app.command("merge")
def people_merge(
    into: Annotated[str, typer.Argument(help="The person that stays.")],
    other: Annotated[str, typer.Argument(help="The person whose views move over.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Make two people one: all views go to the first, the second name is gone.

    Example: facerec people merge "Ada Lovelace" "Countess of Lovelace"
    """
    with open_gallery(gallery, pack, device) as opened:
        person = opened.merge(into, other)
    say(
        json,
        _person_to_dict(person),
        f"{other} is part of {person.name} now, who has {person.template_count} views.",
    )


@people_app.command("remove")
def people_remove(
    name: PersonArgument,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    view: Annotated[
        int | None, typer.Option(metavar="ID", help="Only this view; see 'people show'.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove a person, or one view of theirs, with embeddings and crops, for good.

    Example: facerec people remove "Ada Lovelace"
    """
    with open_gallery(gallery, pack, device) as opened:
        person = opened.person(name)
        if view is not None and view not in {t.id for t in opened.templates(name)}:
            raise ConfigError(f"{person.name} has no view {view}; 'facerec people show' lists them")
        what = (
            f"view {view} of {person.name}"
            if view is not None
            else (f"{person.name} with {person.template_count} views")
        )
        agree(f"Remove {what}? This cannot be undone.", yes)
        removal = opened.remove_template(view) if view is not None else opened.remove(name)
    lines = [f"Removed {what}."]
    if removal.problem:
        lines.append(removal.problem)
    say(
        json,
        {"removed": person.name, "views": removal.templates, "vacuumed": removal.vacuumed},
        *lines,
    )


@people_app.command("export")
def people_export(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write everybody who has a name, with embeddings and crops, to one checksummed file.

    Example: facerec people export people.facerec
    """
    with open_gallery(gallery, pack, device) as opened:
        opened.export(file, overwrite=overwrite)
        with opened.reading() as view:
            people, templates = view.count_identities(), view.count_vectors(named=True)
            every = view.count_templates() + view.count_templates(named=False)
    left_out = every - templates
    lines = [f"{people} people with {templates} views are in {file}."]
    if left_out:
        lines.append(
            f"{left_out} views of nobody with a name, or without a vector, are not; "
            "'facerec backup' takes those along."
        )
    say(
        json,
        {"file": str(file), "people": people, "templates": templates, "left_out": left_out},
        *lines,
    )


@people_app.command("import")
def people_import(
    file: Annotated[Path, typer.Argument(help="A file that 'people export' wrote.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    on_conflict: Annotated[
        str,
        typer.Option(metavar="error|merge|rename", help="What to do where a name is taken."),
    ] = "error",
    json: JsonOption = False,
) -> None:
    """Add everybody from an exported file; the gallery is made if there is none.

    Example: facerec people import people.facerec --on-conflict merge
    """
    from typing import cast

    from gallery import Conflict, from_export

    if on_conflict not in ("error", "merge", "rename"):
        raise ConfigError(f"--on-conflict is error, merge or rename, not {on_conflict!r}")
    settings = settings_for(gallery=gallery, pack=pack, device=device)
    if gallery_exists(settings):
        with open_gallery(gallery, pack, device) as opened:
            result = opened.import_(file, on_conflict=cast(Conflict, on_conflict))
        value = asdict(result)
        renamed = [f"  {old} became {new}" for old, new in result.renamed.items()]
        added = f"Added {result.people_added} people and {result.templates_added} views"
        merged = f"merged {result.people_merged}; {result.duplicates} views were there already"
        lines = [f"{added}; {merged}.", *renamed]
    else:
        with from_export(file, settings.gallery) as opened:
            people, templates = opened.count()
        value = {"people_added": people, "templates_added": templates}
        lines = [f"Made {gallery_name(settings)} with {people} people and {templates} views."]
    say(json, value, *lines)
