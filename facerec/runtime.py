"""ONNX networks on a strictly chosen device: the only place that meets onnxruntime.

Imports the core and onnxruntime (lazily, it takes a tenth of a second).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import onnxruntime

T = TypeVar("T")
R = TypeVar("R")

_ERRORS_ONLY = 3
"""onnxruntime's log level; warnings about a user's graph are noise on a terminal."""


def resolve_device(requested: str) -> str:
    """ "cpu" or "cuda" for the setting "auto", "cpu" or "cuda".

    "auto" takes CUDA where this onnxruntime was built with it and a driver answers.
    "cuda" without such a build raises ModelError; nothing falls back silently.
    """
    import onnxruntime

    built_in = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if requested == "cpu":
        return "cpu"
    if requested == "auto":
        return "cuda" if built_in and _cuda_driver_answers() else "cpu"
    if requested != "cuda":
        raise ConfigError(f"device {requested!r} is not known; use auto, cpu or cuda")
    if not built_in:
        raise ModelError(
            "device cuda: this onnxruntime was built without CUDA (it offers "
            f"{', '.join(onnxruntime.get_available_providers())}). Install facerec[gpu] in an "
            "environment without the CPU build; 'facerec doctor' shows which builds are there."
        )
    return "cuda"


def available_threads() -> int:
    """Cores that this process may use: affinity where the system knows it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Network:
    """One ONNX file with one image input, run on one device.

    On the CPU two sessions are kept, each made when first needed: a *wide* one that
    spreads a single run over all threads, for the latency of one photo, and a
    *narrow* one of a single thread that many runs share side by side, for the
    throughput of many. Both may be used from several threads at once.

    path: of the file. device: "cpu" or "cuda", as ``resolve_device`` answers.
    Raises ModelError for a file that does not load, more than one input, or a
    device that does not come up.
    """

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self.path = path
        self.device = device
        self.threads = threads
        self._lock = threading.Lock()
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        inputs = self.session(wide=True).get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path}: expected one input, got {len(inputs)}")
        self.input_name: str = inputs[0].name
        self.input_shape: list[int | str | None] = inputs[0].shape
        self.output_names = [o.name for o in self.session(wide=True).get_outputs()]
        if len(self.input_shape) != 4:
            raise ModelError(f"{path}: expected an NCHW input, got shape {self.input_shape}")

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the graph demands, or None where any goes."""
        first = self.input_shape[0]
        return first if isinstance(first, int) else None

    @property
    def fixed_size_hw(self) -> tuple[int, int] | None:
        """Height and width that the graph demands, or None where any go."""
        height, width = self.input_shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        return None

    def session(self, *, wide: bool) -> onnxruntime.InferenceSession:
        """The session for one run at a time (wide) or for many side by side."""
        threads = self.threads if wide or self.device == "cuda" else 1
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = _make_session(self.path, self.device, threads)
            return self._sessions[threads]

    def run(self, batch: NDArray[np.float32], *, wide: bool) -> list[NDArray[np.float32]]:
        """The outputs for ``batch`` (N, C, H, W) float32, in the graph's order."""
        try:
            outputs: list[NDArray[np.float32]] = self.session(wide=wide).run(
                None, {self.input_name: batch}
            )
        except Exception as exc:
            raise ModelError(
                f"{self.path}: failed on a batch of shape {batch.shape}: {exc}"
            ) from exc
        return outputs


class Blobs(threading.local):
    """Network inputs made in memory that each thread keeps and uses again.

    A fresh array of a few megabytes is fresh pages from the system every time, which takes
    longer than filling it. What ``fill`` returns holds until the thread's next call.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.float32)

    def fill(
        self,
        images: NDArray[np.uint8],
        *,
        bgr: bool = False,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        scale: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB to (N, 3, H, W) float32: ``(pixel - mean) * scale``.

        mean, scale: per channel of the result, whose order is BGR with ``bgr``, else RGB.
        """
        count, height, width, _ = images.shape
        if self._memory.size < images.size:
            self._memory = np.empty(images.size, dtype=np.float32)
        blob = self._memory[: images.size].reshape(count, 3, height, width)
        for channel in range(3):
            plane = blob[:, channel]
            source = images[..., 2 - channel if bgr else channel]
            np.subtract(source, np.float32(mean[channel]), out=plane)
            if scale[channel] != 1:
                np.multiply(plane, np.float32(scale[channel]), out=plane)
        return blob


_SHARES_PER_THREAD = 4


class Workers:
    """A small thread pool that runs one item inline and many side by side."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``[function(item) for item in items]``, in order; the first error is raised.

        Items are handed over in a few shares a thread: enough that none waits long for
        another, few enough that handing over costs little beside a small item.
        """
        if len(items) < 2 or self.threads < 2:
            return [function(item) for item in items]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="facerec")
        size = max(1, len(items) // (self.threads * _SHARES_PER_THREAD))
        shares = [items[i : i + size] for i in range(0, len(items), size)]
        done = self._pool.map(lambda share: [function(item) for item in share], shares)
        return [result for share in done for result in share]


def _make_session(path: Path, device: str, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Photos come in many shapes: a memory plan kept for each would only grow.
    options.enable_mem_pattern = False
    # A pool that goes on spinning after its run takes the cores from the next stage.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as exc:
        if not path.is_file():
            raise ModelError(f"{path}: no such model file") from exc
        raise ModelError(f"{path}: not a model that onnxruntime can load: {exc}") from exc
    active = session.get_providers()[0]
    if device == "cuda" and active != "CUDAExecutionProvider":
        raise ModelError(
            f"{path}: CUDA was asked for, but onnxruntime fell back to {active}. A library "
            "of CUDA or cuDNN is missing or of another version; 'facerec doctor' names it."
        )
    return session


def _cuda_driver_answers() -> bool:
    """Whether the CUDA driver reports at least one device."""
    import ctypes

    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver: Any = ctypes.CDLL(name)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )
