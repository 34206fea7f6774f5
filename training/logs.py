"""What a run leaves behind beside its checkpoints, and what it shows while it runs.

::

    RUN/
    ├── recipe.toml        the recipe as it was run, every default written out
    ├── environment.json   one entry a start: versions, device, git revision, command
    ├── data.json          the data's digest, counts and place
    ├── log.csv            a line every ``run.log_every`` steps
    ├── metrics.json       every evaluation, the best, and whether the run is finished
    ├── tensorboard/
    └── checkpoints/

Imports torch, rich and the core; TensorBoard when a run wants it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from facerec import __version__
from facerec.errors import ConfigError
from facerec.files import write_atomically

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "classifier_loss",
    "learning_rate",
    "backbone_gradient",
    "head_gradient",
    "embedding_norm",
    "loss_scale",
    "images_per_second",
)
"""Of log.csv. step counts from 1 and is the number of updates done, epoch counts from 1.
loss: what the encoder learns from, mean over the images since the last line; classifier_loss:
BroadFace's over batch and queue, of the last step. Gradients: Euclidean norms before clipping,
embedding_norm: mean length, both of the last step. The last column alone depends on the clock."""


class CsvLog:
    """log.csv, one line per call; a resumed run goes on behind the checkpoint's step."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                kept = [r for r in csv.reader(stream) if _whole(r) and int(r[0]) <= step]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(kept)
        write_atomically(path, buffer.getvalue().encode())
        self._stream = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream, lineterminator="\n")

    def write(self, values: Mapping[str, float]) -> None:
        """Add a line and hand it to the system; floats as they are, to the last bit."""
        self._writer.writerow([values.get(column, "") for column in COLUMNS])
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _whole(row: list[str]) -> bool:
    """Whether a line was written to its end: the last may not have been."""
    return len(row) == len(COLUMNS) and row[0].isdigit() and row[-1] != ""


class RunLog:
    """Where rank 0 of a run writes its numbers; a context manager."""

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool) -> None:
        self.run_dir = run_dir
        self.csv = CsvLog(run_dir / "log.csv", step)
        self.board: Any = _board(run_dir / "tensorboard", step) if tensorboard else None

    def step(self, values: Mapping[str, float]) -> None:
        """A line of log.csv, and its numbers as TensorBoard's ``train/...``."""
        self.csv.write(values)
        if self.board is not None:
            for name, value in values.items():
                if name != "step":
                    self.board.add_scalar(f"train/{name}", value, int(values["step"]))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """An evaluation, as TensorBoard's ``evaluation/...``."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"evaluation/{name}", value, step)

    def flush(self) -> None:
        """Hand everything to the system; before a checkpoint, so that no point is lost."""
        if self.board is not None:
            self.board.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.csv.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise ConfigError(
            "run.tensorboard is on, but tensorboard is not installed: pip install "
            "'facerec[train]', or set run.tensorboard = false"
        ) from exc
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class Display:
    """A bar with loss, images per second and time left on a terminal; lines elsewhere."""

    def __init__(self, total_steps: int, step: int, *, show: bool) -> None:
        self.console = Console(stderr=True, quiet=not show, highlight=False)
        self.lively = show and self.console.is_terminal
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} steps"),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} img/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.lively,
        )
        self._task: TaskID = self._progress.add_task(
            "train", total=total_steps, completed=step, epoch=1, loss=float("nan"), rate=0.0
        )
        self._said = time.monotonic()

    def step(self, values: Mapping[str, float], total_steps: int) -> None:
        """Show where the run is; without a terminal a line every half minute."""
        self._progress.update(
            self._task,
            completed=int(values["step"]),
            epoch=int(values["epoch"]),
            loss=values["loss"],
            rate=values["images_per_second"],
        )
        if not self.lively and time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            self.say(
                f"step {int(values['step']):,}/{total_steps:,}, epoch {int(values['epoch'])}: loss "
                f"{values['loss']:.4f}, {values['images_per_second']:,.0f} img/s"
            )

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


def environment(device: torch.device, world: int, precision: torch.dtype | None) -> dict[str, Any]:
    """What this process runs on: enough to say later why two runs differ."""
    packages = ("torch", "numpy", "opencv-python", "pillow", "pydantic", "tensorboard")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "facerec": __version__,
        "git": git_revision(Path(__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": world,
        "precision": str(precision or torch.float32).removeprefix("torch."),
    }


def git_revision(folder: Path) -> str | None:
    """The commit of the sources in ``folder``, "+changes" added if they differ from it.

    None where they are not in a repository, such as a package installed inside of another's.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        revision = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+changes" if changed else revision


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    name = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {capability}"


def write_json(path: Path, content: Any) -> None:
    """Readable JSON, whole or not at all. Raises OSError."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, default: Any) -> Any:
    """The file's content; ``default`` if there is none. Raises ConfigError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as exc:
        raise ConfigError(f"{path}: is no JSON: {exc}") from exc
