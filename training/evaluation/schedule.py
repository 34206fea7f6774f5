"""Sets that are measured again and again while a network is trained. Imports torch and the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from facerec.errors import ConfigError
from facerec.packs import find_pack
from facerec.packs.manifest import Pack
from training.backbones import Backbone, Preprocessing
from training.build import precision_of
from training.data import FaceSource
from training.evaluation.models import Chips, TorchModel, embed_chips
from training.evaluation.opening import SetOptions, open_set
from training.evaluation.sets import ImageSet
from training.heldout import HeldOutVerification
from training.recipe import Recipe

_PART = 128


class ScheduledEvaluation:
    """Figures of a network on some sets: a :data:`training.setup.Evaluate`.

    Each set's images are decoded when first needed, and kept as chips of the network's size, one
    byte a value: 0.45 GB for the 12,000 images of a ``.bin`` file at 112 pixels. Embeddings
    average chip and mirror image where the backbone's preprocessing says so. Figures are named
    after the sets, ``agedb_30_accuracy``; those of ``held_out`` people, if given, come first.

    Raises ConfigError for a set that is wrong, and for two of one name.
    """

    def __init__(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        paths: Sequence[str | Path],
        *,
        held_out: FaceSource | None = None,
        detector: Pack | None = None,
        options: SetOptions | None = None,
    ) -> None:
        self._amp = recipe.run.amp
        self._detector = detector or find_pack("bundled")
        self._held_out: HeldOutVerification | None = None
        if held_out is not None:
            self._held_out = HeldOutVerification(held_out, workers=recipe.data.workers)
        self._sets: dict[str, ImageSet] = {}
        for path in paths:
            opened = open_set(path, preprocessing, self._detector, options)
            if not isinstance(opened, ImageSet):
                raise ConfigError(
                    f"{path}: IJB takes too long to be measured on schedule; measure the "
                    "checkpoints with 'python -m training evaluate'"
                )
            if opened.name in self._sets:
                raise ConfigError(
                    f"{path}: {self._sets[opened.name].path} is called {opened.name!r} too, and "
                    "their figures would be; rename one"
                )
            self._sets[opened.name] = opened
        self._chips: dict[str, Chips] = {}

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        precision = precision_of(self._amp, next(backbone.parameters()).device)
        figures: dict[str, float] = {}
        if self._held_out is not None:
            self._held_out.precision = precision
            figures |= self._held_out(backbone)
        model = TorchModel(backbone, detector_pack=self._detector, precision=precision)
        for name, item in self._sets.items():
            if name not in self._chips:
                self._chips[name] = _all_chips(item, model)
            held = self._chips[name]
            figures |= item.figures(embed_chips(model, _parts(held), len(item)))
        return figures


def _all_chips(item: ImageSet, model: TorchModel) -> Chips:
    """Every chip of a set, in one array that is filled as they come."""
    size = model.target[1]
    chips = np.empty((len(item), size, size, 3), np.uint8)
    present = np.zeros(len(item), dtype=np.bool_)
    at = kept = 0
    for batch in item.chips(model):
        chips[kept : kept + len(batch.chips)] = batch.chips
        present[at : at + len(batch.present)] = batch.present
        kept, at = kept + len(batch.chips), at + len(batch.present)
    return Chips(chips[:kept], present)


def _parts(held: Chips) -> Iterator[Chips]:
    """The same in parts, without a copy."""
    kept = 0
    for start in range(0, len(held.present), _PART):
        present = held.present[start : start + _PART]
        stop = kept + int(present.sum())
        yield Chips(held.chips[kept:stop], present)
        kept = stop
