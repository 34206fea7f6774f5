"""``facerec gallery``: what a gallery says of itself, and the type of its index."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from facerec.cli import app
from tests.gallery_samples import fill, open_gallery

runner = CliRunner()


def said(*arguments: str) -> dict:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_info_says_what_is_there_and_rebuild_changes_how_it_is_searched(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 5, 2)
        contract = gallery.contract.contract_id
        with gallery.writing() as change:
            change.add_unnamed(2)
    before = said("gallery", "info", "--gallery", str(tmp_path))
    assert (before["people"], before["views"], before["dimensions"]) == (5, 10, 32)
    assert (before["contract"], before["index"]) == (contract, "flat")
    assert before["bytes"]["gallery.db"] > 0
    rebuilt = said("gallery", "rebuild", "--type", "int8", "--gallery", str(tmp_path))
    assert rebuilt["index"] == "int8"
    after = said("gallery", "info", "--gallery", str(tmp_path))
    assert after["index"] == "int8" and "gallery.index.engine" in after["bytes"]
    text = runner.invoke(app, ["gallery", "info", "--gallery", str(tmp_path)]).output
    assert "5 people with 10 views" in text and "Index: int8" in text


def test_a_type_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 2)
    result = runner.invoke(app, ["gallery", "rebuild", "--type", "pq", "--gallery", str(tmp_path)])
    assert result.exit_code != 0
    assert "'pq'" in str(result.exception) and "int8" in str(result.exception)
