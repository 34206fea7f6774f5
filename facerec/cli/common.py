"""What the commands share: options, opening, output, progress. Imports lazily."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.errors import ConfigError

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.pipeline import Pipeline
    from facerec.types import Template
    from gallery import Gallery

GalleryOption = Annotated[
    str | None,
    typer.Option(
        "--gallery",
        "-g",
        metavar="DIR|URL",
        help="The gallery's folder, or postgresql://... on a server.",
        show_default=False,
    ),
]
PackOption = Annotated[
    str | None,
    typer.Option(
        "--pack",
        "-p",
        metavar="NAME|DIR",
        help="Model pack; default: the gallery's own, else bundled.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Where the models run.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FmrOption = Annotated[
    float | None,
    typer.Option(
        "--fmr", metavar="RATE", help="Target false-match rate of one comparison.  [default: 0.001]"
    ),
]
FpirOption = Annotated[
    float | None,
    typer.Option(
        "--fpir",
        metavar="RATE",
        help="False-positive rate of one search.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", metavar="COSINE", help="Cosine threshold, instead of a rate."),
]
PersonArgument = Annotated[str, typer.Argument(metavar="NAME", help="A person of the gallery.")]


def settings_for(**flags: Any) -> Settings:
    """The settings in force, under the flags of a command that are not None."""
    from facerec.config import load_settings

    return load_settings(**flags)


def open_all(settings: Settings, *, create: bool = False) -> tuple[Gallery, Pipeline]:
    """The gallery and the pipeline of its pack, for commands that look at photos."""
    from gallery.opening import open_with_pack

    return open_with_pack(settings, create=create)


def open_gallery(folder: str | None, pack: str | None, device: str | None) -> Gallery:
    """An existing gallery, for commands that run no model; ``pack``, if given, must be its own."""
    from gallery import Gallery

    settings = settings_for(gallery=folder, pack=pack, device=device)
    if settings.pack is None:
        return Gallery.open(settings.gallery, create=False)
    from facerec.packs import find_pack

    found = find_pack(settings.pack, search=settings.packs, cache=settings.cache)
    return Gallery.open(
        settings.gallery, contract=found.contract, pack_name=found.name, create=False
    )


def print_json(value: Any) -> None:
    """``value`` on standard output, indented, with letters of every script as they are."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def gallery_exists(settings: Settings) -> bool:
    """Whether there is a gallery. Raises GalleryError where one may not, or can not, look."""
    from gallery.location import Location
    from gallery.store import Store

    return Store.exists(Location.of(settings.gallery))


def gallery_name(settings: Settings) -> str:
    """What to call the gallery on a screen: a password in its URL stays out."""
    from gallery.location import Location

    return str(Location.of(settings.gallery))


def say(json: bool, value: Any, *lines: str) -> None:
    """The outcome of a command: ``value`` as JSON, or ``lines``."""
    if json:
        print_json(value)
    else:
        for line in lines:
            print(line)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """What the system refuses within, as a sentence on ``path``. Raises ConfigError."""
    try:
        yield
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be written ({exc.strerror or exc}). Name another place, or see that "
            "this one may be written and has room."
        ) from exc


def check_target(path: Path | None) -> None:
    """Before a long run: raises ConfigError for a file that could not be written after it."""
    if path is None:
        return
    with writing_to(path):
        if path.is_dir():
            raise ConfigError(f"{path}: this is a folder; name a file")
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise ConfigError(f"{path}: may not be written; name a file in a folder of yours")


def save_crops(gallery: Gallery, templates: Sequence[Template], folder: Path) -> None:
    """Each stored crop as ID.jpg in ``folder``, which is made. Raises ConfigError."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for template in templates:
            data = gallery.crop(template.id)
            if data is not None:
                (folder / f"{template.id}.jpg").write_bytes(data)


def agree(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone; without a terminal, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Say so with --yes; this is not a terminal to ask on.")
    typer.confirm(question, abort=True)


class Progress:
    """A progress bar on standard error, if that is a terminal and there is more than one item.

    Call it with the item that is done, or with how many of how many are. rate: what they are
    called, to say how many a second.
    """

    def __init__(self, what: str, total: int | None, rate: str | None = None) -> None:
        self._what = what
        self._total = total
        self._rate = rate
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and (self._total is None or self._total > 1):
            from rich import progress
            from rich.console import Console

            columns = (
                *progress.Progress.get_default_columns()[:-1],
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: object, total: int | None = None) -> None:
        if self._bar is None:
            return
        if isinstance(done, int) and total is not None:
            self._bar.update(self._task, completed=done, total=total)
        else:
            self._bar.advance(self._task)
        speed = self._bar.tasks[0].speed
        if self._rate is not None and speed is not None:
            self._bar.update(self._task, rate=f"{speed:.0f} {self._rate}/s")
