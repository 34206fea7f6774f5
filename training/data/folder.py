"""Aligned chips in ROOT/IDENTITY/*.jpg. Imports the core and NumPy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from facerec.alignment import TEMPLATES, find_template
from facerec.errors import ConfigError
from facerec.image import SUFFIXES, read_bytes
from training.data.sources import FaceSource, PackedStrings


@dataclass(frozen=True, eq=False)
class Listing:
    """The images under a root, sorted by identity and then by name.

    paths: relative to the root, with the system's separator. identity: index into ``names``
    of each.
    """

    root: Path
    names: list[str]
    paths: list[str]
    identity: list[int]


def list_identities(root: Path) -> Listing:
    """Walk ROOT/IDENTITY/**; every folder directly under the root is one identity.

    Hidden files and folders and files that no image's suffix marks are passed over, and so
    are images directly under the root, which belong to nobody. Raises ConfigError for a root
    that is missing, not a folder, or holds no identity with an image.
    """
    root = Path(root)
    try:
        with os.scandir(root) as entries:
            top = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except FileNotFoundError as exc:
        raise ConfigError(f"{root}: no such folder") from exc
    except OSError as exc:
        raise ConfigError(f"{root}: cannot be read as a folder: {exc.strerror}") from exc
    names: list[str] = []
    paths: list[str] = []
    identity: list[int] = []
    for entry in top:
        if not entry.is_dir():
            continue
        found = _images_under(root, entry.name)
        if found:
            identity += [len(names)] * len(found)
            names.append(entry.name)
            paths += found
    if not names:
        raise ConfigError(_nothing_found(root, [e for e in top if e.is_file()]))
    return Listing(root, names, paths, identity)


def _images_under(root: Path, identity: str) -> list[str]:
    found = []
    for folder, subfolders, files in os.walk(root / identity):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(folder, root)
        found += [
            os.path.join(relative, file)  # noqa: PTH118 - a million times faster than Path
            for file in sorted(files)
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122
        ]
    return found


def _nothing_found(root: Path, files: list[os.DirEntry[str]]) -> str:
    loose = sum(Path(e.name).suffix.lower() in SUFFIXES for e in files)
    if loose:
        return (
            f"{root}: {loose} images lie in the folder itself; training needs a folder per person "
            "inside it, named as the person, as in ROOT/IDENTITY/photo.jpg"
        )
    return (
        f"{root}: no images. Training needs a folder per person, as in ROOT/IDENTITY/photo.jpg "
        f"({' '.join(sorted(SUFFIXES))})"
    )


class ImageFolder(FaceSource):
    """Chips that are aligned already, as files under ROOT/IDENTITY/.

    template, size: how they are aligned; None for what the images' own size says
    (112: arcface-112, 150: dlib-150). Raises ConfigError for a folder that holds no images,
    and for an unknown template or size.
    """

    def __init__(self, root: Path, template: str | None = None, size: int | None = None) -> None:
        listing = list_identities(Path(root))
        side = image_side(listing) if size is None else size
        if template is None:
            template = template_of_size(side, listing.root)
        self.root = listing.root
        self.origin = str(root)
        self.labels = np.array(listing.identity, dtype=np.int64)
        self.identities = listing.names
        self.template = find_template(template).name
        self.size = side or find_template(template).size
        self._paths = PackedStrings(listing.paths)

    def encoded(self, index: int) -> bytes:
        return read_bytes(self.root / self._paths[index])

    def name(self, index: int) -> str:
        return str(self.root / self._paths[index])


def template_of_size(size: int | None, origin: Path) -> str:
    """The template whose own chips have ``size`` pixels. Raises ConfigError if none has."""
    for template in TEMPLATES.values():
        if template.size == size:
            return template.name
    known = ", ".join(f"{t.name} ({t.size}x{t.size})" for t in TEMPLATES.values())
    found = f"images of {size}x{size}" if size else "images that are not square"
    raise ConfigError(
        f"{origin}: {found} are no template's own size; known are {known}. Name template and size, "
        "or have the photos aligned."
    )


def image_side(listing: Listing, looks: int = 16) -> int | None:
    """The side of the images if the readable ones among the first ``looks``, spread over the
    listing, are square and equal; else None."""
    step = max(1, len(listing.paths) // looks)
    sizes = set()
    for path in listing.paths[::step][:looks]:
        try:
            with Image.open(listing.root / path) as image:
                sizes.add(image.size)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    if len(sizes) == 1:
        width, height = sizes.pop()
        return width if width == height else None
    return None
