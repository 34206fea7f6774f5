"""The web UI below the browser: the service, the guard, and the real server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facerec.config import load_settings
from facerec.errors import ConfigError, GalleryError, IdentityNotFound, ImageError
from facerec.packs import Pack
from facerec.pipeline import Pipeline
from facerec.web import render, serve, server
from facerec.web.guard import Guard, credentials_match, is_loopback, parse_auth
from facerec.web.service import PAGE_SIZE, Service, sentence
from facerec.web.views import Limit, Upload
from gallery import Gallery

httpx = pytest.importorskip("httpx", reason="needs httpx, which comes with the extra ui")

REPOSITORY = Path(__file__).resolve().parent.parent
EVIL = "<img src=x onerror=alert(1)>"
AT_1E_3 = Limit(fmr=1e-3)


@pytest.fixture
def gallery(tmp_path: Path, pipeline: Pipeline) -> Iterator[Gallery]:
    with Gallery.open(
        tmp_path / "people",
        contract=pipeline.contract,
        thresholds=pipeline.thresholds,
        pack_name="bundled",
    ) as opened:
        yield opened


@pytest.fixture
def service(gallery: Gallery, pipeline: Pipeline) -> Service:
    return Service(gallery, pipeline)


@pytest.fixture
def astronaut_upload(astronaut_path: Path) -> Upload:
    return Upload("astronaut.png", str(astronaut_path))


@pytest.fixture
def group_upload(group_photo_path: Path) -> Upload:
    return Upload("t1.jpg", str(group_photo_path))


# The service


def test_enrol_identify_remove(service: Service, astronaut_upload: Upload, group_upload: Upload):
    result = service.enrol("Eileen Collins", service.draft([astronaut_upload]))
    assert [photo.status for photo in result.photos] == ["enrolled"]
    assert (result.person, result.templates) == ("Eileen Collins", 1)

    found = service.identify(astronaut_upload, AT_1E_3)
    [face] = found.faces
    assert face.name == "Eileen Collins"
    assert face.similarity == pytest.approx(1.0, abs=1e-3)
    assert (found.fmr, found.people) == (1e-3, 1)
    assert found.fpir == pytest.approx(1e-3)
    assert face.candidates[0].matches and face.candidates[0].crop is not None

    strangers = service.identify(group_upload, AT_1E_3)
    assert [face.name for face in strangers.faces] == [None] * 6

    [row] = service.people().rows
    removal = service.remove(row.id)
    assert (removal.identity.name, removal.templates) == ("Eileen Collins", 1)
    assert service.people().total == 0
    [nobody] = service.identify(astronaut_upload, AT_1E_3).faces
    assert (nobody.name, nobody.similarity, nobody.candidates) == (None, None, ())


def test_the_chosen_face_of_a_group_is_the_one_that_is_enrolled(
    service: Service, group_upload: Upload
):
    [draft] = service.draft([group_upload])
    assert len(draft.crops) == 6 and draft.choice is None
    for place in (0, 3):
        result = service.enrol(f"Guest {place}", [draft.choose(place)], force=True)
        assert result.photos[0].status == "enrolled"
    names = [face.name for face in service.identify(group_upload, AT_1E_3).faces]
    assert (names[0], names[3]) == ("Guest 0", "Guest 3")  # both are left to right


def test_a_group_without_a_choice_is_refused_with_that_reason_alone(
    service: Service, group_upload: Upload
):
    result = service.enrol("Somebody", service.draft([group_upload]))
    assert result.person is None
    assert [reason.code for reason in result.photos[0].reasons] == ["several_faces"]
    assert not result.poor


def test_every_photo_of_an_enrolment_has_its_own_outcome(
    service: Service, astronaut_upload: Upload, tmp_path: Path
):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    Image.new("RGB", (200, 200), "green").save(tmp_path / "meadow.png")
    uploads = [
        astronaut_upload,
        Upload("broken.jpg", str(tmp_path / "broken.jpg")),
        Upload("meadow.png", str(tmp_path / "meadow.png")),
        Upload("astronaut.png", astronaut_upload.path),
    ]
    drafts = service.draft(uploads)
    assert drafts[1].problem is not None and drafts[1].problem.startswith("Not an image")
    assert drafts[2].problem == "No face was found in this photo."
    result = service.enrol("Eileen", drafts)
    assert {photo.name: photo.status for photo in result.photos} == {
        "astronaut.png": "enrolled",
        "broken.jpg": "failed",
        "meadow.png": "failed",
        "astronaut.png (2)": "duplicate",
    }
    again = service.enrol("Eileen", drafts[:1])
    assert again.photos[0].status == "duplicate"


def test_what_the_gate_refuses_is_enrolled_when_forced(
    service: Service, astronaut: np.ndarray, tmp_path: Path
):
    Image.fromarray(astronaut).resize((150, 150)).save(tmp_path / "small.png")
    drafts = service.draft([Upload("small.png", str(tmp_path / "small.png"))])
    refused = service.enrol("Eileen", drafts)
    assert refused.person is None and refused.poor
    assert [reason.code for reason in refused.photos[0].reasons] == ["too_small"]
    forced = service.enrol("Eileen", drafts, force=True)
    assert forced.photos[0].status == "enrolled"
    assert [reason.code for reason in forced.photos[0].reasons] == ["too_small"]


def test_drafts_of_photos_that_stay_are_kept(
    service: Service, group_upload: Upload, astronaut_upload: Upload
):
    [draft] = service.draft([group_upload])
    chosen = draft.choose(2)
    assert chosen.choose(17) == chosen
    first, second = service.draft([group_upload, astronaut_upload], [chosen])
    assert (first, second.choice) == (chosen, 0)


def test_verify(service: Service, astronaut_upload: Upload, group_upload: Upload, tmp_path: Path):
    with Image.open(astronaut_upload.path) as image:
        image.resize((400, 400)).rotate(8).save(tmp_path / "turned.jpg")
    turned = Upload("turned.jpg", str(tmp_path / "turned.jpg"))
    same = service.verify(astronaut_upload, turned, AT_1E_3)
    assert same.same and same.similarity >= same.threshold and same.faces == (1, 1)
    other = service.verify(astronaut_upload, group_upload, AT_1E_3)
    assert not other.same and other.similarity < other.threshold and other.faces == (1, 6)
    with pytest.raises(ImageError, match="two photos"):
        service.verify(None, None, AT_1E_3)
    with pytest.raises(ImageError, match="second photo"):
        service.verify(astronaut_upload, None, AT_1E_3)


def test_a_stricter_rate_raises_the_threshold(service: Service, astronaut_upload: Upload):
    service.enrol("Eileen", service.draft([astronaut_upload]))
    thresholds = [
        service.identify(astronaut_upload, Limit(fmr=rate)).threshold for rate in service.rates
    ]
    assert thresholds == sorted(thresholds) and len(set(thresholds)) > 1


def test_a_start_rate_that_was_not_measured_is_a_config_error(gallery: Gallery, pipeline: Pipeline):
    with pytest.raises(ConfigError, match="fmr"):
        Service(gallery, pipeline, fmr=1e-12)


def test_a_pack_without_thresholds_is_used_with_a_cosine(
    gallery: Gallery, bundled_pack: Pack, tmp_path: Path, astronaut_upload: Upload
):
    manifest = bundled_pack.manifest.model_copy(update={"thresholds": None})
    bare = Pipeline.load(Pack(bundled_pack.folder, manifest), device="cpu", threads=2)
    with Gallery.open(tmp_path / "bare", contract=bare.contract, pack_name="bare") as fresh:
        service = Service(fresh, bare)
        assert service.rates == ()
        assert "No thresholds were measured" in render.foot(service.about())
        service.enrol("Eileen", service.draft([astronaut_upload]))
        found = service.identify(astronaut_upload, Limit(threshold=0.9))
        assert found.faces[0].name == "Eileen" and np.isnan(found.fmr)
        page = render.identification(found)
        assert "not measured" in page and "nan" not in page
        with pytest.raises(ConfigError, match="no threshold table"):
            service.identify(astronaut_upload, AT_1E_3)


def test_people_are_paged_searched_renamed_and_merged(
    gallery: Gallery, service: Service, astronaut_upload: Upload
):
    service.enrol("Eileen", service.draft([astronaut_upload]))
    unit = np.eye(gallery.contract.dim, dtype=np.float32)
    from gallery import NewTemplate

    for i in range(PAGE_SIZE + 5):
        gallery.enroll(f"Person {i:02}", [NewTemplate(unit[i], "a.jpg", f"{i:064x}", 0.9)])
    first = service.people()
    assert (len(first.rows), first.total, first.offset) == (PAGE_SIZE, PAGE_SIZE + 6, 0)
    last = service.people(offset=10_000)
    assert (len(last.rows), last.offset) == (6, PAGE_SIZE)
    assert [row.name for row in service.people("eil").rows] == ["Eileen"]
    [eileen] = service.people("eil").rows
    assert eileen.crop is not None and first.rows[-1].crop is None  # none was kept

    assert service.rename(eileen.id, " Eileen  Collins ") == "Eileen Collins"
    with pytest.raises(GalleryError, match="Person 03"):
        service.rename(eileen.id, "Person 03")
    assert service.merge_plan(eileen.id, "person 03") == ("Eileen Collins", "Person 03")
    kept = service.merge(eileen.id, "Person 03")
    person = service.person(kept)
    assert (person.name, len(person.templates)) == ("Person 03", 2)
    with pytest.raises(IdentityNotFound):
        service.person(eileen.id)
    with pytest.raises(GalleryError, match="themselves"):
        service.merge(kept, "Person 03")
    with pytest.raises(GalleryError, match="Choose"):
        service.merge(kept, "  ")


def test_a_photo_is_removed_only_as_its_persons(service: Service, astronaut_upload: Upload):
    service.enrol("Eileen", service.draft([astronaut_upload]))
    service.enrol("Twin", service.draft([astronaut_upload]), force=True)
    eileen, twin = service.people().rows
    [template] = service.person(eileen.id).templates
    with pytest.raises(IdentityNotFound):
        service.remove_template(twin.id, template.id)
    service.remove_template(eileen.id, template.id)
    assert service.person(eileen.id).templates == ()
    assert len(service.person(twin.id).templates) == 1


def test_an_upload_that_was_deleted_says_so(service: Service, tmp_path: Path):
    with pytest.raises(ImageError, match=r"party\.jpg: .*choose it again") as caught:
        service.identify(Upload("party.jpg", str(tmp_path / "gone.jpg")), AT_1E_3)
    assert str(tmp_path) not in str(caught.value)


def test_the_border_tells_our_errors_and_hides_others(caplog: pytest.LogCaptureFixture):
    assert sentence(GalleryError("the name is empty")) == "The name is empty."
    assert sentence(ImageError("a.jpg: empty")) == "a.jpg: empty."
    told = sentence(KeyError("secret detail"))
    assert "secret" not in told
    reference = re.search(r"reference ([0-9a-f]{8})", told)
    assert reference is not None and reference.group(1) in caplog.text
    assert "secret detail" in caplog.text


# HTML


def test_names_sources_and_metadata_are_escaped(
    gallery: Gallery, service: Service, astronaut_upload: Upload
):
    upload = Upload(EVIL, astronaut_upload.path)
    drafts = service.draft([upload])
    result = service.enrol(EVIL, drafts)
    [row] = service.people().rows
    gallery.set_metadata(row.id, {EVIL: EVIL})
    pages = [
        render.drafts(drafts),
        render.enrolment(result),
        render.people(service.people()),
        render.people(service.people("<b>")),
        render.person(service.person(row.id)),
        render.identification(service.identify(upload, AT_1E_3)),
        render.verification(service.verify(upload, upload, AT_1E_3)),
        render.notice("error", EVIL),
    ]
    for page in pages:
        assert "<img src=x" not in page and "<b>”" not in page
    assert sum("&lt;img src=x onerror=alert(1)&gt;" in page for page in pages) == len(pages) - 1


def test_every_face_has_its_similarity_threshold_and_rates(
    service: Service, group_upload: Upload, astronaut_upload: Upload
):
    service.enrol("Eileen", service.draft([astronaut_upload]))
    page = render.identification(service.identify(group_upload, AT_1E_3))
    for fact in ("Similarity", "Threshold", "FMR", "FPIR"):
        assert page.count(f"<dt>{fact}</dt>") == 6
    assert page.count("Unknown</h3>") == 6
    assert "6 faces: 0 known, 6 unknown" in page


# The guard


async def _through(guard: Guard, **request: Any) -> tuple[int, dict[str, str]]:
    transport = httpx.ASGITransport(app=guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
        answer = await client.request(**request)
    return answer.status_code, dict(answer.headers)


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (200, {"method": "GET", "url": "/"}),
        (200, {"method": "GET", "url": "/", "headers": {"host": "[::1]:7860"}}),
        (200, {"method": "GET", "url": "/assets/a.js"}),
        (421, {"method": "GET", "url": "/", "headers": {"host": "evil.example"}}),
        (421, {"method": "GET", "url": "/", "headers": {"host": "127.0.0.1.evil.example"}}),
        (404, {"method": "GET", "url": "/gradio_api/proxy=http://evil.example/"}),
        (404, {"method": "GET", "url": "/monitoring"}),
        (404, {"method": "POST", "url": "/gradio_api/vibe-edit/"}),
        (404, {"method": "POST", "url": "/gradio_api/run/predict"}),
        (404, {"method": "GET", "url": "/gradio_api/file/etc/passwd"}),
        (200, {"method": "POST", "url": "/gradio_api/queue/join"}),
        (
            200,
            {
                "method": "POST",
                "url": "/gradio_api/queue/join",
                "headers": {"origin": "http://127.0.0.1:7860"},
            },
        ),
        (
            403,
            {
                "method": "POST",
                "url": "/gradio_api/queue/join",
                "headers": {"origin": "https://evil.example"},
            },
        ),
        (
            403,
            {"method": "POST", "url": "/gradio_api/queue/join", "headers": {"origin": "null"}},
        ),
    ],
)
def test_only_the_pages_own_requests_pass(status: int, request_: dict[str, Any]):
    got, headers = asyncio.run(_through(Guard(_hello, LOCAL), **request_))
    assert got == status
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_faces_are_not_left_in_the_browsers_cache():
    _, page = asyncio.run(_through(Guard(_hello, None), method="GET", url="/"))
    _, script = asyncio.run(_through(Guard(_hello, None), method="GET", url="/assets/a.js"))
    assert page["cache-control"] == "no-store"
    assert "immutable" in script["cache-control"]


def test_user_and_password_are_split_at_the_first_colon():
    assert parse_auth("ann:pa:ss") == ("ann", "pa:ss")
    for bad in ("", "ann", "ann:", ":secret", " :secret"):
        with pytest.raises(ConfigError, match="USER:PASS"):
            parse_auth(bad)
    assert credentials_match(("ann", "pä"), ("ann", "pä"))
    assert not credentials_match(("ann", "pä"), ("ann", "pa"))
    assert not credentials_match(("bob", "pä"), ("ann", "pä"))


def test_what_counts_as_this_machine_only():
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("127.8.9.1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(ConfigError, match="not an address"):
        is_loopback("no such host")


# Starting


def test_other_machines_are_let_in_only_with_a_password(tmp_path: Path):
    settings = load_settings(gallery=str(tmp_path / "g"))
    with pytest.raises(ConfigError, match="--auth USER:PASS"):
        serve(settings, host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="USER:PASS"):
        serve(settings, host="0.0.0.0", port=0, auth="nopassword")
    assert not (tmp_path / "g").exists()


def test_a_port_in_use_is_a_sentence(tmp_path: Path):
    settings = load_settings(gallery=str(tmp_path / "g"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use.*--port"):
            serve(settings, port=port)


def test_the_demo_fills_an_empty_gallery_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    named = load_settings(gallery=str(tmp_path / "mine"))
    assert server.settings_for_demo(named) == named
    monkeypatch.delenv("FACEREC_GALLERY")
    usual = load_settings()
    demo = server.settings_for_demo(usual)
    assert demo.gallery != usual.gallery
    assert Path(demo.gallery).parent == Path(usual.gallery).parent

    with server.open_service(named, demo=True) as service:
        assert service.people().total == 8
        service.remove(service.people().rows[0].id)
    with server.open_service(named, demo=True) as service:
        assert service.people().total == 7  # who was removed does not come back


def test_importing_the_package_imports_neither_gradio_nor_models():
    code = (
        "import sys, facerec.web; "
        "print(sorted({'gradio', 'onnxruntime', 'faiss', 'cv2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# The server


class Visitor:
    """A browser's requests, without a browser."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.session = secrets.token_hex(6)

    def log_in(self, user: str, password: str) -> int:
        form = {"username": user, "password": password}
        return int(self.http.post("/login", data=form).status_code)

    def upload(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as stream:
            answer = self.http.post("/gradio_api/upload", files={"files": (path.name, stream)})
        assert answer.status_code == 200, answer.text
        [stored] = answer.json()
        return {
            "path": stored,
            "orig_name": path.name,
            "meta": {"_type": "gradio.FileData"},
        }

    def fire(self, target: str, event: str, data: list[Any], event_data: Any = None) -> list[Any]:
        """Trigger an event of the component with that element id; the outputs, as sent."""
        config = self.http.get("/config").json()
        [trigger] = [c["id"] for c in config["components"] if c["props"].get("elem_id") == target]
        index = next(d["id"] for d in config["dependencies"] if [trigger, event] in d["targets"])
        asked = {
            "data": data,
            "event_data": event_data,
            "fn_index": index,
            "trigger_id": trigger,
            "session_hash": self.session,
        }
        joined = self.http.post("/gradio_api/queue/join", json=asked)
        assert joined.status_code == 200, joined.text
        params = {"session_hash": self.session}
        with self.http.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return list(message["output"]["data"])
        raise AssertionError("the stream ended without an answer")


@contextlib.contextmanager
def _running(gallery: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """app.py in a process of its own; its address is the line that it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--gallery", str(gallery), "--port", str(port), *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(gallery.parent)}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        yield found.group(), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def private_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    pytest.importorskip("gradio", reason="needs the extra ui")
    folder = tmp_path_factory.mktemp("private")
    with _running(folder / "gallery", "--auth", "ann:pä:ss") as (url, process):
        yield url, process, folder


def test_nothing_is_told_without_the_password(private_server):
    url, _, _ = private_server
    visitor = Visitor(url)
    page = visitor.http.get("/")
    assert page.status_code == 200 and "auth_required" in page.text
    assert "identify-photo" not in page.text
    for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
        assert visitor.http.get(path).status_code == 401
    for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
        assert visitor.http.post(path, json={}).status_code == 401
    assert visitor.log_in("ann", "wrong") == 400
    assert visitor.log_in("bob", "pä:ss") == 400
    assert visitor.http.get("/config").status_code == 401
    assert visitor.log_in("ann", "pä:ss") == 200
    assert visitor.http.get("/config").status_code == 200


@pytest.fixture
def visitor(private_server) -> Visitor:
    visitor = Visitor(private_server[0])
    assert visitor.log_in("ann", "pä:ss") == 200
    return visitor


def test_no_function_is_a_public_endpoint(visitor: Visitor):
    info = visitor.http.get("/gradio_api/info").json()
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_files_of_this_machine_are_not_served(visitor: Visitor, private_server):
    folder = private_server[2]
    for path in ("/etc/passwd", str(folder / "gallery" / "gallery.db"), str(REPOSITORY / "app.py")):
        assert visitor.http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_file_that_is_no_photo_is_a_sentence_without_a_trace(visitor: Visitor, tmp_path: Path):
    (tmp_path / "letter.jpg").write_text("Dear all")
    [answer] = visitor.fire(
        "identify-photo", "change", [visitor.upload(tmp_path / "letter.jpg"), 1e-3]
    )
    assert "letter.jpg: not an image" in answer and 'role="alert"' in answer
    assert "Traceback" not in answer and "File &quot;" not in answer


def test_nothing_but_uploads_is_read_and_no_address_is_fetched(
    visitor: Visitor, astronaut_path: Path, tmp_path: Path
):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0.5)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/photo.jpg"
        upload = visitor.upload(astronaut_path)
        up_and_out = f"{Path(upload['path']).parent}/../../../../{astronaut_path}"
        for path in (str(astronaut_path), up_and_out, "/etc/passwd", address):
            file = {**upload, "path": path}
            for asked in (file, {**file, "is_stream": True}, {"path": path}, [[{"a": file}]]):
                with pytest.raises(AssertionError, match="uploaded here"):
                    visitor.fire("identify-photo", "change", [asked, 1e-3])
            with pytest.raises(AssertionError, match="uploaded here"):
                visitor.fire("enrol-button", "click", [file, [], False, None])
        with pytest.raises(TimeoutError):
            other.accept()
    assert "1 face" in visitor.fire("identify-photo", "change", [upload, 1e-3])[0]


def test_enrol_identify_over_http_with_a_name_full_of_markup(
    visitor: Visitor, private_server, astronaut_path: Path
):
    photo = visitor.upload(astronaut_path)
    photos = [{"image": photo, "caption": None}]
    answer = visitor.fire("enrol-button", "click", [EVIL, photos, False, None])
    assert "&lt;img src=x" in answer[0] and "<img src=x" not in answer[0]
    assert "1 person, 1 photo" in answer[1]
    [found] = visitor.fire("identify-button", "click", [photo, 1e-3])
    assert "1 known, 0 unknown" in found
    assert "&lt;img src=x" in found and "<img src=x" not in found
    other = Visitor(private_server[0])  # a second one at the same time has no photo yet
    other.log_in("ann", "pä:ss")
    [told] = other.fire("identify-button", "click", [None, 1e-3])
    assert "There is no photo yet" in told


def test_a_photo_that_is_too_large_is_refused(visitor: Visitor):
    answer = visitor.http.post(
        "/gradio_api/upload", files={"files": ("big.jpg", b"\0" * (65 * 1024 * 1024))}
    )
    assert answer.status_code == 413 and "maximum allowed size" in answer.text


def test_uploads_are_private_while_they_last_and_gone_after_ctrl_c(
    private_server, visitor: Visitor, astronaut_path: Path
):
    """The last of the server's tests: it stops it."""
    _, process, folder = private_server
    photo = visitor.upload(astronaut_path)
    visitor.fire("enrol-button", "click", [EVIL, [{"image": photo}], False, None])
    stored = Path(photo["path"])
    uploads = next(p for p in stored.parents if p.name.startswith("facerec-"))
    assert stored.is_file()
    assert uploads.stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) in (0, 130)
    assert not uploads.exists()
    with Gallery.open(folder / "gallery", create=False) as closed:
        assert closed.count() == (1, 1)


@pytest.mark.filterwarnings("ignore::Warning:gradio")
def test_uploads_are_deleted_after_a_while(
    service: Service,
    astronaut_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("gradio", reason="needs the extra ui")
    import uvicorn

    from facerec.web import layout
    from facerec.web.server import build_app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(layout, "UPLOADS_KEPT_S", 1)
    monkeypatch.setattr(layout, "CLEAN_EVERY_S", 1)
    app = build_app(service, credentials=None, hosts=None)
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            visitor = Visitor(f"http://127.0.0.1:{listener.getsockname()[1]}")
            photo = visitor.upload(astronaut_path)
            assert Path(photo["path"]).is_file()
            deadline = time.monotonic() + 10
            while Path(photo["path"]).exists() and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not Path(photo["path"]).exists()
            [told] = visitor.fire("identify-button", "click", [photo, 1e-3])
            assert "choose it again" in told
        finally:
            running.should_exit = True
            thread.join()
