"""Small training runs for tests: people made of colour blobs, tiny networks, other processes."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from training.data import ArraySource
from training.recipe import Recipe, recipe_from

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = 32

TINY: dict[str, Any] = {
    "backbone": {
        "name": "mobilefacenet-paper",
        "width": 0.25,
        "input_size": SIZE,
        "embedding_dim": 16,
    },
    "head": {"name": "arcface", "margin": 0.2, "scale": 16.0},
    "optim": {"lr": 0.05},
    "schedule": {"kind": "cosine"},
    "data": {"workers": 0},
    "run": {"epochs": 2, "batch_size": 16, "device": "cpu", "amp": "off", "tensorboard": False},
}


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: quickest for networks this small, and the same as in ``start``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tiny(**changes: Any) -> Recipe:
    """The smallest recipe; changes by dotted name, "." written as "__"."""
    recipe = recipe_from(TINY, "tiny")
    return recipe.changed(**{key.replace("__", "."): value for key, value in changes.items()})


def blob_chips(people: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """((n, S, S, 3) uint8, (n,) labels): a person is a smooth pattern, a photo adds noise."""
    rng = np.random.default_rng(seed)
    chips, labels = [], []
    for person in range(people):
        blobs = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        face = cv2.resize(blobs, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(float)
        for _ in range(each):
            noisy = face * rng.uniform(0.8, 1.2) + rng.normal(0, 25, face.shape)
            chips.append(noisy.clip(0, 255).astype(np.uint8))
            labels.append(person)
    return np.stack(chips), np.array(labels)


def blobs(people: int = 8, each: int = 8, seed: int = 0) -> ArraySource:
    """Blob people in memory."""
    chips, labels = blob_chips(people, each, seed)
    return ArraySource(chips, labels, "arcface-112", origin="blobs")


def write_blobs(folder: Path, people: int = 8, each: int = 8, seed: int = 0) -> Path:
    """Blob people as PNG files, a folder each."""
    chips, labels = blob_chips(people, each, seed)
    for number, (chip, label) in enumerate(zip(chips, labels, strict=True)):
        path = folder / f"person{label:02d}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", chip[:, :, ::-1])[1].tobytes())
    return folder


def log_of(run_dir: Path) -> list[dict[str, str]]:
    """The whole lines of log.csv, without the column that depends on the clock."""
    path = run_dir / "log.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["images_per_second"]]
    for row in rows:
        del row["images_per_second"]
    return rows


def losses_of(run_dir: Path) -> list[float]:
    """The loss of each step."""
    return [float(row["loss"]) for row in log_of(run_dir)]


def command(recipe: Path, data: Path, run_dir: Path, *more: str) -> list[str]:
    """The command line that trains on a folder of blobs, behind ``python -m``."""
    return [
        *("training", "train", str(recipe), "--data", str(data), "--run-dir", str(run_dir)),
        *("--template", "arcface-112", "--size", str(SIZE), "--quiet", *more),
    ]


def start(words: list[str], rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """``python -m words`` as one of ``world`` processes."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    if world > 1:
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=env,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def finish(processes: list[subprocess.Popen[str]], timeout: float = 240) -> list[str]:
    """What each process wrote, once all are done; fails the test unless all return 0."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def stop_at(
    processes: list[subprocess.Popen[str]],
    run_dir: Path,
    step: int,
    number: int = signal.SIGKILL,
    delay: float = 0.0,
    timeout: float = 240,
) -> list[int]:
    """Send the signal once the log has ``step`` lines; the processes' return codes."""
    deadline = time.monotonic() + timeout
    while len(log_of(run_dir)) < step:
        done = [p for p in processes if p.poll() is not None]
        if done or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            outputs = [p.communicate()[0] for p in processes]
            raise AssertionError(f"step {step} was not reached: {outputs}")
        time.sleep(0.005)
    time.sleep(delay)
    for process in processes:
        process.send_signal(number)
    for process in processes:
        process.communicate(timeout=timeout)
    return [p.returncode for p in processes]
