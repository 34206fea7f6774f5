"""Checkpoints: files that are whole or absent, and everything a run needs to go on.

A checkpoint holds tensors, numbers, text, lists and dictionaries only, so that reading one runs
no code of whoever made it (``torch.load(weights_only=True)``). Class weights and their momentum
are stored in full, so that any number of ranks can take them up again. Imports torch, NumPy and
the core.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facerec.errors import ConfigError, ModelError
from training.backbones import Backbone, create_backbone

FORMAT = 1
_PARTS = ("backbone_arguments", "backbone", "ema", "step")
"""What whoever wants the network needs; the rest is for the run that goes on."""
BEST = "best.pt"
_NAME = re.compile(r"step-(\d{9})\.pt")
State = dict[str, Any]


class CheckpointFolder:
    """``checkpoints/`` of a run: ``step-NNNNNNNNN.pt``, of which the last k stay, and best.pt."""

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder, self.keep_last = folder, keep_last

    def all(self) -> list[Path]:
        """Oldest first; best.pt is not among them."""
        found = [p for p in self.folder.glob("step-*.pt") if _NAME.fullmatch(p.name)]
        return sorted(found)

    def newest(self) -> Path | None:
        """The last one that was written."""
        paths = self.all()
        return paths[-1] if paths else None

    @property
    def best(self) -> Path | None:
        """best.pt, if an evaluation has chosen one."""
        path = self.folder / BEST
        return path if path.is_file() else None

    def save(self, state: State, *, best: bool = False, drop_old: bool = True) -> Path:
        """Write ``state`` as its step's checkpoint, then drop the oldest beyond ``keep_last``.

        Whatever goes wrong, and whenever the process dies, the checkpoints that were there
        before are still there. Raises ModelError where the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(state["step"])
        try:
            _write(path, state)
        except (OSError, RuntimeError) as exc:
            raise ModelError(self._not_saved(path, exc)) from exc
        if best:
            self.mark_best(path)
        if drop_old:
            for old in self.all()[: -self.keep_last]:
                old.unlink()
        return path

    def drop(self, step: int) -> None:
        """Delete the checkpoint of a step whose network turned out to be of no use."""
        self._path(step).unlink(missing_ok=True)

    def remove_remains(self) -> None:
        """Delete what a process that was killed while saving has left half-written."""
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"

    def mark_best(self, path: Path) -> None:
        """best.pt becomes another name of the file: no bytes are copied where links exist."""
        part = self.folder / f".{BEST}.{os.getpid()}.part"
        try:
            try:
                os.link(path, part)
            except OSError:  # a file system without links
                shutil.copyfile(path, part)
            part.replace(self.folder / BEST)
        except OSError as exc:
            raise ModelError(self._not_saved(self.folder / BEST, exc)) from exc
        finally:
            part.unlink(missing_ok=True)

    def _not_saved(self, path: Path, exc: BaseException) -> str:
        kept = self.newest()
        intact = f"The last checkpoint, {kept}, is intact" if kept else "There is no earlier one"
        return (
            f"{path}: the checkpoint cannot be saved: {_reason(exc)}. {intact}. Make room (or "
            "lower run.keep_last), then start the same command again: it resumes from there."
        )


def _reason(exc: BaseException) -> str:
    """torch's writer hides the system's error under its own; find it."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(exc).splitlines()[0]


def _write(path: Path, state: State) -> None:
    """Beside the target, flushed to the disk, renamed; streamed, so that memory holds it once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        with suppress(OSError):  # the rename itself; not every system can sync a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    """What torch.save wrote, tensors on the CPU.

    torch reads its files without looking at their checksums, so they are compared here first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as exc:
        raise ModelError(f"{path}: no such file") from exc
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as exc:
        raise ModelError(
            f"{path}: damaged, or not a checkpoint: {_reason(exc)}. If it is the newest of a run, "
            "delete it to resume from the one before."
        ) from exc


def load_checkpoint(path: Path) -> State:
    """The content of a checkpoint, tensors on the CPU.

    Raises ModelError for a file that is missing, damaged, or no checkpoint of this program.
    """
    state: State = _read(path)
    if not isinstance(state, dict) or "format" not in state or "recipe" not in state:
        raise ModelError(f"{path}: a torch file, but not a checkpoint of a training run")
    if state["format"] != FORMAT:
        raise ModelError(
            f"{path}: checkpoint format {state['format']}; this version reads {FORMAT}"
        )
    if missing := [part for part in _PARTS if part not in state]:
        raise ModelError(
            f"{path}: not a whole checkpoint of a training run: {', '.join(missing)} is missing"
        )
    return state


def backbone_from_checkpoint(path: Path, *, averaged: bool = True) -> Backbone:
    """The trained network, in evaluation mode, on the CPU.

    averaged: the moving average of the weights where the run kept one.
    Raises ModelError as :func:`load_checkpoint`.
    """
    return backbone_from_state(load_checkpoint(path), str(path), averaged=averaged)


def backbone_from_state(state: State, source: str, *, averaged: bool = True) -> Backbone:
    """As :func:`backbone_from_checkpoint`, from a checkpoint's content."""
    weights = state["ema"] if averaged and state["ema"] is not None else state["backbone"]
    backbone = create_backbone(**state["backbone_arguments"], pretrained=False)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as exc:
        raise ModelError(f"{source}: does not fit the network that it names: {exc}") from exc
    return backbone.eval()


def save_network(path: Path, backbone: Backbone) -> None:
    """Write a network alone, for :func:`load_network`. Raises ModelError."""
    content = {"arguments": backbone.arguments, "state": cpu_copy(backbone.state_dict())}
    try:
        _write(path, cpu_copy(content))
    except (OSError, RuntimeError) as exc:
        raise ModelError(f"{path}: cannot be written: {_reason(exc)}") from exc


def load_network(path: Path) -> Backbone:
    """What :func:`save_network` wrote, in evaluation mode, on the CPU. Raises ModelError."""
    content = _read(path)
    try:
        backbone = create_backbone(**content["arguments"], pretrained=False)
        backbone.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError, ConfigError) as exc:
        raise ModelError(f"{path}: is no network of this program: {exc}") from exc
    return backbone.eval()


def random_state(device: torch.device) -> State:
    """The state of every global generator of this process: python, NumPy, torch, CUDA's."""
    version, keys, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - to keep it
    keys_of_numpy = torch.from_numpy(np.asarray(words).astype(np.int64))
    return {
        "python": [version, list(keys), gauss],
        "numpy": [str(kind), keys_of_numpy, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: State, device: torch.device) -> None:
    """Put back what :func:`random_state` gave; CUDA's only onto CUDA."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed: int, *more: int) -> None:
    """Seed every global generator from ``seed`` and further numbers, such as the rank."""
    words = np.random.SeedSequence([seed, *more]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - augmentations of others may use it
    torch.manual_seed(int(words[2]))


@contextmanager
def undisturbed_randomness(device: torch.device) -> Iterator[None]:
    """What happens inside draws from the global generators without moving them."""
    before = random_state(device)
    try:
        yield
    finally:
        restore_random_state(before, device)


def cpu_copy(value: Any) -> Any:
    """Nested containers with every tensor detached, on the CPU, and owning no more than it is."""
    if isinstance(value, Tensor):
        value = value.detach()
        compact = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value.cpu() if compact else value.cpu().clone()
    if isinstance(value, dict):
        return {key: cpu_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cpu_copy(item) for item in value]
    return value


def redistribute(queues: Sequence[tuple[Tensor, ...]], world: int) -> list[tuple[Tensor, ...]]:
    """Queue entries of some ranks, oldest first, dealt out to ``world`` ranks.

    queues: per rank, tensors of equal length n. The order of time is kept: entry i of every
    rank is as old as entry i of the others. Every new rank gets the same number; of a rest
    that does not divide the oldest leave.
    """
    merged = []
    for parts in zip(*queues, strict=True):
        stacked = torch.stack(parts, dim=1)  # (n, ranks, ...)
        merged.append(stacked.reshape(-1, *stacked.shape[2:]))
    rest = len(merged[0]) % world
    return [
        tuple(values[rest + rank :: world].contiguous() for values in merged)
        for rank in range(world)
    ]
