"""From settings to an open gallery and the pipeline that its contract asks for.

Imports the core and this package.
"""

from __future__ import annotations

from collections.abc import Callable

from facerec.config import Settings
from facerec.packs import Pack, find_pack
from facerec.pipeline import Pipeline
from gallery.gallery import Gallery
from gallery.location import Location
from gallery.store import Store

DEFAULT_PACK = "bundled"


def choose_pack(settings: Settings) -> Pack:
    """The pack that was asked for, else the one that the gallery was made with, else bundled.

    Raises ModelError for a pack that is not there, GalleryError and StoreCorrupt for a
    gallery that does not open.
    """
    name = settings.pack or _pack_of(Location.of(settings.gallery)) or DEFAULT_PACK
    return find_pack(name, search=settings.packs, cache=settings.cache)


def load_pipeline(settings: Settings) -> Pipeline:
    """The pipeline of :func:`choose_pack` on the settings' device."""
    return Pipeline.load(choose_pack(settings), device=settings.device, threads=settings.threads)


def open_with_pack(settings: Settings, *, create: bool = False) -> tuple[Gallery, Pipeline]:
    """The settings' gallery and its pipeline, of one contract.

    create: make the gallery where there is none. The gallery is opened first, since it is
    the quicker to fail. Raises ContractMismatch where the pack asked for is not the gallery's.
    """
    gallery, load = open_before_pack(settings, create=create)
    try:
        return gallery, load(settings.threads)
    except BaseException:
        gallery.close()
        raise


def open_before_pack(
    settings: Settings, *, create: bool = False
) -> tuple[Gallery, Callable[[int | None], Pipeline]]:
    """The same for who may not need the pipeline: how to load it, on so many threads, is
    returned in its place."""
    pack = choose_pack(settings)
    gallery = Gallery.open(
        settings.gallery,
        contract=pack.contract,
        thresholds=pack.thresholds,
        pack_name=pack.name,
        create=create,
        device="cuda" if settings.device == "cuda" else "cpu",
    )
    return gallery, lambda threads: Pipeline.load(pack, device=settings.device, threads=threads)


def _pack_of(location: Location) -> str | None:
    """The pack that the gallery was made with; None where there is none yet."""
    folder = location.folder
    if folder is not None and (not folder.is_dir() or not any(folder.iterdir())):
        return None
    if not Store.exists(location):
        return None  # opening it to write says better why not
    store = Store.open(location)
    try:
        return store.meta().pack_name
    finally:
        store.close()
