"""The ``facerec gallery`` commands: the gallery as a whole, and its index."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    open_gallery,
    say,
)

gallery_app = typer.Typer(help="The gallery as a whole, and its index.", no_args_is_help=True)


@gallery_app.command("info")
def gallery_info(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a gallery holds, of which model it is, and how it is searched.

    Example: facerec gallery info
    """
    with open_gallery(gallery, pack, device) as opened:
        people, templates = opened.count()
        with opened.reading() as view:
            unnamed = view.count_templates(named=False)
        value: dict[str, Any] = {
            "gallery": opened.where,
            "pack": opened.pack_name,
            "contract": opened.contract.contract_id,
            "dimensions": opened.contract.dim,
            "people": people,
            "views": templates,
            "views_without_a_name": unnamed,
            "index": opened.live.kind,
            "read_only": opened.read_only,
            "bytes": _bytes(opened),
        }
    from rich.filesize import decimal

    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in value["bytes"].items())
    say(
        json,
        value,
        f"{value['gallery']}: {people} people with {templates} views; {unnamed} views of people "
        "without a name.",
        f"Model: pack {value['pack']}, contract {value['contract']}, "
        f"{value['dimensions']} dimensions.",
        f"Index: {value['index']}." + (f" On disk: {sizes}." if sizes else ""),
    )


@gallery_app.command("rebuild")
def gallery_rebuild(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="auto|flat|float16|int8|hnsw|ivf", help="Type of the index."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the index anew from what is in memory; hnsw and ivf take minutes at a million views.

    A type chosen here stays the gallery's. hnsw and ivf are approximate, the others exact;
    auto, the default, is flat below 100,000 views and int8 above.

    Example: facerec gallery rebuild --type hnsw
    """
    with open_gallery(gallery, pack, device) as opened:
        opened.check()
        opened.rebuild_index(kind)
        value = {"gallery": opened.where, "index": opened.live.kind, "bytes": _bytes(opened)}
        line = f"The index of {opened.where} is {opened.live.kind} now."
    say(json, value, line)


def _bytes(opened: Any) -> dict[str, int]:
    """Files of the gallery's folder by size; none where it is on a server."""
    if opened.location.folder is None:
        return {}
    files = sorted(opened.location.folder.iterdir())
    return {f.name: f.stat().st_size for f in files if f.is_file() and f.name[0] != "."}
