"""Which packs there are, and which of them are here.

A pack is looked for as a path, in the folder that ``FACEREC_PACKS`` names, in the
user's cache, and in this package, in that order. Packs that can be fetched are
described by a manifest each in ``known/``; fetching is ``download``. Imports the
core only, and reads no environment: settings come as arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_path

from facerec.errors import ModelError
from facerec.packs.manifest import MANIFEST_NAME, Pack, PackManifest

BUNDLED = "bundled"
_HERE = Path(__file__).resolve().parent
_KNOWN_FOLDER = _HERE / "known"


@dataclass(frozen=True)
class PackInfo:
    """One line of ``facerec packs``.

    size_bytes: of both model files; None where a hand-written pack's file is missing.
    download_bytes: what fetching it transfers; 0 where there is nothing to fetch.
    lfw_accuracy: share in [0, 1], as its source or this project measured it, or None.
    folder: of an installed pack. problem: why a folder that claims to be a pack is not
    usable; such a pack counts as not installed.
    """

    name: str
    description: str
    licence: str
    needs_licence_acceptance: bool
    dim: int
    size_bytes: int | None
    download_bytes: int
    lfw_accuracy: float | None
    installed: bool
    folder: Path | None
    problem: str | None = None


def packs_folder(cache: Path | None = None) -> Path:
    """Where fetched packs lie, a folder each. ``cache``: None is the user's cache."""
    return (cache or user_cache_path("facerec")) / "packs"


@lru_cache(maxsize=1)
def known_packs() -> dict[str, PackManifest]:
    """Manifests of the packs that :func:`facerec.packs.pull_pack` can fetch, by name."""
    manifests = (
        PackManifest.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(_KNOWN_FOLDER.glob("*.toml"))
    )
    return {manifest.name: manifest for manifest in manifests}


def find_pack(name_or_path: str, *, search: Path | None = None, cache: Path | None = None) -> Pack:
    """The pack of that name, or in that folder.

    search: folder of packs that goes before the cache. cache: None is the user's cache.
    A folder of the working directory counts where it holds a pack.toml. Raises
    ModelError where there is none, or its manifest is wrong; the message says how to
    get it. Model files are not hashed here: see :meth:`Pack.verify`.
    """
    path = Path(name_or_path).expanduser()
    if _looks_like_path(name_or_path) or (path / MANIFEST_NAME).is_file():
        return Pack.load(path)
    for root in _roots(search, cache):
        if (root / name_or_path / MANIFEST_NAME).is_file():
            return Pack.load(root / name_or_path)
        for folder in _pack_folders(root):
            if _manifest_name(folder) == name_or_path:
                return Pack.load(folder)
    raise ModelError(_not_found(name_or_path))


def list_packs(*, search: Path | None = None, cache: Path | None = None) -> list[PackInfo]:
    """Every pack that is installed or known, bundled first, then by name.

    An installed pack hides others of its name that :func:`find_pack` would find later.
    A folder whose manifest is wrong is listed under its folder's name with ``problem``.
    """
    found: dict[str, PackInfo] = {}
    for root in _roots(search, cache):
        for folder in _pack_folders(root):
            info = _installed(folder)
            found.setdefault(info.name, info)
    for name, manifest in known_packs().items():
        if name not in found:
            found[name] = _info(manifest)
    return sorted(found.values(), key=lambda info: (info.name != BUNDLED, info.name))


def suggestion(name: str) -> str:
    """``Did you mean ...? `` with a space behind, or nothing."""
    close = difflib.get_close_matches(name, [BUNDLED, *known_packs()], n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~")) or any(c in text for c in "/\\")


def _roots(search: Path | None, cache: Path | None) -> Iterator[Path]:
    """Folders of packs, most specific first; the last holds ``bundled``."""
    if search is not None:
        yield search
    yield packs_folder(cache)
    yield _HERE


def _pack_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{MANIFEST_NAME}"))


def _manifest_name(folder: Path) -> str | None:
    """Name in a folder's manifest; None where it is wrong, for another pack's sake."""
    try:
        return Pack.load(folder).name
    except ModelError:
        return None


def _installed(folder: Path) -> PackInfo:
    try:
        pack = Pack.load(folder)
    except ModelError as exc:
        return PackInfo(
            name=folder.name,
            description="",
            licence="",
            needs_licence_acceptance=False,
            dim=0,
            size_bytes=None,
            download_bytes=0,
            lfw_accuracy=None,
            installed=False,
            folder=folder,
            problem=str(exc),
        )
    return _info(pack.manifest, pack)


def _info(manifest: PackManifest, pack: Pack | None = None) -> PackInfo:
    size: int | None = sum(spec.size_bytes or 0 for spec in manifest.files)
    problem = None
    if pack is not None:
        try:
            paths = (pack.detector_path, pack.embedder_path)
            size = sum(path.stat().st_size for path in paths)
        except ModelError as exc:
            size, problem = None, str(exc)
    installed = pack is not None and problem is None
    download = manifest.archive.size_bytes if manifest.archive else size
    return PackInfo(
        name=manifest.name,
        description=manifest.description,
        licence=manifest.licence,
        needs_licence_acceptance=manifest.needs_licence_acceptance,
        dim=manifest.embedder.dim,
        size_bytes=size,
        download_bytes=0 if installed else download or 0,
        lfw_accuracy=manifest.lfw_accuracy,
        installed=installed,
        folder=pack.folder if pack else None,
        problem=problem,
    )


def _not_found(name: str) -> str:
    manifest = known_packs().get(name)
    if manifest is None:
        known = ", ".join([BUNDLED, *known_packs()])
        return (
            f"there is no pack {name!r}. {suggestion(name)}Known packs are {known}; the path of "
            "a folder with a pack.toml works too."
        )
    flag = " --accept-license" if manifest.needs_licence_acceptance else ""
    return (
        f"pack {name!r} is not installed (licence: {manifest.licence}). Fetch it with "
        f"'facerec packs pull {name}{flag}'."
    )
