"""The ``facerec`` command: a composition root, which may import everything, but late.

Each command imports what it needs inside itself, so that ``facerec --help`` loads
neither a model library nor a database, and ``facerec identify`` no torch or gradio.

Exit codes: 0 done; 1 the answer is no, or part of a batch failed; 2 a wrong flag or
setting; 3 an image; 4 a model, pack or device; 5 the gallery; 6 another embedding
contract; 130 interrupted. With ``--json`` errors are JSON too, on standard output.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer

from facerec.cli import backup, care, identification, index, recognise, reembed, retrain, train
from facerec.cli.care import evaluate_app
from facerec.cli.cluster import cluster_app
from facerec.cli.common import print_json
from facerec.cli.gallery import gallery_app
from facerec.cli.packs import packs_app
from facerec.cli.people import people_app
from facerec.errors import FacerecError

_INTERRUPTED = 130

app = typer.Typer(
    help="Face recognition that you host yourself: enrol people, identify them in photos.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (recognise.enroll, recognise.identify, recognise.verify):
    app.command()(command)
app.command()(index.index)
app.command("app")(recognise.app_command)
app.add_typer(people_app, name="people")
app.add_typer(cluster_app, name="cluster")
app.add_typer(gallery_app, name="gallery")
app.add_typer(packs_app, name="packs", invoke_without_command=True)
evaluate_app.command("identification")(identification.evaluate_identification)
app.add_typer(evaluate_app, name="evaluate")
app.command()(train.export)
app.command()(retrain.retrain)
app.command()(reembed.reembed)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(backup.compact)
app.command()(care.doctor)
app.command()(care.demo)


def main() -> NoReturn:
    """Run the command line; every error leaves as a sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except FacerecError as exc:
        if "--json" in sys.argv:
            print_json({"error": {"type": type(exc).__name__, "message": str(exc)}})
        else:
            from rich.console import Console

            Console(stderr=True, highlight=False, emoji=False).print(
                f"facerec: {exc}", style="red", markup=False, soft_wrap=True
            )
        raise SystemExit(exc.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(_interrupted()) from None
    except SystemExit as exc:
        if exc.code == _INTERRUPTED:
            _interrupted()
        raise
    except BrokenPipeError:  # the reader, such as head, has left
        sys.stderr.close()
        raise SystemExit(141) from None
    raise SystemExit(0)


def _interrupted() -> int:
    print("facerec: interrupted; what was reported as done is done", file=sys.stderr)
    return _INTERRUPTED


def _version(value: bool) -> None:
    if value:
        from facerec import __version__

        print(f"facerec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Face recognition that you host yourself: enrol people, identify them in photos."""
