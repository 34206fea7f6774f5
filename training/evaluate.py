"""Measure a pack or a trained network on labelled sets.

What the figures mean is told in docs/evaluation.md. A model is opened by
:func:`training.evaluation.models.open_model`, a set by
:func:`training.evaluation.opening.open_set`. Imports torch and the core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from facerec.lfw import Progress
from training.evaluation.models import Model, open_model
from training.evaluation.opening import SetOptions, open_set
from training.evaluation.results import EvaluationReport, SetResult, make_report

__all__ = ["EvaluationReport", "SetOptions", "SetResult", "evaluate", "open_model", "open_set"]

SetProgress = Callable[[str], Progress]
"""Told what is done next; gives what is told (images done, in all) of it."""


def evaluate(
    model: Model,
    sets: Sequence[str | Path],
    options: SetOptions | None = None,
    *,
    progress: SetProgress | None = None,
    command: Sequence[str] | None = None,
) -> EvaluationReport:
    """``model`` on each of ``sets``, in that order.

    Every set is opened before the first is measured, so that a wrong path costs no time.
    command: for the report; None for this process's. Raises ConfigError for a set that is wrong,
    ImageError for images that cannot be read, ModelError for a model that fails.
    """
    tell = progress or (lambda _: lambda _done, _total: None)
    opened = [
        open_set(
            path,
            model.preprocessing,
            model.detector_pack,
            options,
            progress=tell(f"{Path(path).name}: aligning"),
        )
        for path in sets
    ]
    results = [item.measure(model, tell(f"{item.name}: embedding")) for item in opened]
    return make_report(model.describe, results, sys.argv if command is None else command)
