"""What is sent to a Ray worker and what runs there: the models and the look at photos.

Imports the core and this package, never ray: a worker is an ordinary object.
"""

from __future__ import annotations

import hashlib
import pickle
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from facerec import __version__
from facerec.errors import FacerecError, ModelError
from facerec.packs.manifest import MANIFEST_NAME, Pack
from facerec.pipeline import Pipeline
from gallery.crew import Chunk, look_at
from gallery.photo_work import Looked, LookOptions, PhotoWork


@dataclass(frozen=True, eq=False)
class Shipment:
    """All that a worker needs. files: path within the pack -> bytes; sha256: of each."""

    files: Mapping[str, bytes]
    sha256: Mapping[str, str]
    contract_id: str
    options: LookOptions
    device: str
    version: str = __version__

    @staticmethod
    def of(pack: Pack, options: LookOptions, device: str) -> Shipment:
        """Raises ModelError for a pack whose files are missing or damaged."""
        pack.verify()
        names = [MANIFEST_NAME, *(spec.file for spec in pack.manifest.files)]
        try:
            files = {name: (pack.folder / name).read_bytes() for name in names}
        except OSError as exc:
            raise ModelError(f"{pack.folder}: cannot be read: {exc.strerror or exc}") from exc
        sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return Shipment(files, sha256, pack.contract.contract_id, options, device)

    def unpack(self) -> PhotoWork:
        """The models at work here, on one thread; no file stays. Raises ModelError."""
        if self.version != __version__:
            raise ModelError(
                f"facerec {__version__} is installed there, {self.version} here; install one "
                "version everywhere"
            )
        with tempfile.TemporaryDirectory(prefix="facerec-pack-") as folder:
            for name, data in self.files.items():
                if hashlib.sha256(data).hexdigest() != self.sha256[name]:
                    raise ModelError(f"{name} was damaged on its way")
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            pipeline = Pipeline.load(Pack.load(Path(folder)), device=self.device, threads=1)
        if pipeline.contract.contract_id != self.contract_id:
            raise ModelError("the pack's embeddings mean something else there than here")
        return PhotoWork(pipeline, self.options)


@dataclass(frozen=True)
class VideoFile:
    """A video, and what tells it from another file at the same path of another machine."""

    path: Path
    size: int
    mtime_ns: int

    @staticmethod
    def at(path: Path) -> VideoFile | None:
        """The file that is there, if there is one."""
        try:
            found = path.stat()
        except OSError:
            return None
        return VideoFile(path, found.st_size, found.st_mtime_ns)


class RayWorker:
    """Looks at photos with the models of a shipment.

    Methods answer with pickled bytes, for :func:`answer_of`: arrays that Ray itself unpickles
    lie in memory that goes when the connection does.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._work: PhotoWork | None = None
        self._parts: tempfile.TemporaryDirectory[str] | None = None

    def load(self, shipment: Shipment) -> bytes:
        """Make the models ready; nothing else works before."""
        return _answer(lambda: self._load(shipment))

    def look(self, photos: tuple[bytes, ...]) -> bytes:
        """See :meth:`gallery.photo_work.PhotoWork.look`."""
        return _answer(lambda: look_at(self._ready(), Chunk(photos)))

    def watch(self, video: VideoFile) -> bytes:
        """See :meth:`gallery.photo_work.PhotoWork.watch`; None if that file is not here."""
        here = VideoFile.at(video.path) == video
        return _answer(lambda: self._ready().watch(video.path) if here else None)

    def receive(self, block: bytes, *, first: bool) -> None:
        """The next part of a video's file."""
        if first or self._parts is None:
            self._parts = tempfile.TemporaryDirectory(prefix="facerec-video-")
        with Path(self._parts.name, "video").open("ab") as stream:
            stream.write(block)

    def watch_received(self, path: Path) -> bytes:
        """The video whose parts came, which is called ``path`` where it comes from."""
        return _answer(lambda: self._watch_received(path))

    def _load(self, shipment: Shipment) -> None:
        self._work = shipment.unpack()

    def _ready(self) -> PhotoWork:
        assert self._work is not None, "load comes first"
        return self._work

    def _watch_received(self, path: Path) -> Looked:
        assert self._parts is not None, "the parts come first"
        parts, self._parts = self._parts, None
        with parts as folder:
            copy = Path(folder, "video").rename(Path(folder, "video" + path.suffix))
            looked = self._ready().watch(copy)
        if looked.problem is None:
            return looked
        code, sentence = looked.problem
        return replace(looked, problem=(code, sentence.replace(str(copy), str(path))))


def _answer(question: Callable[[], object]) -> bytes:
    try:
        return pickle.dumps((True, question()), protocol=5)
    except FacerecError as exc:
        return pickle.dumps((False, f"Ray worker on {socket.gethostname()}: {exc}"), protocol=5)


def answer_of(data: bytes) -> object:
    """What a method found. Raises ModelError for what it raised there."""
    succeeded, value = pickle.loads(data)
    if not succeeded:
        raise ModelError(value)
    return value
