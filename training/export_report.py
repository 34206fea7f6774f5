"""What an export found, as values, as text and as JSON. Imports the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from facerec.types import ThresholdTable
from training.onnx_graph import PARITY_LIMIT, Parity
from training.pack_measures import BATCHES, FARS

DEFAULT_FMR = 1e-3
"""What ``facerec identify`` asks for unless told otherwise."""


@dataclass(frozen=True)
class PackReport:
    """One written pack. precision: "float32", "float16" or "int8".

    size_bytes: of its embedder. milliseconds: of the network alone, per image, by batch.
    mean_cosine, min_cosine: to the float32 embeddings of the same images. tar: by FAR, those
    that could be measured. None and empty where there was nothing to measure on.
    """

    precision: str
    folder: Path
    contract_id: str
    size_bytes: int
    milliseconds: dict[int, float]
    mean_cosine: float | None
    min_cosine: float | None
    tar: dict[float, float]
    thresholds: ThresholdTable | None
    calibration: str | None


@dataclass(frozen=True)
class ExportReport:
    """What :func:`training.export.export_pack` wrote; ``packs`` has float32 first.

    measured_on: a sentence, None where no faces were given.
    """

    name: str
    folder: Path
    backbone: str
    opset: int
    parity: tuple[Parity, ...]
    packs: tuple[PackReport, ...]
    measured_on: str | None
    timed_on: str

    @property
    def contract_id(self) -> str:
        """Of the float32 pack."""
        return self.packs[0].contract_id

    @property
    def thresholds(self) -> ThresholdTable | None:
        """Of the float32 pack."""
        return self.packs[0].thresholds

    def at(self, folder: Path) -> ExportReport:
        """The same pack in another folder."""
        packs = [replace(p, folder=folder / p.folder.relative_to(self.folder)) for p in self.packs]
        return replace(self, folder=folder, packs=tuple(packs))

    def to_dict(self) -> dict[str, Any]:
        """Every field, for JSON."""
        return asdict(self) | {"contract_id": self.contract_id}

    def lines(self) -> list[str]:
        """The report for a terminal."""
        worst = max(self.parity, key=lambda p: p.embeddings)
        parity = ", ".join(
            f"batch {p.batch}: {p.embeddings:.1e} (outputs {p.outputs:.1e} "
            f"of up to {p.largest_output:.3g})"
            for p in self.parity
        )
        return [
            f"Pack {self.name} is in {self.folder} (contract {self.contract_id}).",
            (
                f"{self.backbone}, ONNX opset {self.opset}; a unit embedding differs from torch's "
                f"by {worst.embeddings:.1e} at most, limit {PARITY_LIMIT:g}"
            ),
            f"  {parity}",
            "",
            *self._table(),
            f"Milliseconds per image of the network alone: {self.timed_on}.",
            f"Measured on {self.measured_on}."
            if self.measured_on
            else "Accuracy was not measured.",
            *self._calibrations(),
            *self._without_thresholds(),
        ]

    def _table(self) -> list[str]:
        head = [
            *("pack", "MB"),
            *(f"ms, batch {batch}" for batch in BATCHES),
            *("cosine mean", "min"),
            *(f"TAR@FAR {far:.0e}" for far in FARS),
        ]
        return _columns([head, *(self._row(pack) for pack in self.packs)])

    def _row(self, pack: PackReport) -> list[str]:
        exact = self.packs[0]
        cosines = ["-" if c is None else f"{c:.5f}" for c in (pack.mean_cosine, pack.min_cosine)]
        return [
            pack.precision,
            f"{pack.size_bytes / 1e6:.1f}",
            *(f"{pack.milliseconds[batch]:.2f}" for batch in BATCHES),
            *cosines,
            *(_rate(pack.tar.get(far), exact.tar.get(far), pack is exact) for far in FARS),
        ]

    def _calibrations(self) -> list[str]:
        return [f"{p.precision}: {p.calibration}." for p in self.packs if p.calibration]

    def _without_thresholds(self) -> list[str]:
        """What is missing for ``identify``, and the remedy."""
        table = self.thresholds
        remedy = (
            f"Measure on photos with 'facerec evaluate lfw DIR --pack {self.folder} --write', or "
            "give a cosine with --threshold."
        )
        if table is None:
            reason = "no faces to measure on" if self.measured_on is None else "too few faces"
            text = (
                f"No thresholds: {reason}. 'facerec identify' and 'verify' cannot answer for a "
                f"false-match rate with this pack. {remedy}"
            )
            return [text]
        if table.fmr[-1] > DEFAULT_FMR * (1 + 1e-9):
            text = (
                f"Thresholds reach down to FMR {table.fmr[-1]:g} only: too few faces for "
                f"{DEFAULT_FMR:g}, which 'facerec identify' asks for by default; pass --fmr "
                f"{table.fmr[-1]:g}. {remedy}"
            )
            return [text]
        return []


def _rate(tar: float | None, exact: float | None, reference: bool) -> str:
    if tar is None or exact is None:
        return "-"
    return f"{100 * tar:.2f} %" + ("" if reference else f" ({100 * (tar - exact):+.2f})")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
