"""``facerec reembed``, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec import cli
from facerec.image import to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from gallery import Gallery
from gallery.generations import add_staging

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``facerec`` with the given words in this process: exit code, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["facerec", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (int(stopped.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory, bundled_pack: Pack) -> Path:
    """A folder of packs with "unflipped" in it, and "bare", which has no thresholds."""
    root = tmp_path_factory.mktemp("packs")
    text = (bundled_pack.folder / "pack.toml").read_text()
    for name in ("unflipped", "bare"):
        shutil.copytree(bundled_pack.folder, root / name)
        made = text.replace("flip = true", "flip = false")
        made = made.replace('name = "bundled"', f'name = "{name}"')
        if name == "bare":
            start = made.index("[thresholds]")
            end = made.find("\n[", start + 1)
            made = made[:start] + (made[end:] if end > 0 else "")
        (root / name / "pack.toml").write_text(made)
        assert Pack.load(root / name).name == name
    assert Pack.load(root / "bare").thresholds is None
    return root


@pytest.fixture
def enrolled(run: Run, astronaut_path: Path, close_up_path: Path) -> None:
    assert run("enroll", "Eileen", astronaut_path)[0] == 0
    assert run("enroll", "Tom", close_up_path, "--force")[0] == 0


def test_there_and_back(
    run: Run, enrolled: None, packs: Path, astronaut_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("reembed", "--status")
    assert code == 0
    assert "pack 'bundled'" in out and "2 of 2 templates" in out
    code, out, err = run("reembed", "--pack", packs / "unflipped")
    assert code == 0, err
    assert "Embedded 2 templates" in out and "pack 'unflipped'" in out and "--rollback" in out
    assert "name its folder with --pack from now on" in err
    code, _, err = run("identify", astronaut_path)
    assert code == 4, "a pack that is found nowhere"
    assert run("identify", astronaut_path, "--pack", "bundled")[0] == 6
    monkeypatch.setenv("FACEREC_PACKS", str(packs))
    assert "Eileen" in run("identify", astronaut_path)[1]
    assert run("reembed", "--pack", "unflipped")[1].startswith("Embedded 0 templates")
    code, out, _ = run("reembed", "--status", "--json")
    now: dict[str, Any] = json.loads(out)
    assert (now["active"]["pack"], now["other"]["pack"]) == ("unflipped", "bundled")
    assert (now["other"]["state"], now["missing"], now["templates"]) == ("retired", 0, 2)
    code, out, err = run("reembed", "--rollback", "--json")
    assert code == 0, err
    moved = json.loads(out)
    assert (moved["active"]["pack"], moved["switched"], moved["embedded"]) == ("bundled", True, 0)
    assert moved["warnings"] == []
    assert "Eileen" in run("identify", astronaut_path)[1]
    assert "Removed the vectors of pack 'unflipped'" in run("reembed", "--discard")[1]
    assert json.loads(run("reembed", "--status", "--json")[1])["other"] is None


def test_a_pack_without_thresholds_is_taken_with_a_warning(
    run: Run, enrolled: None, packs: Path, astronaut_path: Path
) -> None:
    code, _, err = run("reembed", "--pack", packs / "bare")
    assert code == 0
    assert "Warning: pack 'bare' has no threshold table" in err
    words = ("identify", astronaut_path, "--pack", packs / "bare")
    code, _, err = run(*words)
    assert code != 0 and "no threshold table" in err
    assert "Eileen" in run(*words, "--threshold", "0.9")[1]


def test_doctor_tells_of_a_move_that_was_not_finished(run: Run, enrolled: None) -> None:
    assert "under way" not in run("doctor")[1]
    with Gallery.open(os.environ["FACEREC_GALLERY"]) as gallery, gallery.writing() as change:
        contract = replace(gallery.contract, embedder_sha256="ff" * 32)
        add_staging(change, contract, "unflipped", gallery.thresholds)
    code, out, _ = run("doctor")
    assert code == 0
    assert "a move to pack 'unflipped' is under way: 0 views embedded" in out
    assert "facerec reembed --pack unflipped" in out
    assert run("reembed", "--discard")[0] == 0
    assert "under way" not in run("doctor")[1]


def test_templates_that_cannot_be_embedded_are_listed_with_exit_code_1(
    run: Run,
    enrolled: None,
    packs: Path,
    pipeline: Pipeline,
    group_photo: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FACEREC_PACKS", str(packs))
    [found] = pipeline.detector.detect([group_photo])
    x0, y0, x1, y1 = (int(v) for v in found.boxes_xyxy[0])
    side = x1 - x0
    photo = tmp_path / "guest.jpg"
    near = group_photo[max(0, y0 - side // 2) : y1 + side // 2, max(0, x0 - side // 3) : x1 + 20]
    photo.write_bytes(to_jpeg(near, 95))
    with monkeypatch.context() as patch:
        patch.setenv("FACEREC_KEEP_CROPS", "false")
        assert run("enroll", "Guest", photo, "--force")[0] == 0
    (tmp_path / "moved").mkdir()
    photo.rename(tmp_path / "moved" / "guest.jpg")
    code, out, _ = run("reembed", "--pack", "unflipped")
    assert code == 1
    assert "1 templates have no vector" in out
    assert f"Guest, #3: no crop was kept, and its photo is not there: {photo}" in out
    assert "Guest" in run("people", "list")[1]
    assert "Guest, #3" in run("reembed", "--status")[1]
    code, out, _ = run("reembed", "--pack", "unflipped", "--photos", tmp_path / "moved")
    assert code == 0, out
    assert "Guest" in run("identify", tmp_path / "moved" / "guest.jpg")[1]


def test_what_is_asked_wrongly_is_a_sentence(run: Run, packs: Path, tmp_path: Path) -> None:
    code, _, err = run("reembed", "--pack", "bundled")
    assert code == 5 and "no gallery here" in err
    assert run("reembed", "--status")[0] == 5
    for words in (
        ("--status", "--discard"),
        ("--rollback", "--discard"),
        ("--pack", "bundled", "--status"),
        ("--landmarks", "guessed"),
        ("--photos", tmp_path / "none", "--pack", "bundled"),
    ):
        code, _, err = run("reembed", *words)
        assert code == 2, words
        assert "Traceback" not in err


def test_without_a_pack_it_asks_for_one(run: Run, enrolled: None) -> None:
    code, _, err = run("reembed")
    assert code == 2 and "Name it with --pack" in err
    assert run("reembed", "--discard")[0] == 5
    assert run("reembed", "--rollback")[0] == 5
    assert run("reembed", "--pack", "nonesuch")[0] == 4


def test_landmarks_are_looked_for_anew_unless_both_packs_have_one_detector(
    run: Run, enrolled: None, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gallery import stored_faces

    asked: list[bool] = []
    make = stored_faces.Reembedder.__init__

    def note(self: Any, *arguments: Any, **options: Any) -> None:
        asked.append(options["detect"])
        make(self, *arguments, **options)

    monkeypatch.setattr(stored_faces.Reembedder, "__init__", note)
    monkeypatch.setenv("FACEREC_PACKS", str(packs))
    assert run("reembed", "--pack", "unflipped")[0] == 0
    assert run("reembed", "--rollback", "--landmarks", "detected")[0] == 0
    assert run("reembed", "--discard")[0] == 0
    assert asked == [False, True]
    with monkeypatch.context() as patch:
        patch.setattr(stored_faces, "same_detector", lambda a, b: False)
        assert run("reembed", "--pack", packs / "unflipped")[0] == 0
    assert asked[-1] is True


def test_the_running_web_app_says_what_happened(
    tmp_path: Path, pipeline: Pipeline, packs: Path, astronaut: np.ndarray
) -> None:
    from facerec.errors import ContractMismatch
    from facerec.web.service import Service, sentence
    from gallery import Gallery
    from gallery.reembed import move

    with Gallery.open(tmp_path, contract=pipeline.contract, pack_name="bundled") as gallery:
        service = Service(gallery, pipeline)
        assert service.about().pack == "bundled"
        move(tmp_path, Pipeline.load(Pack.load(packs / "unflipped"), device="cpu", threads=2))
        with pytest.raises(ContractMismatch) as moved:
            service.about()
    said = sentence(moved.value)
    assert "moved from pack 'bundled' to pack 'unflipped'" in said
    assert said.endswith("Open it again, with that pack. Restart the app to do so.")
