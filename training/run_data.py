"""The data of a run that is over, opened again and recognised. Imports torch and the core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facerec.errors import ConfigError
from training.commands import training_data
from training.data import FaceSource, list_identities
from training.data.folder import image_side
from training.recipe import Recipe


def reopen_data(
    recipe: Recipe, data: Mapping[str, Any], path: str | None = None, *, pack: str = "bundled"
) -> tuple[FaceSource, FaceSource | None]:
    """(people that the run has learnt, people that its recipe kept aside, None if nobody).

    data: the run's, as in data.json. path: where it lies now; None for where it lay. pack: whose
    detector aligns photos. Raises ConfigError where the data is not there, or is not what the
    run was trained on: images or names differ.
    """
    where = path or str(data["origin"])
    if not Path(where).exists():
        raise ConfigError(
            f"{where}: the data of the run is not there. Say where it is with --data, or leave "
            "out what needs it with --unmeasured."
        )
    template, size = _stored_as(Path(where), data)
    learnt, kept_aside = training_data(recipe, where, template=template, size=size, pack=pack)
    digest = learnt.digest()
    if digest != data["sha256"]:
        raise ConfigError(
            f"{where}: not the data that the run was trained on, or changed since: SHA-256 of "
            f"{len(learnt):,} images {digest[:16]}..., the run's {data['images']:,} have "
            f"{data['sha256'][:16]}... People it has learnt could be among those it is measured "
            "on. Say where its data is with --data, or leave that out with --unmeasured."
        )
    return learnt, kept_aside


def _stored_as(place: Path, data: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Template and size of stored chips; None of photos, which are aligned anew."""
    chips = (str(data["template"]), int(data["size"]))
    folder = place.is_dir() and not (place / "train.rec").is_file()
    if not folder or next(place.glob("*.tar"), None):
        return chips
    return chips if image_side(list_identities(place)) == chips[1] else (None, None)
