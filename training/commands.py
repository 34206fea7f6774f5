"""The commands of ``python -m training``; each imports what it needs inside itself.

Exit codes are the ``facerec`` command's: 0 done; 1 an error; 2 a recipe, a flag or the data;
3 images; 4 a model, a device, a checkpoint or a diverged run; 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from facerec.errors import ConfigError, FacerecError
from facerec.training_options import (
    AlphaOption,
    DataOption,
    DistilOption,
    Fp32Option,
    FromOption,
    GuardOption,
    KeepOption,
    LicenceOption,
    NameOption,
    OutputOption,
    QuietOption,
    RecipeOption,
    ReportOnlyOption,
    RunDirOption,
    SetOption,
    SizeOption,
    TemplateOption,
    ToleranceOption,
)
from training.evaluate_command import evaluate as evaluate_command

if TYPE_CHECKING:
    from training.data import FaceSource
    from training.recipe import Recipe
    from training.trainer import Evaluate

_INTERRUPTED = 130

app = typer.Typer(
    help="Train face embedders: ElasticFace, BroadFace and the margins before them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Train face embedders: ElasticFace, BroadFace and the margins before them."""


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Print this one, all defaults shown.")
    ] = None,
) -> None:
    """List the recipes that are shipped.

    Example: python -m training recipes small-data > mine.toml
    """
    from training.recipe import load_recipe, shipped_recipes

    if name is not None:
        print(load_recipe(name).to_toml(), end="")
        return
    known = shipped_recipes()
    width = max(map(len, known))
    for recipe, description in known.items():
        print(f"{recipe:{width}}  {description}")


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="PATH", help="A folder per person, train.rec, or tar shards."),
    ],
    run_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder; one that holds a run is resumed.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set optim.lr=0.02"),
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of aligned chips: arcface-112, dlib-150.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of aligned chips.")
    ] = None,
    pack: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="Whose detector aligns photos.")
    ] = "bundled",
    resume: Annotated[
        bool, typer.Option("--resume/--new", help="--new: a folder with a run in it is an error.")
    ] = True,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--evaluate", metavar="SET", help="Measure on schedule: .bin, LFW, people."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train on a set of faces as a recipe says; the same command resumes what was stopped.

    Example: python -m training train small-data --data celeba112 --run-dir runs/first

    Several processes: torchrun --nproc-per-node 4 -m training train ...

    Figures of --evaluate sets are named after them, agedb_30_accuracy; run.best_metric takes one.
    """
    from training.recipe import load_recipe, parse_overrides
    from training.trainer import train as run_training

    wanted = load_recipe(recipe).changed(**parse_overrides(settings or []))
    source, held_out = training_data(wanted, data, template=template, size=size, pack=pack)
    on_schedule = scheduled(wanted, evaluate, held_out, pack) if evaluate else None
    result = run_training(
        wanted,
        source,
        run_dir,
        held_out=held_out,
        evaluate=on_schedule,
        resume=resume,
        show=not quiet,
    )
    main = os.environ.get("RANK", "0") == "0"
    if main:
        chosen = result.best_checkpoint or result.checkpoint
        figures = (result.best or {}).get("metrics", {})
        print(f"{chosen}" + "".join(f"\n{key} {value:.4f}" for key, value in figures.items()))


@app.command()
def retrain(
    data: DataOption,
    output: OutputOption,
    start: FromOption = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    guard: GuardOption = None,
    tolerance: ToleranceOption = None,
    alpha: AlphaOption = None,
    distil: DistilOption = None,
    run_dir: RunDirOption = None,
    name: NameOption = None,
    licence: LicenceOption = None,
    template: TemplateOption = None,
    size: SizeOption = None,
    pack: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Whose detector is used.  [default: the base's]"),
    ] = None,
    keep_anyway: KeepOption = False,
    report_only: ReportOnlyOption = False,
    fp32_only: Fp32Option = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a pack further on your people, and say whether the new one is better.

    Exit code 0 if it is, 1 if it is not or that cannot be told; the pack is written unless it
    is worse. The same command goes on with what was interrupted.

    Example: python -m training retrain --data photos --guard lfw -o packs/mine
    """
    from training.recipe import parse_overrides
    from training.retrain import Options
    from training.retrain import retrain as run_retraining

    options = Options(
        start=start,
        recipe=recipe,
        overrides=parse_overrides(settings or []),
        guard=guard,
        tolerance=None if tolerance is None else tolerance / 100,
        alpha=alpha,
        distil=distil,
        pack=pack,
        template=template,
        size=size,
        run_dir=run_dir,
        name=name,
        licence=licence,
        keep_anyway=keep_anyway,
        report_only=report_only,
        variants=() if fp32_only else ("float16", "int8"),
    )
    report = run_retraining(data, output, options, show=not quiet)
    print(report.to_json() if json else report.to_text())
    raise typer.Exit(0 if report.verdict == "better" else 1)


def scheduled(recipe: Recipe, sets: list[str], held_out: FaceSource | None, pack: str) -> Evaluate:
    """What measures ``sets`` and the held-out people on schedule; only rank 0 opens them."""
    from facerec.packs import find_pack
    from training.build import preprocessing_of
    from training.evaluation.schedule import ScheduledEvaluation

    if os.environ.get("RANK", "0") != "0":
        return lambda _: {}
    return ScheduledEvaluation(
        recipe, preprocessing_of(recipe), sets, held_out=held_out, detector=find_pack(pack)
    )


def training_data(
    recipe: Recipe, path: str, *, template: str | None, size: int | None, pack: str
) -> tuple[FaceSource, FaceSource | None]:
    """What lies at ``path``: people to learn, and those kept aside by ``data.holdout``.

    Photos that are not aligned are, for the recipe's backbone, and kept in the user's cache.
    """
    from facerec.config import load_settings
    from facerec.packs import find_pack
    from training.build import preprocessing_of
    from training.data import keep_identities, open_source, split_identities

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        source = open_source(
            path,
            template=template,
            size=size,
            pack=find_pack(pack) if alone else None,
            cache=load_settings().cache / "aligned" if alone else None,
            preprocessing=preprocessing_of(recipe),
        )
    except ConfigError as exc:
        if alone:
            raise
        raise ConfigError(f"{exc} Several processes do not align: start one first.") from exc
    source = keep_identities(source, recipe.data.min_images)
    if not recipe.data.holdout:
        return source, None
    split = split_identities(source, val=recipe.data.holdout, seed=recipe.data.holdout_seed)
    return split.train, split.val


app.command()(evaluate_command)


def main() -> NoReturn:
    """Run the command line; every error leaves as a sentence and an exit code."""
    from rich.console import Console

    try:
        app(standalone_mode=True)
    except FacerecError as exc:
        console = Console(stderr=True, highlight=False)
        console.print(f"training: {exc}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(exc.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(_interrupted()) from None
    except SystemExit as exc:
        if exc.code == _INTERRUPTED:
            _interrupted()
        raise
    raise SystemExit(0)


def _interrupted() -> int:
    print("training: interrupted; the run is saved and the same command resumes", file=sys.stderr)
    return _INTERRUPTED
