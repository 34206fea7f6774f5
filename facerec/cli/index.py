"""The command that indexes a collection of photos: index."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    settings_for,
)
from facerec.errors import ConfigError, FacerecError

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.pipeline import Pipeline
    from gallery.crew import Crew
    from gallery.index_report import IndexReport
    from gallery.indexer import Indexer
    from gallery.photo_work import LookOptions
    from gallery.sources import Sources

_INTERRUPTED = 130
_LINE_S = 30.0
"""Between two lines of progress, where there is no terminal to draw a bar on."""


def index(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, photos, zip and tar archives, videos.",
            show_default=False,
        ),
    ] = None,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    by_folder: Annotated[
        bool, typer.Option("--by-folder", help="SOURCE/NAME/*.jpg shows NAME.")
    ] = False,
    person: Annotated[
        str | None, typer.Option("--person", metavar="NAME", help="Every photo shows NAME.")
    ] = None,
    manifest: Annotated[
        list[Path] | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="CSV or JSON Lines: path, name, and columns that become the person's metadata.",
            show_default=False,
        ),
    ] = None,
    video_fps: Annotated[
        float,
        typer.Option("--video-fps", metavar="N", help="Frames of a video looked at a second."),
    ] = 2.0,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the faces of files that are gone.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and index what changes, until Ctrl-C.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Take what the quality gate refuses; where one person is meant, the largest face.",
        ),
    ] = False,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry", help="Look again at photos that were refused, failed or were removed."
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS|local",
            help="Look at photos on a Ray cluster; local starts one on this machine.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Index a collection: every photo once, however often this is run.

    Without --by-folder, --person or --manifest nobody is named: every face becomes somebody
    unknown, to be grouped and named later. A run that was stopped, or killed, goes on where it
    was when the same command is given again. Exit code 1 if anything failed.

    Example: facerec index photos --by-folder --prune
    """
    from gallery.index_report import IndexReport
    from gallery.naming import Naming

    roots, lists = sources or [], manifest or []
    if not roots and not lists:
        raise ConfigError("name a folder, archive, video or --manifest to index")
    if roots and lists:
        raise ConfigError(
            "name SOURCEs or a --manifest, not both: a list's photos show one person each, others "
            "may show several. Run the command once for each"
        )
    if lists and (by_folder or person is not None):
        raise ConfigError("a --manifest names people itself: leave out --by-folder and --person")
    if not 0 < video_fps <= 1000:
        raise ConfigError(f"--video-fps lies between 0 and 1000, got {video_fps:g}")
    if watch and lists:
        raise ConfigError("--watch looks after folders; run a --manifest again when it changes")
    if ray is not None:
        from gallery.ray_cluster import check_address

        check_address(ray)
    naming = Naming(by_folder=by_folder, person=person)
    settings = settings_for(gallery=gallery, pack=pack, device=device)
    with (
        _stoppable() as stop,
        _opened(settings, naming, lists, video_fps, ray, force=force, retry=retry) as indexer,
    ):

        def run(only: Collection[Path] | None = None) -> int:
            found = _sources(indexer, roots, naming, lists, only)
            with closing(IndexReport()) as report:
                try:
                    with _Progress(found, stop) as progress:
                        indexer.run(found, prune_gone=prune, progress=progress, report=report)
                except FacerecError:  # a full disk, say; what was done before is done
                    if not json:
                        _say(report, json=False)
                    raise
                if only is None or report.photos or report.counts["pruned_files"]:
                    _say(report, json=json)
                return _INTERRUPTED if report.interrupted else int(len(report.failed) > 0)

        if watch:
            from gallery.watching import watch as keep_watching

            found = _sources(indexer, roots, naming, lists, None)
            keep_watching(found.roots, lambda only: run(only) != _INTERRUPTED, stop)
            raise typer.Exit(_INTERRUPTED)
        code = run()
    raise typer.Exit(code)


def _sources(
    indexer: Indexer,
    roots: list[Path],
    naming: Any,
    manifests: list[Path],
    only: Collection[Path] | None,
) -> Sources:
    from gallery.manifests import check_manifest
    from gallery.sources import Sources

    for path in manifests:
        check_manifest(path)
    return Sources(roots, naming=naming, manifests=manifests, known=indexer.ledger(), only=only)


@contextmanager
def _opened(
    settings: Settings,
    naming: Any,
    manifests: list[Path],
    video_fps: float,
    ray: str | None,
    *,
    force: bool,
    retry: bool,
) -> Iterator[Indexer]:
    """An indexer on the settings' gallery; the first photo that needs the models loads them."""
    from facerec.quality import Gate
    from gallery.indexer import Indexer
    from gallery.opening import open_before_pack
    from gallery.photo_work import LookOptions

    options = LookOptions(
        one_person=bool(manifests) or naming.by_folder or naming.person is not None,
        gate=None if force else Gate(),
        keep_crops=settings.keep_crops,
        max_pixels=settings.max_pixels,
        video_fps=video_fps,
    )
    opened, load = open_before_pack(settings, create=True)
    with opened, _crew(settings, load, options, ray) as crew:
        yield Indexer(opened, crew, force=force, retry=retry)


@contextmanager
def _crew(
    settings: Settings,
    load: Callable[[int | None], Pipeline],
    options: LookOptions,
    ray: str | None,
) -> Iterator[Crew]:
    """Threads of this process, or Ray workers; either look at photos on one thread each."""
    from facerec.runtime import available_threads
    from gallery.crew import Threads
    from gallery.photo_work import PhotoWork

    threads = settings.threads or available_threads()
    if ray is not None:
        from gallery.opening import choose_pack
        from gallery.ray_crew import ray_crew

        pack, device = choose_pack(settings), settings.device
        with ray_crew(
            ray, pack, options, device=device, workers=settings.threads, cpus=threads
        ) as crew:
            yield crew
        return
    ours = Threads(lambda: PhotoWork(load(1), options), threads)
    try:
        yield ours
    finally:
        ours.close()


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Ctrl-C, and SIGTERM, with which services are stopped, end the run; and set the event, as
    Python drops an exception that comes while it tidies up."""
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        stop.set()
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(report: IndexReport, *, json: bool) -> None:
    if json:
        report.write_json(sys.stdout)
    else:
        for line in report.lines():
            print(line)
        if report.interrupted:
            print("Interrupted; the same command goes on from here.")
    sys.stdout.flush()


class _Progress:
    """Photos and faces a second, and how long it will take, on standard error."""

    def __init__(self, sources: Sources, stop: threading.Event) -> None:
        self._total = _Total(sources)
        self._stop = stop
        self._bar: Any = None
        self._task: Any = None
        self._last_s = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._total.start()
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rates]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("Indexing", total=None, rates="")
        return self

    def __exit__(self, *_: object) -> None:
        self._total.stop()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, report: IndexReport) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        seconds = max(report.seconds, 1e-3)
        rates = f"{report.looked_at / seconds:.0f} photos/s, {report.faces / seconds:.0f} faces/s"
        if self._bar is not None:
            self._bar.update(
                self._task, completed=report.photos, total=self._total.known, rates=rates
            )
        elif time.monotonic() - self._last_s >= _LINE_S:
            self._last_s = time.monotonic()
            print(f"facerec: {report.photos:,} photos, {rates}", file=sys.stderr)


class _Total:
    """Counts files while others are indexed. ``known``: None until the end is known.

    The members of archives are not counted, so that with archives it stays below the truth.
    """

    def __init__(self, sources: Sources) -> None:
        self._roots = sources.roots
        self._manifests = sources.manifests
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True, name="facerec-count")
        self.known: int | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _count(self) -> None:
        from gallery.sources import count_files

        total = 0
        for count in count_files(self._roots):
            total += count
            if self._stopped.is_set():
                return
        for manifest in self._manifests:
            with manifest.open("rb") as stream:
                total += sum(1 for _ in stream)
        self.known = total or None
