"""Which set lies at a path. Imports the core."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facerec.config import load_settings
from facerec.errors import ConfigError
from facerec.lfw import PAIRS_FILE, Progress
from facerec.packs.manifest import Pack
from training.backbones import Preprocessing
from training.data import open_source
from training.evaluation.ijb import WEIGHTS, IjbSet
from training.evaluation.people import MAX_IMAGES, PeopleSet
from training.evaluation.sets import EvaluationSet, LfwSet, PairSet


@dataclass(frozen=True)
class SetOptions:
    """How sets are read.

    template, size: of stored chips that are not arcface-112 at 112 pixels; in a ``.bin`` file the
    size is the images' own. max_images: of a set of people. weights: see
    :class:`training.evaluation.ijb.IjbSet`.
    """

    template: str | None = None
    size: int | None = None
    max_images: int = MAX_IMAGES
    weights: Sequence[str] = WEIGHTS


def open_set(
    path: str | Path,
    preprocessing: Preprocessing,
    detector_pack: Pack,
    options: SetOptions | None = None,
    *,
    progress: Progress | None = None,
) -> EvaluationSet:
    """The set at ``path``, for models that take chips as ``preprocessing`` says.

    A ``.bin`` file; a folder with ``pairs.txt`` (LFW's layout); a folder with ``meta`` and
    ``loose_crop`` (IJB-B, IJB-C); else people, as :func:`training.data.open_source` finds them:
    a folder a person, a ``.rec`` file, or tar shards. People's photos that are not aligned are, by
    ``detector_pack``, and kept in the user's cache; progress(done, total) tells of that.

    Raises ConfigError where there is no such path, and for what is wrong with the set.
    """
    options, place = options or SetOptions(), Path(path)
    name = re.sub(r"\W+", "_", place.resolve().stem).strip("_") or "set"
    if place.suffix == ".bin":
        return PairSet(place, name, options.template or "arcface-112")
    if place.is_dir():
        if (place / PAIRS_FILE).is_file():
            return LfwSet(place, name)
        if (place / "meta").is_dir() or (place / "loose_crop").is_dir():
            return IjbSet(place, _prefix(place / "meta"), options.weights)
    elif not place.exists() and ".tar" not in place.name:
        raise ConfigError(
            f"{path}: no such file or folder; a set is a .bin file, a folder with pairs.txt, an "
            "IJB folder, a folder per person, a .rec file or tar shards"
        )
    source = open_source(
        path,
        template=options.template,
        size=options.size,
        pack=detector_pack,
        cache=load_settings().cache / "aligned",
        preprocessing=preprocessing,
        progress=progress,
    )
    return PeopleSet(place, name, source, options.max_images)


def _prefix(meta: Path) -> str:
    """ijbb or ijbc, by the list of images in ``meta``."""
    ending = "_face_tid_mid.txt"
    found = sorted(path.name.removesuffix(ending) for path in meta.glob(f"*{ending}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{meta}: lists of several sets, {', '.join(found)}; keep one a folder")
    raise ConfigError(
        f"{meta}: no list of images, such as ijbc{ending}; the IJB protocol needs its three list "
        "files there"
    )
