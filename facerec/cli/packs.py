"""The ``facerec packs`` commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    print_json,
    say,
    settings_for,
)

if TYPE_CHECKING:
    from facerec.packs import TrainingSpec

packs_app = typer.Typer(help="Model packs: which there are, fetching and checking them.")


@packs_app.callback()
def packs_root(context: typer.Context, json: JsonOption = False) -> None:
    """Model packs: which there are, fetching and checking them.

    Example: facerec packs
    """
    if context.invoked_subcommand is None:
        packs_list(json=json)


@packs_app.command("list")
def packs_list(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """List the packs: licence, size, dimension, measured LFW accuracy, and whether it is here.

    Example: facerec packs list --json
    """
    from dataclasses import asdict

    from facerec.packs import list_packs

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    infos = list_packs(search=settings.packs, cache=settings.cache)
    if json:
        print_json([asdict(info) for info in infos])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("pack", "here", "dim", "MB", "LFW %", "licence", box=None)
    for info in infos:
        table.add_row(
            info.name,
            "yes" if info.installed else "no",
            str(info.dim),
            "" if info.size_bytes is None else f"{info.size_bytes / 1e6:.1f}",
            "" if info.lfw_accuracy is None else f"{info.lfw_accuracy:.2%}".rstrip("%"),
            info.licence + (" (must be accepted)" if info.needs_licence_acceptance else ""),
        )
    Console(highlight=False, markup=False, emoji=False).print(table)
    for info in infos:
        if info.problem:
            print(f"{info.name}: {info.problem}", file=sys.stderr)


@packs_app.command("info")
def packs_info(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="An installed pack.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Show a pack: its files, its contract and its thresholds.

    Example: facerec packs info bundled
    """
    from facerec.answers import rate
    from facerec.packs import find_pack

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    found = find_pack(name, search=settings.packs, cache=settings.cache)
    manifest = found.manifest
    value = manifest.model_dump(mode="json") | {
        "folder": str(found.folder),
        "contract_id": found.contract.contract_id,
    }
    flipped = ", mean of chip and mirror image" if manifest.embedder.flip else ""
    lines = [
        f"{manifest.name} {manifest.version}: {manifest.description}",
        f"  folder     {found.folder}",
        f"  licence    {manifest.licence}",
        f"  source     {manifest.source}",
        f"  detector   {manifest.detector.kind}, {manifest.detector.file}",
        f"  embedder   {manifest.embedder.file}, {manifest.embedder.dim}-d",
        f"  template   {manifest.embedder.template}{flipped}",
        f"  contract   {found.contract.contract_id}",
    ]
    if (table := found.thresholds) is None:
        lines.append("  thresholds none measured; see 'facerec evaluate lfw --help'")
    else:
        lines.append(f"  thresholds ({table.measured_on})")
        for fmr, cosine, fnmr in zip(table.fmr, table.cosine, table.fnmr, strict=True):
            lines.append(f"    FMR {fmr:<8g} cosine {cosine:.4f}   FNMR {rate(fnmr)}")
    if manifest.training is not None:
        lines += _training_lines(manifest.training)
    say(json, value, *lines)


def _training_lines(training: TrainingSpec) -> list[str]:
    """Where an embedder that was trained here comes from, and what a variant of it loses."""
    recipe, data, variant = training.recipe, training.data, training.variant
    what = f"recipe {recipe.get('name')}, " if recipe else ""
    lines = [f"  trained    {what}exported {training.date}, torch {training.torch}"]
    if training.base:
        lines.append(f"    from     {training.base}")
    if data is not None:
        counts = [
            *([f"{data.images:,} images"] if data.images else []),
            *([f"{data.identities:,} people"] if data.identities else []),
            *([f"SHA-256 {data.sha256[:16]}..."] if data.sha256 else []),
        ]
        lines.append(f"    data     {data.origin or 'unnamed'}: {', '.join(counts)}")
    for name, figure in training.metrics.items():
        lines.append(f"    {name} {figure:.4f}")
    if variant is not None:
        loss = ""
        if variant.mean_cosine is not None:
            loss = f"; cosine to its embeddings {variant.mean_cosine:.5f} on average"
        lines.append(f"  variant    {variant.precision} of contract {variant.of}{loss}")
        for far, change in variant.tar_difference.items():
            lines.append(
                f"    TAR at FAR {far} {variant.tar[far]:.2%} ({100 * change:+.2f} points)"
            )
    return lines


@packs_app.command("pull")
def packs_pull(
    name: Annotated[str, typer.Argument(help="A known pack; see 'facerec packs'.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of the weights.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a pack, check its hashes, resume where it broke off.

    Example: facerec packs pull opencv
    """
    from facerec.packs import pull_pack

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    with Progress(f"Fetching {name}", None) as progress:
        pulled = pull_pack(
            name,
            accept_licence=accept_license,
            cache=settings.cache,
            progress=lambda p: progress(p.done_bytes, p.total_bytes),
        )
    say(
        json,
        {"pack": pulled.name, "folder": str(pulled.folder)},
        f"Pack {pulled.name} is in {pulled.folder}.",
    )


@packs_app.command("verify")
def packs_verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|DIR]", help="Default: all.")] = None,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Check the hashes of a pack, or of every installed one.

    Example: facerec packs verify bundled
    """
    from facerec.packs import find_pack, list_packs

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    where = {"search": settings.packs, "cache": settings.cache}
    names = [name] if name else [i.name for i in list_packs(**where) if i.installed]
    for one in names:
        find_pack(one, **where).verify()
    say(json, {"verified": names}, *(f"{one}: every hash is right" for one in names))
