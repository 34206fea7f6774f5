"""Indexing on a real Ray of this machine: the same gallery as without, whatever dies meanwhile."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from facerec.errors import ConfigError, ModelError
from facerec.packs import find_pack
from gallery import Gallery, ray_cluster
from gallery import ray_crew as gallery_ray_crew
from gallery.crew import Chunk, Crew
from gallery.index_report import IndexReport
from gallery.indexer import Indexer
from gallery.ledger import faces_of
from gallery.naming import Naming
from gallery.photo_work import Looked, LookOptions, PhotoWork
from gallery.ray_cluster import check_address, connected
from gallery.ray_crew import RayCrew, ray_crew
from gallery.ray_work import RayWorker, Shipment, VideoFile, answer_of
from gallery.schema import CropRow, EmbeddingRow, FileRow, IdentityRow, PhotoRow, TemplateRow
from gallery.sources import Sources
from tests.index_samples import BY_FOLDER, NAMES, index, make_collection, open_for, rows
from tests.test_gallery_videos import write_video

ROOT = Path(__file__).resolve().parent.parent
EACH = 18
"""Photos of each person: two people make three chunks."""
WHEN = ("created_at", "revision")
OPTIONS = LookOptions(one_person=True)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'facerec[scale]'"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a Ray with two processors, which this process is connected to."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'facerec[scale]'")
    with connected("local", cpus=2) as ray:
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def photos(tmp_path_factory, people, group_photo_path) -> Path:
    """Two people, photos that the gate refuses, and one that is none."""
    folder = tmp_path_factory.mktemp("ray") / "photos"
    make_collection(folder, {n: people[n] for n in NAMES[:2]}, EACH)
    (folder / "Ada" / "group.jpg").write_bytes(group_photo_path.read_bytes())
    (folder / "Bo" / "torn.jpg").write_bytes(b"torn")
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory, pipeline, photos) -> Iterator[tuple[Gallery, IndexReport]]:
    """What this process's threads make of them."""
    with open_for(tmp_path_factory.mktemp("ray") / "local", pipeline) as gallery:
        yield gallery, index(gallery, pipeline, photos, naming=BY_FOLDER)


@pytest.fixture
def gallery(tmp_path: Path, pipeline) -> Iterator[Gallery]:
    with open_for(tmp_path / "people", pipeline) as opened:
        yield opened


@contextmanager
def crew_at(address: str, options: LookOptions = OPTIONS, workers: int = 2) -> Iterator[RayCrew]:
    pack = find_pack("bundled")
    with ray_crew(address, pack, options, device="cpu", workers=workers, cpus=2) as crew:
        yield crew


def index_with(crew: Crew, gallery: Gallery, *roots: Path, naming: Naming = BY_FOLDER):
    indexer = Indexer(gallery, crew)
    return indexer.run(Sources(roots, naming=naming, known=indexer.ledger()))


def content(gallery: Gallery) -> dict[str, list[tuple]]:
    """Every row of a gallery, ids included, but not when and in which commit it was written."""
    found = {}
    with gallery.reading() as view:
        for table in (IdentityRow, TemplateRow, EmbeddingRow, CropRow, PhotoRow, FileRow):
            columns = [c for c in table.__table__.columns if c.name not in WHEN]
            query = select(*columns).order_by(*table.__table__.primary_key)
            found[table.__tablename__] = [tuple(r) for r in view.connection.execute(query)]
    return found


def said(report: IndexReport) -> dict:
    timing = {"seconds": 0, "photos_per_s": 0, "faces_per_s": 0}
    return report.to_dict() | timing | {"failed": list(report.failed)}


def gone(address: str) -> None:
    """Wait until both processors are free again."""
    import ray

    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)


class Watched:
    """A crew that tells what it is given."""

    def __init__(self, crew: RayCrew, on_chunk=lambda number: None) -> None:
        self.crew = crew
        self.width = crew.width
        self.given: list[Chunk] = []
        self._on_chunk = on_chunk

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        self.given.append(chunk)
        future = self.crew.submit(chunk)
        self._on_chunk(len(self.given))
        return future

    def close(self) -> None:
        self.crew.close()


# The same as without


def test_on_ray_the_gallery_is_the_same_to_the_bit(address, gallery, local, photos) -> None:
    ours, expected = local
    with crew_at(address) as crew:
        assert crew.width == 2
        report = index_with(crew, gallery, photos)
    assert report.counts["enrolled"] == 2 * EACH and len(report.failed) == 1
    assert said(report) == said(expected)
    assert content(gallery) == content(ours)


def test_a_worker_that_is_killed_loses_no_photo_and_does_none_twice(
    address, gallery, local, photos
) -> None:
    import ray

    killed = []

    def kill(number: int) -> None:
        if number == 2:
            deadline = time.monotonic() + 60
            while not (busy := list(crew._busy)) and time.monotonic() < deadline:
                time.sleep(0.01)
            killed.append(busy[0])
            ray.kill(busy[0])

    with crew_at(address) as crew:
        watched = Watched(crew, kill)
        report = index_with(watched, gallery, photos)
        assert killed and killed[0] not in crew.workers
    assert report.counts["enrolled"] == 2 * EACH
    sent = [photo for chunk in watched.given for photo in chunk.photos]
    assert len(sent) == len(set(sent)) == report.photos
    assert content(gallery) == content(local[0])


class Fragile(RayWorker):
    """Ends itself at sight of one photo, as a worker would whose decoder crashes."""

    def look(self, photos: tuple[bytes, ...]) -> bytes:
        if b"torn" in photos:
            os._exit(1)
        return super().look(photos)


def test_a_photo_that_kills_its_workers_is_one_failure(
    address, gallery, people, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(gallery_ray_crew, "RayWorker", Fragile)
    monkeypatch.setattr(gallery_ray_crew, "_TRIES_TOGETHER", 1)
    monkeypatch.setattr(gallery_ray_crew, "_TRIES_ALONE", 1)
    make_collection(tmp_path / "photos", {"Bo": people["Bo"]}, 3)
    (tmp_path / "photos" / "Bo" / "1.torn.jpg").write_bytes(b"torn")
    with crew_at(address, workers=1) as crew:
        report = index_with(crew, gallery, tmp_path / "photos")
    assert report.counts["enrolled"] == 3
    [failure] = report.failed
    assert failure["code"] == "kills_worker" and failure["photo"].endswith("1.torn.jpg")


def test_a_video_is_read_where_it_is_or_sent(tmp_path, pipeline, people) -> None:
    """The worker is an ordinary object, so that a machine without the file can be told here."""
    clip = tmp_path / "clip.mp4"
    write_video(clip, [people["Ada"]] * 6)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    options = LookOptions()
    work, worker = PhotoWork(pipeline, options), RayWorker()
    answer_of(worker.load(Shipment.of(pipeline.pack, options, "cpu")))
    here = VideoFile.at(clip)
    assert here is not None
    assert answer_of(worker.watch(VideoFile(clip, here.size, here.mtime_ns + 1))) is None
    data = clip.read_bytes()
    worker.receive(b"of a sender who did not finish", first=True)
    worker.receive(data[:1000], first=True)
    worker.receive(data[1000:], first=False)
    own = work.watch(clip)
    assert own.faces and own.problem is None
    for looked in answer_of(worker.watch_received(clip)), answer_of(worker.watch(here)):
        assert [face.crop_jpeg for face in looked.faces] == [face.crop_jpeg for face in own.faces]
        assert looked.problem is None
    worker.receive(broken.read_bytes(), first=True)
    assert answer_of(worker.watch_received(broken)).problem == work.watch(broken).problem


def test_videos_go_over_ray_too(address, gallery, people, tmp_path) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "clip.mp4", [people["Ada"]] * 6)
    with crew_at(address, workers=1) as crew:
        report = index_with(crew, gallery, tmp_path / "clips", naming=Naming(person="Ada"))
    assert report.counts["enrolled"] == 1 and "clip.mp4#t=" in rows(gallery)[0][1]


# Interruption


def test_a_run_whose_driver_was_killed_goes_on(address, tmp_path, pipeline, local, photos) -> None:
    code = f"""
import os, signal, sys
from gallery import indexer
indexer._COMMIT_PHOTOS = 16
from gallery.index_report import IndexReport
add = IndexReport.add
def add_and_die(self, committed):
    add(self, committed)
    os.kill(os.getpid(), signal.SIGKILL)
IndexReport.add = add_and_die
from facerec import cli
sys.argv = ["facerec", "index", {str(photos)!r}, "--by-folder", "--ray", {address!r}]
cli.main()
"""
    env = os.environ | {"FACEREC_GALLERY": str(tmp_path / "people"), "FACEREC_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert died.stderr == b"" and died.stdout == b""  # Ray says nothing of its own
    gone(address)
    with open_for(tmp_path / "people", pipeline) as gallery:
        done = len(rows(gallery))
        assert 0 < done < 2 * EACH
        with crew_at(address, workers=1) as crew:
            report = index_with(crew, gallery, photos)
        assert report.counts["unchanged"] >= done
        assert report.counts["enrolled"] == 2 * EACH - done
        assert rows(gallery) == rows(local[0])
        assert_like(gallery, local[0])


def assert_like(one: Gallery, other: Gallery) -> None:
    """The chunks were others, and with them the batches: equal but for float32's rounding."""
    contents = {row[2] for row in rows(other)}
    with one.reading() as view, other.reading() as also:
        ours, theirs = faces_of(view, contents), faces_of(also, contents)
    for sha256 in contents:
        assert float(ours[sha256][0].vector @ theirs[sha256][0].vector) > 0.999999


def test_closing_the_crew_ends_its_workers_and_what_they_do(address, photos) -> None:
    data = (photos / "Ada" / "0.jpg").read_bytes()
    gone(address)  # or there would be one worker, and never two that are busy
    with crew_at(address) as crew:
        futures = [crew.submit(Chunk((data,) * 400)) for _ in range(3)]
        while len(crew._busy) < 2:
            time.sleep(0.05)
        start = time.monotonic()
    assert time.monotonic() - start < 30
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), ModelError)
    gone(address)
    import ray

    assert ray.available_resources()["CPU"] == 2


# What is wrong


def test_what_a_worker_cannot_do_is_a_sentence_that_names_the_machine(
    address, monkeypatch, photos
) -> None:
    of = Shipment.of

    def older(*words) -> Shipment:
        shipment = of(*words)
        object.__setattr__(shipment, "version", "0.0.1")
        return shipment

    monkeypatch.setattr(Shipment, "of", older)
    with crew_at(address, workers=1) as crew, pytest.raises(ModelError) as raised:
        crew.submit(Chunk((b"",))).result(timeout=60)
    assert "0.0.1 here" in str(raised.value) and socket.gethostname() in str(raised.value)


def test_a_damaged_shipment_is_noticed() -> None:
    shipment = Shipment.of(find_pack("bundled"), OPTIONS, "cpu")
    files = dict(shipment.files)
    name = next(name for name in files if name.endswith(".onnx"))
    files[name] = files[name][:-1] + b"?"
    object.__setattr__(shipment, "files", files)
    with pytest.raises(ModelError, match="damaged on its way"):
        shipment.unpack()


@needs_ray
def test_a_cluster_that_does_not_answer_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ModelError, match=rf"127.0.0.1:{port} does not answer.*says nothing"):
            ray_cluster._knock(f"127.0.0.1:{port}")
    with pytest.raises(ModelError, match=rf"ray://127.0.0.1:{port} does not answer.*--ray local"):
        ray_cluster._knock(f"ray://127.0.0.1:{port}")


@needs_ray
def test_the_command_says_so_and_leaves_the_gallery_alone(tmp_path, photos) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    words = ["index", str(photos), "--by-folder", "--ray", f"127.0.0.1:{port}"]
    ran = subprocess.run(
        [sys.executable, "-m", "facerec.cli", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 4 and f"127.0.0.1:{port} does not answer" in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "address", ["", "head", "head:", "http://head:6379", "head:none", "ray://head", "1:99999"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a Ray cluster"):
        check_address(address)


def test_without_ray_a_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'facerec\[scale\]'"), connected("local", 1):
        pass
