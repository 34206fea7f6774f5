"""A crew of Ray workers, each of which holds the models, wherever Ray places it.

This process reads the photos, sends their bytes, and alone commits what is found, so that
resuming is what it is without Ray. Imports the core and this package; ray comes from
:mod:`gallery.ray_cluster`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from facerec.errors import ModelError
from facerec.packs import Pack
from gallery.crew import Chunk
from gallery.photo_work import Looked, LookOptions
from gallery.ray_cluster import connected, first_line
from gallery.ray_work import RayWorker, Shipment, VideoFile, answer_of

START_S = 180.0
"""After so long without a single worker the cluster is given up."""
_DEATHS_AT_START = 4
"""So many, one after the other, are no accident."""
_TRIES_TOGETHER, _TRIES_ALONE = 2, 2
"""Of photos whose worker died. Together first: then what is found is the same to the bit."""
_GONE = "the Ray cluster does not answer any more"
_POLL_S = 0.5
_BLOCK = 16 << 20


@contextmanager
def ray_crew(
    address: str, pack: Pack, options: LookOptions, *, device: str, workers: int | None, cpus: int
) -> Iterator[RayCrew]:
    """A crew on the cluster at ``address``, or on one that is started here ("local").

    device: "cuda" takes a GPU for each worker, all else the CPU. workers: at most so many; None
    for as many as the cluster has free processors, or GPUs. cpus: of a local Ray. Call it from the
    main thread. Raises ConfigError, and ModelError where the cluster does not answer.
    """
    gpu = device == "cuda"
    shipment = Shipment.of(pack, options, "cuda" if gpu else "cpu")
    with connected(address, cpus) as ray:
        free = int(ray.available_resources().get("GPU" if gpu else "CPU", 0))
        if gpu and not int(ray.cluster_resources().get("GPU", 0)):
            raise ModelError(f"device cuda: the Ray cluster at {address} has no GPU")
        crew = RayCrew(ray, shipment, max(1, min(free, workers or free)), gpus=int(gpu))
        try:
            yield crew
        finally:
            crew.close()


class _Lost(Exception):
    """The worker died, or cannot be reached any more."""


class RayCrew:
    """See :class:`gallery.crew.Crew`; ``ray``: the module, connected.

    Each chunk is with one worker, each worker has one chunk. The photos of a worker that dies
    are looked at again; a photo that ends every worker that looks at it has the problem
    ``kills_worker``. Dead workers are replaced.
    """

    def __init__(self, ray: Any, shipment: Shipment, width: int, *, gpus: int = 0) -> None:
        self._ray = ray
        self._shipment = ray.put(shipment)
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(RayWorker)
        self._width = width
        self._change = threading.Condition()  # guards all below
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # what load() will answer -> worker
        self._busy: set[Any] = set()
        self._deaths_at_start = 0
        self._alive_s = time.monotonic()
        self._problem: str | None = None
        self._closed = False
        for _ in range(width):
            self._start_one()
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="facerec-ray")
        self._starter = threading.Thread(target=self._watch_starts, name="facerec-ray-start")
        self._starter.start()

    @property
    def width(self) -> int:
        """Workers."""
        return self._width

    @property
    def workers(self) -> list[Any]:
        """Handles of those that are ready, idle or not."""
        with self._change:
            return [*self._idle, *self._busy]

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        """See :class:`gallery.crew.Crew`."""
        return self._pool.submit(self._do, chunk)

    def close(self) -> None:
        """End the workers, with what is under way."""
        with self._change:
            self._closed = True
            workers = [*self._idle, *self._busy, *self._starting.values()]
            self._change.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            self._end(worker)
        self._starter.join()
        self._pool.shutdown(wait=True)

    # One chunk, in a thread of the pool

    def _do(self, chunk: Chunk) -> list[Looked]:
        for _ in range(_TRIES_TOGETHER):
            with suppress(_Lost):
                return self._ask(chunk)
        if chunk.video is not None:
            return [_deadly("video")]
        return [self._do_alone(photo) for photo in chunk.photos]

    def _do_alone(self, photo: bytes) -> Looked:
        for _ in range(_TRIES_ALONE):
            with suppress(_Lost):
                return self._ask(Chunk((photo,)))[0]
        return _deadly("photo")

    def _ask(self, chunk: Chunk) -> list[Looked]:
        """Raises _Lost, and ModelError."""
        worker = self._take()
        try:
            if chunk.video is not None:
                looked = [self._watch(worker, chunk.video)]
            else:
                looked = cast("list[Looked]", self._answer(worker.look.remote(chunk.photos)))
        except _Lost:
            self._replace(worker)
            raise
        except ConnectionError as exc:  # of Ray's client, after it has tried for half a minute
            self._give_up(f"{_GONE}: {first_line(exc)}")
            raise ModelError(self._problem) from exc
        except BaseException:
            self._give_back(worker)
            raise
        self._give_back(worker)
        return looked

    def _watch(self, worker: Any, path: Path) -> Looked:
        """By its path where the worker has the same file there; else it is sent the file."""
        video = VideoFile.at(path)
        looked = None
        if video is not None:
            looked = self._answer(worker.watch.remote(video))
        if looked is None:
            first = True
            try:
                with path.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        self._get(worker.receive.remote(block, first=first))
                        first = False
            except OSError as exc:
                text = f"{path}: cannot be read: {exc.strerror or exc}"
                return Looked(problem=("unreadable", text))
            if first:
                self._get(worker.receive.remote(b"", first=True))
            looked = self._answer(worker.watch_received.remote(path))
        return cast(Looked, looked)

    def _answer(self, reference: Any) -> object:
        return answer_of(self._get(reference))

    def _get(self, reference: Any) -> Any:
        """Raises _Lost where the worker died, ModelError for what is wrong with all of them."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(reference)
        except RayTaskError as exc:
            raise ModelError(f"a Ray worker failed: {first_line(exc.cause)}") from exc
        except RayError as exc:
            raise _Lost(first_line(exc)) from exc

    # Workers

    def _take(self) -> Any:
        """An idle worker; waits for one. Raises ModelError where none will come."""
        with self._change:
            self._change.wait_for(lambda: self._idle or self._problem or self._closed)
            if self._problem or self._closed:
                raise ModelError(self._problem or "the work was stopped")
            worker = self._idle.pop()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: Any) -> None:
        with self._change:
            self._busy.discard(worker)
            self._idle.append(worker)
            self._alive_s = time.monotonic()
            self._change.notify_all()

    def _replace(self, worker: Any) -> None:
        self._end(worker)
        with self._change:
            self._busy.discard(worker)
            self._alive_s = time.monotonic()
            if not self._closed:
                self._start_one()
            self._change.notify_all()

    def _start_one(self) -> None:
        worker = self._actor.remote()
        self._starting[worker.load.remote(self._shipment)] = worker

    def _end(self, worker: Any) -> None:
        with suppress(Exception):  # it may be gone, and the cluster with it
            self._ray.kill(worker)

    def _watch_starts(self) -> None:
        """Put workers to work as they become ready, until the crew is closed."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._starting or self._problem or self._closed)
                if self._problem or self._closed:
                    return
                waiting = list(self._starting)
            try:
                ready, _ = self._ray.wait(waiting, timeout=_POLL_S)
            except Exception as exc:
                self._give_up(f"{_GONE}: {first_line(exc)}")
                return
            for reference in ready:
                self._started(reference)
            with self._change:
                alive = self._idle or self._busy
                if not alive and time.monotonic() - self._alive_s > START_S:
                    self._give_up(
                        f"the Ray cluster gave no worker within {START_S:.0f} s: it needs one free "
                        "processor (with --device cuda one GPU); 'ray status' shows what is taken"
                    )

    def _started(self, reference: Any) -> None:
        problem = None
        try:
            self._answer(reference)
        except ModelError as exc:
            problem = str(exc)
        except _Lost as exc:
            self._deaths_at_start += 1
            if self._deaths_at_start >= _DEATHS_AT_START:
                problem = (
                    f"Ray workers end before they are ready: {exc} Workers need the same facerec "
                    "as this machine: pip install 'facerec[cpu,scale]'"
                )
        else:
            self._deaths_at_start = 0
            with self._change:
                self._alive_s = time.monotonic()
                self._idle.append(self._starting.pop(reference))
                self._change.notify_all()
            return
        with self._change:
            worker = self._starting.pop(reference)
            if problem is not None:
                self._give_up(problem)
            elif not self._closed:
                self._start_one()
        self._end(worker)

    def _give_up(self, problem: str) -> None:
        with self._change:
            self._problem = self._problem or f"{problem.rstrip('.')}. What was indexed stays."
            self._change.notify_all()


def _deadly(what: str) -> Looked:
    return Looked(
        problem=(
            "kills_worker",
            f"Every worker that looked at this {what} ended, as for want of memory does it.",
        )
    )
