"""Closed-set and open-set identification on a labelled set. Imports the core and NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.identification import Searches, choose_strangers, search_first_photos
from facerec.types import FloatArray
from training.evaluation.results import (
    ClosedSetResult,
    OpenSetResult,
    closed_set_result,
    open_set_result,
)


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
    strangers, who = choose_strangers(labels)
    opened: Searches | None = None
    if strangers.any():
        opened = search_first_photos(rows, found, labels, strangers)
    return (
        closed_set_result(closed) if closed else None,
        open_set_result(opened, who) if opened else None,
    )
