"""Options that ``facerec retrain`` and ``python -m training retrain`` share. Imports typer only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    str, typer.Option("--data", metavar="FOLDER", help="A folder per person, with their photos.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="PACK", help="The new pack's folder.")
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="PACK|CHECKPOINT|RUN", help="What is trained further.  [default: bundled]"
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="Run as it is.  [default: fine-tune, scaled to the data]"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set optim.lr=0.01"),
]
GuardOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Other people, who must not be recognised worse: .bin, LFW, a folder of people.",
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="How far the guard set's figure may fall.  [default: 0.3 of accuracy, 1 of TAR]",
    ),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        metavar="0..1", help="How far from base to result, instead of choosing it on people."
    ),
]
DistilOption = Annotated[
    float | None,
    typer.Option(metavar="WEIGHT", help="Of feature distillation to the base.  [default: 0]"),
]
RunDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: PACK.run]")
]
NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of the new pack.  [default: its folder's]")
]
LicenceOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Of the new pack.  [default: the base's]")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of chips that are aligned: arcface-112, dlib-150."),
]
SizeOption = Annotated[int | None, typer.Option(metavar="PIXELS", help="Side of aligned chips.")]
KeepOption = Annotated[
    bool, typer.Option("--keep-anyway", help="Write the pack even if it is worse.")
]
ReportOnlyOption = Annotated[
    bool, typer.Option("--report-only", help="Measure and report, but write no pack.")
]
Fp32Option = Annotated[
    bool, typer.Option("--fp32-only", help="Write no float16 and int8 variants.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
