"""Closed-set and open-set identification on a labelled set. Imports the core and NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.identification import Searches, search_first_photos, single_photos
from facerec.types import FloatArray
from training.evaluation.results import (
    ClosedSetResult,
    OpenSetResult,
    closed_set_result,
    open_set_result,
)

_SEED = 2007
_FEWEST_STRANGERS = 100
"""So many searches of strangers show an FPIR of 10 %."""


def identify(
    rows: FloatArray, found: NDArray[np.bool_], labels: NDArray[np.int64]
) -> tuple[ClosedSetResult | None, OpenSetResult | None]:
    """Both kinds of identification, one enrolled photo a person; None where there is nothing.

    rows: (n, d) unit embeddings. found: (n,) bool. labels: (n,) integers from 0. In the closed
    set everybody with two photos is enrolled. In the open set strangers are the people of a
    single photo; where those are fewer than 100, half of the others as well, drawn by a fixed
    seed.
    """
    nobody = np.zeros(len(labels), dtype=np.bool_)
    closed = search_first_photos(rows, found, labels, nobody)
    strangers, who = single_photos(labels), "the people of a single photo"
    if strangers.sum() < _FEWEST_STRANGERS:
        known = np.unique(labels[~strangers])
        drawn = np.random.default_rng(_SEED).permutation(known)[: len(known) // 2]
        alone = " and the people of a single photo" if strangers.any() else ""
        strangers = strangers | np.isin(labels, drawn)
        who = f"half of the people, drawn by a fixed seed{alone}"
    opened: Searches | None = None
    if strangers.any():
        opened = search_first_photos(rows, found, labels, strangers)
    return (
        closed_set_result(closed) if closed else None,
        open_set_result(opened, who) if opened else None,
    )
