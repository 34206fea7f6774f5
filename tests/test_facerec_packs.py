"""Model packs: manifests, finding them, and fetching them from a real local server."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import ModelError
from facerec.packs import (
    ArchiveSpec,
    DetectorSpec,
    EmbedderSpec,
    Pack,
    PackManifest,
    PullProgress,
    download,
    find_pack,
    known_packs,
    list_packs,
    pull_pack,
)

HAND_WRITTEN = """
name = "mine"
licence = "ours"
source = "trained here"

[detector]
kind = "scrfd"
file = "detector.onnx"

[embedder]
file = "embedder.onnx"
template = "arcface-112"
input_size = 112
mean = 127.5
scale = 0.00784313725490196
dim = 128
"""


def write_pack(folder: Path, text: str = HAND_WRITTEN) -> Path:
    """A folder with that pack.toml and two files that stand for models."""
    folder.mkdir(parents=True)
    (folder / "pack.toml").write_text(text, encoding="utf-8")
    (folder / "detector.onnx").write_bytes(b"detector")
    (folder / "embedder.onnx").write_bytes(b"embedder")
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- manifests ---------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", known_packs().values(), ids=lambda m: m.name)
def test_toml_reads_back_to_an_equal_manifest(manifest: PackManifest) -> None:
    assert PackManifest.parse(manifest.to_toml(), "written") == manifest


def test_one_number_stands_for_three_channels() -> None:
    embedder = PackManifest.parse(HAND_WRITTEN, "here").embedder
    assert embedder.mean == (127.5, 127.5, 127.5)
    assert embedder.colour == "RGB"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('licence = "ours"', "", "licence: Field required"),
        ('licence = "ours"', 'licence = "ours"\nlicense = "ours"', "license: Extra inputs"),
        ("dim = 128", "dim = 128\ndims = 128", "embedder.dims: Extra inputs"),
        ('kind = "scrfd"', 'kind = "haar"', "detector.kind"),
        ('name = "mine"', 'name = "a/b"', "name: "),
        ("dim = 128", "dim = 128\nsha256 = 'abc'", "embedder.sha256"),
        ("dim = 128", "dim = 128\nurl = 'file:///etc/passwd'", "embedder.url"),
        ("dim = 128", "dim = ", "not valid TOML"),
    ],
)
def test_a_wrong_manifest_names_the_file_and_the_key(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    folder = write_pack(tmp_path / "mine", HAND_WRITTEN.replace(old, new))
    with pytest.raises(ModelError) as caught:
        Pack.load(folder)
    assert said in str(caught.value)
    assert str(folder / "pack.toml") in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../embedder.onnx",
        "/etc/passwd",
        "a/../../embedder.onnx",
        "..",
        ".",
        "",
        "..\\\\embedder.onnx",
        "C:\\\\embedder.onnx",
        "C:embedder.onnx",
        "embedder\\u0000.onnx",
    ],
)
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    text = HAND_WRITTEN.replace('"embedder.onnx"', f'"{name}"')
    with pytest.raises(ModelError, match=r"embedder\.file: .* inside the pack's folder"):
        Pack.load(write_pack(tmp_path / "mine", text))


def test_a_file_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    text = HAND_WRITTEN.replace('"embedder.onnx"', '"models/embedder.onnx"')
    folder = write_pack(tmp_path / "mine", text)
    (folder / "models").mkdir()
    (folder / "embedder.onnx").rename(folder / "models" / "embedder.onnx")
    assert Pack.load(folder).embedder_path.read_bytes() == b"embedder"


def test_a_folder_without_manifest_is_not_a_pack(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model pack: cannot read pack\.toml"):
        Pack.load(tmp_path)


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "pack.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not UTF-8"):
        Pack.load(tmp_path)


def test_a_missing_model_file_says_which(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "mine")
    (folder / "detector.onnx").unlink()
    with pytest.raises(ModelError, match=r"detector\.onnx is missing"):
        Pack.load(folder).verify()


def test_a_replaced_model_file_is_noticed(tmp_path: Path) -> None:
    stated = f'dim = 128\nsha256 = "{sha256(b"embedder")}"'
    folder = write_pack(tmp_path / "mine", HAND_WRITTEN.replace("dim = 128", stated))
    Pack.load(folder).verify()
    (folder / "embedder.onnx").write_bytes(b"Embedder")
    with pytest.raises(ModelError) as caught:
        Pack.load(folder).verify()
    assert sha256(b"Embedder") in str(caught.value)
    assert sha256(b"embedder") in str(caught.value)


def test_the_contract_hashes_the_embedder_where_the_manifest_does_not(tmp_path: Path) -> None:
    stated = f'dim = 128\nsha256 = "{sha256(b"embedder")}"'
    without = Pack.load(write_pack(tmp_path / "a"))
    explicit = Pack.load(write_pack(tmp_path / "b", HAND_WRITTEN.replace("dim = 128", stated)))
    assert without.contract == explicit.contract
    other = write_pack(tmp_path / "c")
    (other / "embedder.onnx").write_bytes(b"another")
    assert Pack.load(other).contract.contract_id != without.contract.contract_id


# --- finding -----------------------------------------------------------------------------


def test_the_bundled_pack_is_whole() -> None:
    pack = find_pack("bundled")
    pack.verify()
    assert pack.manifest.needs_licence_acceptance is False
    assert pack.contract.dim == 128


def test_search_folder_then_cache_then_bundled(tmp_path: Path) -> None:
    search, cache = tmp_path / "search", tmp_path / "cache"
    text = HAND_WRITTEN.replace('"mine"', '"bundled"')
    nothing_yet = find_pack("bundled", search=search, cache=cache)
    assert nothing_yet.manifest.embedder.template == "dlib-150"
    in_cache = write_pack(cache / "packs" / "bundled", text)
    assert find_pack("bundled", search=search, cache=cache).folder == in_cache
    in_search = write_pack(search / "bundled", text)
    assert find_pack("bundled", search=search, cache=cache).folder == in_search
    (listed,) = [i for i in list_packs(search=search, cache=cache) if i.name == "bundled"]
    assert listed.folder == in_search


def test_a_pack_is_found_by_path_and_by_the_name_in_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pack(tmp_path / "packs" / "2026-11-export")
    assert find_pack(str(folder)).folder == folder
    assert find_pack("mine", cache=tmp_path).folder == folder
    assert find_pack("2026-11-export", cache=tmp_path).folder == folder
    monkeypatch.chdir(tmp_path / "packs")
    assert find_pack("./2026-11-export").name == "mine"
    assert find_pack("2026-11-export", cache=tmp_path / "none").name == "mine"


def test_a_path_without_a_pack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model pack"):
        find_pack(str(tmp_path / "nowhere"))


def test_an_unknown_name_lists_known_ones_and_a_close_one(tmp_path: Path) -> None:
    for fetch in (lambda: find_pack("bufalo_l", cache=tmp_path), lambda: pull_pack("bufalo_l")):
        with pytest.raises(ModelError) as caught:
            fetch()
        message = str(caught.value)
        assert "Did you mean 'buffalo_l'?" in message
        assert all(name in message for name in known_packs())


def test_a_known_pack_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'facerec packs pull opencv'\."):
        find_pack("opencv", cache=tmp_path)
    with pytest.raises(ModelError, match=r"non-commercial .* pull antelopev2 --accept-license"):
        find_pack("antelopev2", cache=tmp_path)


def test_the_list_has_every_known_pack_and_what_is_installed(tmp_path: Path) -> None:
    write_pack(tmp_path / "packs" / "mine")
    packs = {info.name: info for info in list_packs(cache=tmp_path)}
    assert next(iter(packs)) == "bundled"
    assert set(packs) == {"bundled", "mine", *known_packs()}
    assert {name for name, info in packs.items() if info.installed} == {"bundled", "mine"}
    assert packs["bundled"].size_bytes == sum(
        path.stat().st_size
        for path in (find_pack("bundled").detector_path, find_pack("bundled").embedder_path)
    )
    assert packs["mine"].size_bytes == len(b"detectorembedder")
    assert packs["buffalo_l"].needs_licence_acceptance
    assert packs["buffalo_l"].download_bytes > (packs["buffalo_l"].size_bytes or 0) > 0
    assert packs["opencv"].folder is None


def test_a_broken_pack_is_listed_with_its_problem_and_hides_no_other(tmp_path: Path) -> None:
    write_pack(tmp_path / "packs" / "a-broken", "name =")
    incomplete = write_pack(tmp_path / "packs" / "b", HAND_WRITTEN.replace("mine", "b"))
    (incomplete / "embedder.onnx").unlink()
    good = write_pack(tmp_path / "packs" / "c")
    packs = {info.name: info for info in list_packs(cache=tmp_path)}
    assert "not valid TOML" in str(packs["a-broken"].problem)
    assert "embedder.onnx is missing" in str(packs["b"].problem)
    assert not packs["a-broken"].installed
    assert not packs["b"].installed
    assert find_pack("mine", cache=tmp_path).folder == good


def test_known_packs_state_all_that_a_verified_download_needs() -> None:
    names = {"opencv", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "antelopev2"}
    assert set(known_packs()) == names
    for name, manifest in known_packs().items():
        assert all(spec.sha256 and spec.size_bytes for spec in manifest.files)
        assert manifest.archive or all(spec.url for spec in manifest.files)
        urls = [manifest.archive.url] if manifest.archive else [s.url for s in manifest.files]
        assert all(str(url).startswith("https://") for url in urls)
        assert manifest.needs_licence_acceptance == (name != "opencv")


def test_importing_packs_loads_no_network_or_model_code() -> None:
    code = "import sys, facerec.packs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"urllib.request", "http.client", "onnx", "onnxruntime", "insightface", "cv2"}
    assert "facerec.packs.download" in loaded
    assert not loaded & heavy


def test_a_pack_written_by_hand_works(
    shared_dir: Path, tmp_path: Path, group_photo: np.ndarray
) -> None:
    """A pack.toml and two files are a pack: nothing is registered anywhere."""
    from facerec.pipeline import Pipeline

    sources = ("scrfd_2.5g_bnkps.onnx", "mobilefacenet_arcface_128.onnx")
    folder = write_pack(tmp_path / "mine")
    for source, target in zip(sources, ("detector.onnx", "embedder.onnx"), strict=True):
        if not (shared_dir / "models" / source).is_file():
            pytest.skip(f"needs ../shared/models/{source}")
        shutil.copyfile(shared_dir / "models" / source, folder / target)
    (faces,) = Pipeline.load(find_pack(str(folder)), device="cpu", threads=2).extract([group_photo])
    assert len(faces) == 6
    assert {len(face.embedding) for face in faces} == {128}


# --- fetching ----------------------------------------------------------------------------


class Server:
    """A file server on 127.0.0.1 that can be told to misbehave.

    files: path -> content. break_after: bytes of a body after which a connection is cut,
    one entry per connection, none when used up. ignore_range: answer 200 to a Range.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.ignore_range = False
        self.requests: list[tuple[str, str | None]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        content = self.files.get(request.path)
        request.close_connection = True
        if content is None:
            request.send_error(404)
            return
        start = 0 if self.ignore_range or not asked else int(asked[6:].rstrip("-"))
        if start and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            last = len(content) - 1
            request.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        limit = self.break_after.pop(0) if self.break_after else len(content)
        request.wfile.write(content[start : start + limit])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pack of the developer's own insightface is found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


RANDOM = np.random.default_rng(3)
DETECTOR = RANDOM.bytes(700_000)
EMBEDDER = RANDOM.bytes(900_001)


def fetchable(server: Server, **changes: object) -> PackManifest:
    """A manifest of two files that ``server`` serves."""
    server.files |= {"/d": DETECTOR, "/e": EMBEDDER}
    detector = DetectorSpec(
        kind="yunet",
        file="det.onnx",
        url=f"{server.url}/d",
        sha256=sha256(DETECTOR),
        size_bytes=len(DETECTOR),
    )
    embedder = EmbedderSpec(
        file="emb.onnx",
        url=f"{server.url}/e",
        sha256=sha256(EMBEDDER),
        size_bytes=len(EMBEDDER),
        template="arcface-112",
        input_size=112,
        mean=(0, 0, 0),
        scale=(1, 1, 1),
        dim=128,
    )
    manifest = PackManifest(
        name="testpack", licence="test licence", source="here", detector=detector, embedder=embedder
    )
    return manifest.model_copy(update=changes)


def archived(server: Server, entries: dict[str, bytes]) -> PackManifest:
    """A manifest whose two files come in one zip with ``entries``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    content = buffer.getvalue()
    manifest = fetchable(server)
    server.files = {"/pack.zip": content}
    spec = ArchiveSpec(
        url=f"{server.url}/pack.zip", sha256=sha256(content), size_bytes=len(content)
    )
    return manifest.model_copy(
        update={
            "archive": spec,
            "detector": manifest.detector.model_copy(update={"url": None}),
            "embedder": manifest.embedder.model_copy(update={"url": None}),
        }
    )


def assert_installed(folder: Path) -> None:
    assert (folder / "det.onnx").read_bytes() == DETECTOR
    assert (folder / "emb.onnx").read_bytes() == EMBEDDER
    assert {path.name for path in folder.iterdir()} == {"pack.toml", "det.onnx", "emb.onnx"}
    Pack.load(folder).verify()


def test_a_pack_is_fetched_once(server: Server, tmp_path: Path) -> None:
    manifest = fetchable(server)
    seen: list[PullProgress] = []
    pack = download.install(manifest, tmp_path / "pack", progress=seen.append)
    assert pack.manifest == manifest
    assert_installed(tmp_path / "pack")
    assert server.requests == [("/d", None), ("/e", None)]
    for name, size in (("det.onnx", len(DETECTOR)), ("emb.onnx", len(EMBEDDER))):
        done = [p.done_bytes for p in seen if p.file == name]
        assert done == sorted(done)
        assert (done[0], done[-1], len(done) > 3) == (0, size, True)
        assert {p.total_bytes for p in seen if p.file == name} == {size}
    download.install(manifest, tmp_path / "pack")
    assert len(server.requests) == 2


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 250_000]
    download.install(fetchable(server), tmp_path / "pack")
    assert_installed(tmp_path / "pack")
    assert server.requests == [
        ("/d", None),
        ("/d", "bytes=100000-"),
        ("/d", "bytes=350000-"),
        ("/e", None),
    ]


def test_a_connection_that_keeps_breaking_ends_and_resumes_later(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "pack"
    server.break_after = [50_000, 0, 0, 0, 0, 0]
    with pytest.raises(ModelError, match="broke off after 50000 of 700000 bytes"):
        download.install(fetchable(server), folder)
    assert (folder / "det.onnx.part").stat().st_size == 50_000
    assert not (folder / "pack.toml").exists()
    server.break_after, server.requests = [], []
    download.install(fetchable(server), folder)
    assert server.requests[0] == ("/d", "bytes=50000-")
    assert_installed(folder)


def test_a_server_without_ranges_sends_the_file_again(server: Server, tmp_path: Path) -> None:
    server.break_after, server.ignore_range = [100_000], True
    download.install(fetchable(server), tmp_path / "pack")
    assert_installed(tmp_path / "pack")


@pytest.mark.parametrize("size", [1000, len(DETECTOR), len(DETECTOR) + 1])
def test_a_part_of_something_else_is_fetched_again(
    server: Server, tmp_path: Path, size: int
) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "det.onnx.part").write_bytes(b"x" * size)
    download.install(fetchable(server), tmp_path / "pack")
    assert_installed(tmp_path / "pack")


def test_a_part_longer_than_the_servers_file_is_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    manifest = fetchable(server)
    unsized = manifest.detector.model_copy(update={"size_bytes": None})
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "det.onnx.part").write_bytes(b"x" * (len(DETECTOR) + 5))
    download.install(manifest.model_copy(update={"detector": unsized}), tmp_path / "pack")
    assert_installed(tmp_path / "pack")


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", DETECTOR[:-1] + b"!", DETECTOR * 3])
def test_wrong_content_is_never_installed(server: Server, tmp_path: Path, content: bytes) -> None:
    manifest = fetchable(server)
    server.files["/d"] = content
    seen: list[PullProgress] = []
    with pytest.raises(ModelError) as caught:
        download.install(manifest, tmp_path / "pack", progress=seen.append)
    assert max(p.done_bytes for p in seen) <= len(DETECTOR)  # an endless body is cut off
    assert sha256(DETECTOR) in str(caught.value)
    assert f"{server.url}/d" in str(caught.value)
    assert list((tmp_path / "pack").iterdir()) == []
    assert len(server.requests) == 1


def test_an_interrupted_pull_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    def interrupt(progress: PullProgress) -> None:
        if progress.file == "emb.onnx" and progress.done_bytes > 500_000:
            raise KeyboardInterrupt

    manifest, folder = fetchable(server), tmp_path / "pack"
    with pytest.raises(KeyboardInterrupt):
        download.install(manifest, folder, progress=interrupt)
    kept = (folder / "emb.onnx.part").stat().st_size
    assert 500_000 < kept < len(EMBEDDER)
    server.requests = []
    download.install(manifest, folder)
    assert server.requests == [("/e", f"bytes={kept}-")]
    assert_installed(folder)


def test_without_a_network_every_file_and_the_folder_are_named(
    server: Server, tmp_path: Path
) -> None:
    manifest = fetchable(server)
    server.close()
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        download.install(manifest, tmp_path / "pack")
    assert time.monotonic() - start < 5
    message = str(caught.value)
    for spec in manifest.files:
        assert spec.file in message
        assert str(spec.sha256) in message
        assert str(spec.url) in message
    assert str(tmp_path / "pack") in message


def test_a_server_that_does_not_have_the_file(server: Server, tmp_path: Path) -> None:
    manifest = fetchable(server)
    del server.files["/e"]
    with pytest.raises(ModelError) as caught:
        download.install(manifest, tmp_path / "pack")
    assert "the server answered 404" in str(caught.value)
    assert "emb.onnx" in str(caught.value)
    assert sha256(DETECTOR) not in str(caught.value)  # that one is here already


def test_files_put_there_by_hand_are_taken_after_a_check(server: Server, tmp_path: Path) -> None:
    manifest, folder = fetchable(server), tmp_path / "pack"
    folder.mkdir()
    (folder / "det.onnx").write_bytes(DETECTOR)
    (folder / "emb.onnx").write_bytes(b"something else")
    server.files = {}
    with pytest.raises(ModelError, match="the one there has another"):
        download.install(manifest, folder)
    (folder / "emb.onnx").write_bytes(EMBEDDER)
    server.requests = []
    download.install(manifest, folder)
    assert_installed(folder)
    assert server.requests == []


def test_an_archive_is_unpacked_by_file_name_and_removed(server: Server, tmp_path: Path) -> None:
    entries = {
        "pack/": b"",
        "pack/det.onnx": DETECTOR,
        "pack/emb.onnx": EMBEDDER,
        "pack/genderage.onnx": b"not used",
        "../../outside.txt": b"must not be written",
    }
    download.install(archived(server, entries), tmp_path / "deep" / "er" / "pack")
    assert_installed(tmp_path / "deep" / "er" / "pack")
    assert not [*tmp_path.rglob("outside.txt")]


def test_an_entry_that_climbs_out_is_written_inside(server: Server, tmp_path: Path) -> None:
    entries = {"../../det.onnx": DETECTOR, "/emb.onnx": EMBEDDER}
    download.install(archived(server, entries), tmp_path / "deep" / "er" / "pack")
    assert_installed(tmp_path / "deep" / "er" / "pack")
    assert [p for p in tmp_path.rglob("*.onnx") if p.parent.name != "pack"] == []


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"det.onnx": DETECTOR}, "holds 0 files named emb.onnx"),
        ({"a/det.onnx": DETECTOR, "b/det.onnx": DETECTOR}, "holds 2 files named det.onnx"),
        ({"det.onnx": b"other", "emb.onnx": EMBEDDER}, "SHA-256 in the archive"),
    ],
)
def test_an_archive_with_other_contents_installs_no_pack(
    server: Server, tmp_path: Path, entries: dict[str, bytes], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        download.install(archived(server, entries), tmp_path / "pack")
    assert not (tmp_path / "pack" / "pack.toml").exists()
    assert not [*(tmp_path / "pack").glob("*.unpacked")]


def test_an_archive_put_there_by_hand(server: Server, tmp_path: Path) -> None:
    manifest = archived(server, {"det.onnx": DETECTOR, "emb.onnx": EMBEDDER})
    folder = tmp_path / "pack"
    folder.mkdir()
    content = server.files.pop("/pack.zip")
    with pytest.raises(ModelError) as caught:
        download.install(manifest, folder)
    message = str(caught.value)
    assert f"testpack.zip ({len(content)} bytes, SHA-256 {sha256(content)})" in message
    assert sha256(EMBEDDER) in message
    (folder / "testpack.zip").write_bytes(content)
    server.requests = []
    download.install(manifest, folder)
    assert_installed(folder)
    assert server.requests == []


def test_what_insightface_has_fetched_is_used(server: Server, tmp_path: Path) -> None:
    manifest = archived(server, {"det.onnx": DETECTOR, "emb.onnx": EMBEDDER})
    theirs = tmp_path / "home" / ".insightface" / "models" / "testpack"
    theirs.mkdir(parents=True)
    (theirs / "det.onnx").write_bytes(DETECTOR)
    (theirs / "emb.onnx").write_bytes(EMBEDDER[:-1])  # cut off: not taken
    download.install(manifest, tmp_path / "a")
    assert_installed(tmp_path / "a")
    assert len(server.requests) == 1
    (theirs / "emb.onnx").write_bytes(EMBEDDER)
    download.install(manifest, tmp_path / "b")
    assert_installed(tmp_path / "b")
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_written_is_a_model_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="FACEREC_CACHE"):
        download.install(fetchable(server), tmp_path / "file" / "pack")


def test_a_changed_manifest_needs_no_new_download(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    download.install(fetchable(server), folder)
    newer = fetchable(server, description="said better")
    assert download.install(newer, folder).manifest.description == "said better"
    assert len(server.requests) == 2


@pytest.fixture
def known_testpack(server: Server, monkeypatch: pytest.MonkeyPatch) -> PackManifest:
    """``testpack``, which asks for a yes to its licence, among the known packs."""
    manifest = fetchable(server, needs_licence_acceptance=True)
    known: Callable[[], dict[str, PackManifest]] = lambda: {"testpack": manifest}  # noqa: E731
    monkeypatch.setattr(download, "known_packs", known)
    return manifest


def test_a_licence_is_accepted_once(
    known_testpack: PackManifest, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"test licence.*--accept-license"):
        pull_pack("testpack", cache=tmp_path)
    assert server.requests == []
    assert not (tmp_path / "packs").exists()
    pack = pull_pack("testpack", accept_licence=True, cache=tmp_path)
    assert pack.folder == tmp_path / "packs" / "testpack"
    assert find_pack("testpack", cache=tmp_path).manifest == known_testpack
    assert pull_pack("testpack", cache=tmp_path).folder == pack.folder
    (pack.folder / "det.onnx").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="--accept-license"):
        pull_pack("testpack", cache=tmp_path)
    pull_pack("testpack", accept_licence=True, cache=tmp_path)
    assert_installed(pack.folder)


def test_the_bundled_pack_needs_no_pull(tmp_path: Path) -> None:
    assert pull_pack("bundled", cache=tmp_path).folder == find_pack("bundled").folder
    assert not (tmp_path / "packs").exists()


def test_non_commercial_packs_are_refused_without_a_yes(tmp_path: Path) -> None:
    for name, manifest in known_packs().items():
        if manifest.needs_licence_acceptance:
            with pytest.raises(ModelError, match=r"non-commercial.*--accept-license"):
                pull_pack(name, cache=tmp_path)
