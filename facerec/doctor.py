"""What usually breaks an installation, looked for and named. Imports the core only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from facerec.config import Settings, is_url
from facerec.errors import FacerecError, ModelError
from facerec.packs import find_pack, list_packs
from facerec.packs.manifest import Pack
from facerec.runtime import Network, resolve_device

_LEAST_FREE_BYTES = 500_000_000

_ONE_OF = {
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-directml",
        "onnxruntime-openvino",
    ),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu13"),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
}
"""Modules that several distributions provide: two installed overwrite each other's files."""


@dataclass(frozen=True)
class Finding:
    """One check. remedy: what to do about it, empty where there is nothing to do."""

    check: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check in turn, so that a slow one does not hide the rest. Changes nothing."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    for module, names in _ONE_OF.items():
        yield _one_distribution(module, names)
    for package in ("gallery", "training"):
        yield from _owner(package)
    yield _device(settings)
    if not is_url(settings.gallery):
        yield _folder("gallery folder", Path(settings.gallery))
    yield _folder("pack cache", settings.cache)
    for info in list_packs(search=settings.packs, cache=settings.cache):
        if info.problem:
            yield Finding(f"pack {info.name}", "problem", info.problem)
        elif info.folder is not None:
            yield _pack(info.folder)
    if settings.pack:
        yield _chosen_pack(settings)


def _one_distribution(module: str, names: tuple[str, ...]) -> Finding:
    installed = [f"{name} {version}" for name in names if (version := _version(name))]
    listed = ", ".join(installed)
    if not installed:
        return Finding(
            module, "problem", "not installed", "pip install 'facerec[cpu]' (or facerec[gpu])"
        )
    if len(installed) > 1:
        return Finding(
            module,
            "problem",
            f"{listed} are installed over each other",
            f"pip uninstall -y {' '.join(i.split()[0] for i in installed)}, then install "
            "the one you want again",
        )
    if importlib.util.find_spec(module) is None:
        return Finding(module, "problem", f"{listed}, but it does not import", "reinstall it")
    return Finding(module, "ok", listed)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _owner(package: str) -> Iterator[Finding]:
    """Whether ``package``, a name that others may use too, is ours."""
    ours = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        if package == "gallery":
            yield Finding(package, "problem", "not importable", "reinstall facerec")
        return
    found = Path(next(iter(spec.submodule_search_locations))).resolve().parent
    owners = set(importlib.metadata.packages_distributions().get(package, ())) - {"facerec"}
    if found != ours or owners:
        yield Finding(
            package,
            "problem",
            f"the package {package!r} comes from {found}"
            + (f" and belongs to {', '.join(sorted(owners))}" if owners else ""),
            "install facerec in an environment of its own",
        )
    else:
        yield Finding(package, "ok", f"facerec's own, from {found}")


def _device(settings: Settings) -> Finding:
    """Whether the device that is asked for comes up and runs the default pack."""
    try:
        device = resolve_device(settings.device)
        Network(find_pack("bundled").embedder_path, device, 1)
    except FacerecError as exc:
        return Finding("device", "problem", str(exc))
    except ImportError as exc:
        return Finding("device", "problem", f"onnxruntime does not load: {exc}", "reinstall it")
    import onnxruntime

    offers = ", ".join(onnxruntime.get_available_providers())
    return Finding("device", "ok", f"{settings.device} runs on {device}; onnxruntime has {offers}")


def _folder(check: str, folder: Path) -> Finding:
    """Whether files can be made in ``folder``, or in the parent where it would be made."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return Finding(check, "problem", f"{place} is a file, not a folder", "name another folder")
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as exc:
        return Finding(
            check, "problem", f"{folder} cannot be written: {exc.strerror}", f"check {place}"
        )
    if free < _LEAST_FREE_BYTES:
        return Finding(check, "warning", f"{folder}: only {free / 1e6:.0f} MB free", "make room")
    state = "writable" if place == folder else "will be made"
    return Finding(check, "ok", f"{folder} ({state}, {free / 1e9:.0f} GB free)")


def _pack(folder: Path) -> Finding:
    try:
        pack = Pack.load(folder)
        pack.verify()
        contract = pack.contract.contract_id
    except ModelError as exc:
        return Finding(f"pack {folder.name}", "problem", str(exc))
    detail = f"hashes are right, contract {contract}"
    if pack.thresholds is None:
        return Finding(
            f"pack {pack.name}",
            "warning",
            f"{detail}, no thresholds measured",
            f"facerec evaluate lfw DIR --pack {folder} --write",
        )
    return Finding(f"pack {pack.name}", "ok", detail)


def _chosen_pack(settings: Settings) -> Finding:
    assert settings.pack is not None
    try:
        pack = find_pack(settings.pack, search=settings.packs, cache=settings.cache)
        pack.verify()
    except ModelError as exc:
        return Finding("chosen pack", "problem", str(exc))
    return Finding("chosen pack", "ok", f"{pack.name} in {os.fspath(pack.folder)}")
