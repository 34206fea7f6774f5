"""``python -m training evaluate``. Imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from facerec.errors import ConfigError


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pack, a training run's folder, or a .pt file.")
    ],
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...",
            help="A .bin file, a folder with pairs.txt, an IJB folder, or people to compare.",
        ),
    ],
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Save the report as JSON.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Save it with pictures.")
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Average with the mirror image.  [default: the pack's own; checkpoints: flip]",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="detector,norm|none",
            help="Of the images in an IJB template.",
            show_default=True,
        ),
    ] = "detector,norm",
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of stored chips: arcface-112, dlib-150.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of stored chips.", min=16)
    ] = None,
    max_images: Annotated[
        int, typer.Option(metavar="N", help="Of a set of people; more are drawn from.", min=4)
    ] = 12_000,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="PACK", help="Of photos.  [default: the pack's; checkpoints: bundled]"
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where the model runs.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure a model on labelled faces: verification, identification, templates.

    Example: python -m training evaluate runs/first lfw/ agedb_30.bin --html report.html
    """
    from facerec.files import write_atomically
    from training.evaluate import SetOptions, open_model
    from training.evaluate import evaluate as run
    from training.evaluation.report import to_html
    from training.evaluation.summary import format_text

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not known; use auto, cpu or cuda")
    for target in (json, html):
        if target is not None and not target.absolute().parent.is_dir():
            raise ConfigError(f"{target}: its folder does not exist; make it first")
    chosen = tuple(w for w in weights.split(",") if w and w != "none")
    options = SetOptions(template, size, max_images, chosen)
    opened = open_model(model, flip=flip, device=device, detector=detector)
    with _progress(show=not quiet and sys.stderr.isatty()) as progress:
        words = ("python", "-m", "training", *sys.argv[1:])
        report = run(opened, sets, options, progress=progress, command=words)
    for target, text in ((json, report.to_json), (html, lambda: to_html(report))):
        if target is not None:
            try:
                write_atomically(target, text().encode())
            except OSError as exc:
                raise ConfigError(f"{target}: cannot be written: {exc.strerror}") from exc
    print(format_text(report))


@contextmanager
def _progress(*, show: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar a set, on standard error."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bars:

        def begin(what: str) -> Callable[[int, int], None]:
            task = bars.add_task(what, total=None, visible=False)

            def advance(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total, visible=True)

            return advance

        yield begin
