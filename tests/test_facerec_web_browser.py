"""The web UI in headless Chromium, against app.py in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
EVIL = "${alert(1)} {{7*7}} <img src=x onerror=alert(1)>"

pytest.importorskip("gradio", reason="needs the extra ui")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs the package playwright, which the extra dev installs"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and none is installed"),
]
expect = playwright.expect


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of app.py over FOLDER/gallery, while this lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--gallery", str(folder / "gallery"), "--port", str(port)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found.group()
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app.py over an empty gallery."""
    with running(tmp_path_factory.mktemp("browser")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, server: str) -> Iterator[Any]:
    """The start page on a phone's screen; fails if it asks a foreign host, or throws."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(20_000)
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.goto(server)
    expect(page.locator(".fr-head")).to_be_visible(timeout=20_000)
    yield page
    # Everything must fit the narrow screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
    hosts = {urlsplit(url).netloc for url in requests if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(server).netloc}
    assert problems == []


def _tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def _give(page: Any, element: str, *photos: Path) -> None:
    page.locator(f"#{element} input[type=file]").first.set_input_files([str(p) for p in photos])


def _name(page: Any, name: str) -> None:
    page.locator("#enrol-name").locator("input, textarea").fill(name)


@pytest.fixture
def turned_group(group_photo: np.ndarray, tmp_path: Path) -> Path:
    """The group photo at four fifths of its size, turned by 12 degrees."""
    image = Image.fromarray(group_photo)
    image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
    image.rotate(12, expand=True, fillcolor="white").save(tmp_path / "turned.jpg", quality=90)
    return tmp_path / "turned.jpg"


def test_enrol_from_a_group_identify_in_a_turned_copy_and_remove(
    page: Any, group_photo_path: Path, turned_group: Path, astronaut_path: Path
):
    # Enrol: of the six faces in the photo, the third.
    _tab(page, "Enrol")
    _give(page, "enrol-photos", group_photo_path)
    faces = page.locator("#enrol-faces .fr-pick")
    expect(faces).to_have_count(6)
    faces.nth(2).click()
    expect(faces.nth(2)).to_have_attribute("aria-pressed", "true")
    _name(page, "Ross")
    page.locator("#enrol-button").click()
    expect(page.locator("#enrol-outcome")).to_contain_text("1 photo enrolled. Ross now has 1 photo")
    expect(page.locator(".fr-head")).to_contain_text("1 person, 1 photo")

    # Identify: in the turned copy that face is named, and no other.
    _tab(page, "Identify")
    _give(page, "identify-photo", turned_group)
    result = page.locator("#identify-result")
    expect(result).to_contain_text("6 faces: 1 known, 5 unknown")
    expect(result.locator(".fr-card.fr-known h3")).to_have_text(re.compile("Ross$"))
    for fact in ("Similarity", "Threshold", "FMR", "FPIR"):
        expect(result.locator(".fr-card.fr-known dl")).to_contain_text(fact)
    assert page.evaluate(_BLUE_SHARE) > 0.001  # a box of that colour is in the picture
    loaded = "document.querySelector('.fr-candidate .fr-crop').naturalWidth > 0"
    assert page.evaluate(loaded)

    # Somebody who is not enrolled is unknown, with the nearest person and the score.
    page.reload()
    _give(page, "identify-photo", astronaut_path)
    expect(result).to_contain_text("1 face: 0 known, 1 unknown")
    expect(result.locator(".fr-card h3")).to_have_text(re.compile("Unknown$"))
    expect(result.locator(".fr-candidate")).to_contain_text("Ross")

    # Remove: asked once more, and only a yes does it.
    _tab(page, "People")
    page.locator(".fr-person", has_text="Ross").click()
    expect(page.locator("#people-card")).to_contain_text("1 photo")
    page.locator("#people-remove").click()
    expect(page.locator("#people-question")).to_contain_text("Remove Ross and 1 photo")
    page.locator("#people-no").click()
    expect(page.locator("#people-yes")).to_be_hidden()
    page.locator("#people-remove").click()
    page.locator("#people-yes").click()
    expect(page.locator("#people-notice")).to_contain_text("Ross and 1 photo were removed.")
    expect(page.locator("#people-rows")).to_contain_text("The gallery is empty")
    expect(page.locator(".fr-head")).to_contain_text("0 people, 0 photos")

    _tab(page, "Identify")
    page.locator("#identify-button").click()
    expect(result).to_contain_text("The gallery is empty")
    expect(result).not_to_contain_text("Ross")


_BLUE_SHARE = """
() => {
  const image = document.querySelector('.fr-picture');
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let blue = 0;
  for (let i = 0; i < data.length; i += 4)
    blue += data[i] < 40 && Math.abs(data[i + 1] - 114) < 25 && Math.abs(data[i + 2] - 178) < 25;
  return blue / (data.length / 4);
}
"""


def test_rename_merge_search_and_a_name_full_of_markup(
    page: Any, astronaut_path: Path, close_up_path: Path
):
    _tab(page, "Enrol")
    for name, photo in ((EVIL, astronaut_path), ("Tom", close_up_path)):
        _give(page, "enrol-photos", photo)
        expect(page.locator("#enrol-faces")).to_contain_text("1 photo with one face")
        _name(page, name)
        page.locator("#enrol-button").click()
        expect(page.locator("#enrol-outcome .fr-notice")).to_contain_text(f"{name} now has 1 photo")
        expect(page.locator("#enrol-faces .fr-card")).to_have_count(0)  # ready for the next

    _tab(page, "People")
    expect(page.locator(".fr-person")).to_have_count(2)
    search = page.locator("#people-search").locator("input, textarea")
    search.fill("nobody")
    expect(page.locator("#people-rows")).to_contain_text("Nobody's name holds “nobody”.")
    search.fill("ALERT")
    expect(page.locator(".fr-person")).to_have_count(1)
    page.locator(".fr-person").click()
    expect(page.locator(".fr-name")).to_have_text(EVIL)

    new_name = page.locator("#people-name").locator("input, textarea")
    new_name.fill("tom")
    page.locator("#people-rename").click()
    expect(page.locator("#people-notice .fr-error")).to_contain_text("Tom")  # taken
    new_name.fill("Eileen")
    page.locator("#people-rename").click()
    expect(page.locator(".fr-name")).to_have_text("Eileen")

    into = page.locator("#people-into input")
    into.click()
    page.get_by_role("option", name="Tom").click()
    page.locator("#people-merge").click()
    expect(page.locator("#people-question")).to_contain_text("photos of Eileen to Tom")
    page.locator("#people-yes").click()
    expect(page.locator("#people-notice")).to_contain_text("Merged into Tom.")
    expect(page.locator(".fr-templates > li")).to_have_count(2)

    page.locator(".fr-templates button", has_text="Remove photo").first.click()
    page.locator(".fr-templates button", has_text="Yes, remove").click()
    expect(page.locator("#people-notice")).to_contain_text("The photo was removed.")
    expect(page.locator(".fr-templates > li")).to_have_count(1)
    page.locator("#people-back").click()
    search.fill("")
    expect(page.locator(".fr-person")).to_have_count(1)


def test_verify_and_errors_as_sentences(
    page: Any, astronaut_path: Path, close_up_path: Path, tmp_path: Path
):
    _tab(page, "Verify")
    _give(page, "verify-a", astronaut_path)
    page.locator("#verify-button").click()
    result = page.locator("#verify-result")
    expect(result.get_by_role("alert")).to_have_text("Choose the second photo to compare.")
    _give(page, "verify-b", close_up_path)
    expect(result).to_contain_text("Different people")
    for fact in ("Similarity", "Threshold", "FMR"):
        expect(result.locator("dl")).to_contain_text(fact)

    (tmp_path / "letter.jpg").write_text("Dear all")
    Image.new("RGB", (300, 200), "green").save(tmp_path / "meadow.png")
    _tab(page, "Identify")
    result = page.locator("#identify-result")
    for name, told in (("letter.jpg", "not an image"), ("meadow.png", "no face was found")):
        page.reload()
        _give(page, "identify-photo", tmp_path / name)
        expect(result.get_by_role("alert")).to_contain_text(f"{name}: {told}")
