"""From what the caller asks for (FMR, FPIR or cosine) to the threshold in force.

Imports the core only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from facerec.errors import ConfigError
from facerec.types import ThresholdTable

DEFAULT_FMR = 1e-3


@dataclass(frozen=True)
class OperatingPoint:
    """A cosine threshold and the false-match rate of one comparison at it (NaN: unmeasured)."""

    threshold: float
    fmr: float

    def fpir(self, people: int) -> float:
        """False-positive rate of a search among ``people``: 1-(1-FMR)^N; NaN if unmeasured."""
        return -math.expm1(people * math.log1p(-self.fmr)) if people else 0.0


def operating_point(
    table: ThresholdTable | None,
    people: int,
    *,
    pack_name: str,
    fmr: float | None = None,
    fpir: float | None = None,
    threshold: float | None = None,
) -> OperatingPoint:
    """The threshold for at most one of ``fmr``, ``fpir`` and ``threshold``; none: FMR 1e-3.

    fpir is that of a search among ``people``. A given cosine ``threshold`` is taken as it
    is, and the FMR read back from the table: NaN outside the measured range, or without a
    table. Raises ConfigError for more than one of them, a value out of range, or a rate for
    which no threshold was measured.
    """
    given = {"FMR": fmr, "FPIR": fpir, "threshold": threshold}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"give one of FMR, FPIR and threshold, not {' and '.join(named)}")
    if threshold is not None:
        if not -1 <= threshold <= 1:
            raise ConfigError(f"a threshold is a cosine in [-1, 1], got {threshold:g}")
        return OperatingPoint(threshold, table.fmr_at(threshold) if table else math.nan)
    for name, rate in (("FMR", fmr), ("FPIR", fpir)):
        if rate is not None and not 0 < rate < 1:
            raise ConfigError(f"{name} lies between 0 and 1, got {rate:g}")
    if table is None:
        raise ConfigError(
            f"pack {pack_name!r} has no threshold table yet, so nothing is known of its false "
            "matches. Measure it with 'facerec evaluate lfw DIR --write', or give a cosine "
            "with --threshold."
        )
    asked = f"FMR {fmr or DEFAULT_FMR:g}"
    wanted = fmr or DEFAULT_FMR
    if fpir is not None:
        wanted = table.fmr_for_fpir(fpir, people)
        asked = f"FPIR {fpir:g} among {people} people, which is FMR {wanted:.2g}"
    try:
        return OperatingPoint(table.cosine_at(wanted), wanted)
    except ValueError as exc:
        raise ConfigError(
            f"{asked}: {exc}. Ask for a rate in that range, or give a cosine with --threshold."
        ) from exc
