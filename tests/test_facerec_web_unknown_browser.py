"""The page of the unknown in headless Chromium, against app.py in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from facerec.packs import find_pack
from gallery import Gallery
from tests.test_facerec_web_browser import chromium, expect, page, pytestmark, running
from tests.test_facerec_web_unknown import add, faces

__all__ = ["chromium", "page", "pytestmark"]  # fixtures and marks, as there


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app.py over a gallery of faces that nobody has named."""
    folder = tmp_path_factory.mktemp("unknown")
    pack = find_pack("bundled")
    with Gallery.open(
        folder / "gallery", contract=pack.contract, thresholds=pack.thresholds, pack_name=pack.name
    ) as gallery:
        gallery.enroll("Ada", faces(1, 1, 128, first=50))
        for person, count in ((1, 4), (2, 3)):
            add(gallery, faces(person, count, 128))
    with running(folder) as address:
        yield address


def test_faces_are_grouped_named_and_dismissed(page: Any) -> None:
    page.get_by_role("tab", name="Unknown").click()
    page.locator("#unknown-run").click()
    rows, card = page.locator("#unknown-rows .fr-person"), page.locator("#unknown-card")
    said = page.locator("#unknown-notice")
    expect(rows).to_have_count(2)
    rows.first.click()
    expect(card).to_contain_text("Probably Ada: 4 of 4 faces")
    expect(page.locator("#unknown-name").locator("input, textarea")).to_have_value("Ada")
    card.locator("[data-split]").last.click()
    expect(said).to_contain_text("stays apart")
    page.locator("#unknown-refuse").click()
    expect(said).to_contain_text("Ada is not suggested")
    expect(page.locator("#unknown-refuse")).to_be_hidden()
    page.locator("#unknown-name").locator("input, textarea").fill("Ada")
    page.locator("#unknown-give").click()
    expect(said).to_contain_text("This is Ada, with 4 photos now.")
    expect(rows).to_have_count(1)
    rows.first.click()
    page.locator("#unknown-dismiss").click()
    expect(said).to_contain_text("is not shown any more")
    expect(rows).to_have_count(0)
