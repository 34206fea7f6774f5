"""The facerec command, as a user types it: output, exit codes, errors, and what it loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec import cli
from facerec.cli.common import check_target, writing_to
from facerec.errors import ConfigError
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from gallery import Gallery
from tests.gallery_samples import open_gallery, template, unit

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "gradio", "insightface", "matplotlib", "onnx", "skimage"}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``facerec`` with the given words in this process."""

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["facerec", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)

    return call


def in_a_process(*words: object, **kwargs) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "facerec.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, **kwargs
    )


@pytest.fixture(scope="session")
def faces_of_group(tmp_path_factory, pipeline, group_photo) -> list[Path]:
    """A photo of each of the six people of the group photo, left to right."""
    folder = tmp_path_factory.mktemp("faces")
    [found] = pipeline.detector.detect([group_photo])
    paths = []
    for i, box in enumerate(found.boxes_xyxy[np.argsort(found.boxes_xyxy[:, 0])]):
        x0, y0, x1, y1 = (int(v) for v in box)
        w, h = x1 - x0, y1 - y0
        crop = group_photo[max(0, y0 - h // 2) : y1 + h // 2, max(0, x0 - w // 3) : x1 + w // 3]
        paths.append(folder / f"person{i}.jpg")
        paths[-1].write_bytes(to_jpeg(np.ascontiguousarray(crop), 95))
    return paths


def test_enrol_identify_and_the_unknown(
    run, faces_of_group, group_photo_path, astronaut_path, tmp_path
):
    enrolled = run("enroll", "Léa Ó Brien", faces_of_group[2], "--json")
    assert enrolled.code == 0, enrolled.err
    assert enrolled.json["identity"]["name"] == "Léa Ó Brien"
    assert [e["photo"] for e in enrolled.json["enrolled"]] == [str(faces_of_group[2])]

    named = tmp_path / "named.png"
    found = run("identify", group_photo_path, astronaut_path, "--json")
    assert found.code == 0
    group, stranger = found.json
    names = [face["name"] for face in group["faces"]]
    assert len(names) == 6
    assert names.count("Léa Ó Brien") == 1
    assert names.count(None) == 5
    known = next(face for face in group["faces"] if face["name"])
    assert known["candidates"][0]["similarity"] >= known["threshold"]
    assert known["fmr"] == pytest.approx(1e-3)
    assert [face["name"] for face in stranger["faces"]] == [None]

    text = run("identify", group_photo_path, "--draw", named)
    assert text.code == 0
    assert text.out.count("unknown (nearest Léa Ó Brien") == 5
    assert text.out.count("threshold") == 6
    picture, photo = load_image(named), load_image(group_photo_path)
    assert picture.shape == photo.shape
    assert (picture != photo).any()


def test_enrolment_says_why_and_force_overrides(run, group_photo_path, faces_of_group, tmp_path):
    refused = run("enroll", "Everybody", group_photo_path)
    assert refused.code == 1
    assert "several_faces" in refused.out
    assert "Nobody was enrolled." in refused.out
    assert run("people", "list", "--json").json == []

    forced = run("enroll", "Largest", group_photo_path, "--force", "--json")
    assert forced.code == 0
    assert len(forced.json["enrolled"]) == 1

    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    mixed = run("enroll", "Mixed", faces_of_group[0], bad, tmp_path, "--json")
    assert mixed.code == 1
    assert len(mixed.json["enrolled"]) == 1
    assert {f["photo"] for f in mixed.json["failed"]} == {str(bad), str(tmp_path)}
    again = run("enroll", "Mixed", faces_of_group[0], "--json")
    assert again.code == 0
    assert again.json["duplicates"] == [str(faces_of_group[0])]


def test_verify_answers_with_its_exit_code(run, faces_of_group, group_photo_path, astronaut_path):
    same = run("verify", astronaut_path, astronaut_path)
    assert (same.code, "the same person" in same.out) == (0, True)
    different = run("verify", faces_of_group[0], astronaut_path, "--json")
    assert different.code == 1
    assert different.json["same"] is False
    several = run("verify", group_photo_path, astronaut_path)
    assert "shows 6 faces" in several.out
    run("enroll", "Eileen", astronaut_path)
    assert run("verify", astronaut_path, "Eileen").code == 0
    assert run("verify", faces_of_group[0], "Eileen").code == 1
    assert run("verify", faces_of_group[0], "Nobody").code == 5


def test_people_from_rename_to_removal(run, faces_of_group, tmp_path):
    for i in range(3):
        assert run("enroll", f"Person {i}", faces_of_group[i]).code == 0
    assert [p["name"] for p in run("people", "list", "--json").json] == [
        "Person 0",
        "Person 1",
        "Person 2",
    ]
    assert [p["name"] for p in run("people", "list", "son 1", "--json").json] == ["Person 1"]
    assert run("people", "rename", "Person 0", "Person 1").code == 5
    assert run("people", "rename", "Person 0", "Zoë").code == 0
    assert run("people", "merge", "Zoë", "Person 1", "--json").json["templates"] == 2

    crops = tmp_path / "crops"
    shown = run("people", "show", "Zoë", "--crops", crops, "--json").json
    assert len(shown["views"]) == len(list(crops.glob("*.jpg"))) == 2

    file = tmp_path / "people.facerec"
    assert run("people", "export", file).code == 0
    assert run("people", "export", file).code == 5  # not over a file that is there
    other = tmp_path / "other"
    assert run("people", "import", file, "--gallery", other).code == 0
    assert len(run("people", "list", "--gallery", other, "--json").json) == 2
    assert run("people", "import", file, "--gallery", other).code == 5
    merged = run("people", "import", file, "-g", other, "--on-conflict", "merge", "--json")
    assert merged.json["duplicates"] == 3

    asked = run("people", "remove", "Zoë")
    assert asked.code == 2
    assert "--yes" in asked.err
    view = shown["views"][0]["id"]
    assert run("people", "remove", "Zoë", "--view", view, "--yes").code == 0
    assert run("people", "remove", "Zoë", "--yes").code == 0
    assert [p["name"] for p in run("people", "list", "--json").json] == ["Person 2"]


def test_names_are_listed_as_they_are_whatever_marks_they_hold(run):
    names = ["Ada [born Byron]", "Ada [/x]", "Ada :smile:"]
    with open_gallery(Path(os.environ["FACEREC_GALLERY"])) as gallery:
        for i, name in enumerate(names):
            gallery.enroll(name, [template(unit(i), str(i))])
    listed = run("people", "list")
    assert listed.code == 0, listed.err
    assert all(name in listed.out for name in names)
    assert "named ':smile:'" in run("people", "show", ":smile:").err


def test_a_licence_is_listed_as_it_is(run, bundled_pack: Pack, tmp_path, monkeypatch):
    folder = tmp_path / "packs" / "mine"
    shutil.copytree(bundled_pack.folder, folder)
    manifest = folder / "pack.toml"
    lines = manifest.read_text().replace('name = "bundled"', 'name = "mine"').splitlines()
    lines = ['licence = "[/MIT]"' if line.startswith("licence ") else line for line in lines]
    manifest.write_text("\n".join(lines))
    monkeypatch.setenv("FACEREC_PACKS", str(tmp_path / "packs"))
    listed = run("packs", "list")
    assert listed.code == 0, listed.err
    assert "[/MIT]" in listed.out


def test_what_cannot_be_written_is_a_sentence(run, tmp_path):
    with open_gallery(Path(os.environ["FACEREC_GALLERY"])) as gallery:
        gallery.enroll("Ada", [template(unit(1), "ada", b"crop")])
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        refused = run("people", "show", "Ada", "--crops", place)
        assert refused.code == 2
        assert f"{place}: cannot be written" in refused.err
        assert "Name another place" in refused.err
    assert run("people", "show", "Ada", "--crops", tmp_path / "crops").code == 0


def test_a_report_that_could_not_be_kept_is_refused_before_the_work(run, tmp_path):
    for words in (("lfw", "--out"), ("lfw", "--roc"), ("identification", "--out")):
        what, flag = words
        nothing = tmp_path / "no photos"
        refused = run("evaluate", what, nothing, flag, tmp_path)
        assert refused.code == 2
        assert f"{tmp_path}: this is a folder" in refused.err
        missing = tmp_path / "no" / "report"
        assert "its folder does not exist" in run("evaluate", what, nothing, flag, missing).err
        long = tmp_path / ("x" * 300)
        assert run("evaluate", what, nothing, flag, long).code == 2
    check_target(tmp_path / "report.json")
    check_target(None)
    assert not list(tmp_path.glob("report*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_sentence():
    full = Path("/dev/full")
    said = r"/dev/full: cannot be written \(No space left"
    with pytest.raises(ConfigError, match=said), writing_to(full):
        full.write_text("report")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_a_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="may not be written"):
        check_target(tmp_path / "report.json")
    tmp_path.chmod(0o700)


def test_settings_come_from_the_environment(run, astronaut_path, tmp_path, monkeypatch):
    monkeypatch.setenv("FACEREC_GALLERY", str(tmp_path / "from-environment"))
    assert run("enroll", "Eileen", astronaut_path).code == 0
    assert (tmp_path / "from-environment" / "gallery.db").exists()
    monkeypatch.setenv("FACEREC_COLOUR", "red")
    wrong = run("people", "list")
    assert wrong.code == 2
    assert "FACEREC_COLOUR" in wrong.err


def test_errors_are_sentences_with_their_exit_code(run, astronaut_path, tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    blank = tmp_path / "blank.png"
    Image.new("RGB", (200, 200), "grey").save(blank)
    for photo, words in [
        (empty, "0 bytes"),
        (blank, "no face"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "folder"),
    ]:
        failed = run("verify", photo, astronaut_path)
        assert failed.code == 3
        assert words in failed.err
        assert str(photo) in failed.err
        assert "Traceback" not in failed.err
        as_json = run("verify", photo, astronaut_path, "--json")
        assert as_json.json["error"]["type"] == "ImageError"
    assert run("identify", astronaut_path).code == 5  # no gallery
    assert run("verify", astronaut_path, astronaut_path, "--pack", "nonesuch").code == 4
    assert run("verify", astronaut_path, astronaut_path, "--fmr", "2").code == 2
    assert run("verify", astronaut_path, astronaut_path, "--fmr", "1e-9").code == 2
    assert run("verify", astronaut_path, astronaut_path, "--device", "tpu").code == 2
    assert run("nonesuch").code == 2
    assert run("evaluate", "lfw", tmp_path).code == 2  # no pairs.txt
    assert run("evaluate", "lfw", tmp_path, "--roc", tmp_path / "no" / "roc.png").code == 2


def test_identify_goes_on_after_a_photo_that_fails(run, astronaut_path, tmp_path):
    run("enroll", "Eileen", astronaut_path)
    bad = tmp_path / "bad.png"
    bad.write_bytes(astronaut_path.read_bytes()[:5000])
    done = run("identify", bad, astronaut_path, "--json")
    assert done.code == 1
    assert "damaged" in done.json[0]["error"] or "truncated" in done.json[0]["error"]
    assert done.json[1]["faces"][0]["name"] == "Eileen"


def test_pictures_are_never_drawn_over_photos_nor_two_to_one_file(run, astronaut_path, tmp_path):
    run("enroll", "Eileen", astronaut_path)
    photos = [tmp_path / name for name in ("x.png", "x.jpg", "x-2.png", "deep/x.png")]
    (tmp_path / "deep").mkdir()
    for photo in photos:
        shutil.copy(astronaut_path, photo)
    before = [photo.read_bytes() for photo in photos]
    assert run("identify", *photos, "--draw", tmp_path).code == 0
    assert [photo.read_bytes() for photo in photos] == before
    pictures = set(tmp_path.glob("*.png")) - set(photos)
    assert {p.name for p in pictures} == {"x-3.png", "x-4.png", "x-2-2.png", "x-5.png"}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")
def test_a_photo_whose_name_is_no_utf_8_is_one_of_many(
    astronaut_path, group_photo_path, tmp_path, monkeypatch
):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(astronaut_path, odd)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    assert in_a_process("enroll", "Eileen", odd).returncode == 0
    found = in_a_process("identify", odd, group_photo_path)
    assert found.returncode == 0, found.stderr
    assert "udce9" in found.stdout and "6 faces" in found.stdout
    told = in_a_process("identify", odd, group_photo_path, "--json")
    assert len(json.loads(told.stdout)) == 2


def test_of_photos_that_fail_the_names_are_said(run, astronaut_path, tmp_path):
    cut, blank = tmp_path / "cut.png", tmp_path / "blank.png"
    cut.write_bytes(astronaut_path.read_bytes()[:-9000])
    blank.write_bytes(to_jpeg(np.full((99, 99, 3), 90, np.uint8)))
    said = run("enroll", "Eileen", astronaut_path, cut, blank).out
    assert f"failed     {cut}: " in said and f"failed     {blank}: " in said


def test_a_folder_of_a_person_s_name_is_no_photo(run, astronaut_path, tmp_path, monkeypatch):
    run("enroll", "Eileen", astronaut_path)
    (tmp_path / "Eileen").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("verify", astronaut_path, "Eileen").code == 0


def test_draw_never_writes_over_the_photo(run, astronaut_path, tmp_path):
    photo = tmp_path / "photo.png"
    shutil.copy(astronaut_path, photo)
    run("enroll", "Eileen", photo)
    before = photo.read_bytes()
    assert run("identify", photo, "--draw", photo).code == 2
    assert run("identify", photo, photo, "--draw", photo).code == 2
    assert photo.read_bytes() == before
    below = run("identify", photo, photo, "--draw", photo / "below")
    assert (below.code, "Traceback" in below.err) == (2, False)
    assert f"{photo / 'below'}: cannot be written" in below.err
    assert run("identify", photo, photo, "--draw", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_rate_at_a_time(run, astronaut_path):
    run("enroll", "Eileen", astronaut_path)
    both = run("identify", astronaut_path, "--fpir", "0.01", "--threshold", "0.9")
    assert both.code == 2
    assert "--fpir and --threshold" in both.err
    by_search = run("identify", astronaut_path, "--fpir", "0.01", "--json").json
    assert by_search[0]["faces"][0]["fpir"] == pytest.approx(0.01, rel=1e-6)


def test_a_gallery_keeps_to_its_contract(run, astronaut_path, bundled_pack: Pack, tmp_path):
    run("enroll", "Eileen", astronaut_path)
    other = tmp_path / "unflipped"
    shutil.copytree(bundled_pack.folder, other)
    manifest = other / "pack.toml"
    text = manifest.read_text().replace("flip = true", "flip = false")
    manifest.write_text(text.replace('name = "bundled"', 'name = "unflipped"'))
    mismatch = run("identify", astronaut_path, "--pack", other)
    assert mismatch.code == 6
    for named in ("bundled", "unflipped", "facerec reembed"):
        assert named in mismatch.err
    assert run("people", "list", "--pack", other).code == 6
    assert run("identify", astronaut_path).code == 0


def test_packs(run, bundled_pack: Pack, tmp_path):
    packs = {p["name"]: p for p in run("packs", "--json").json}
    assert packs["bundled"]["installed"]
    assert not packs["buffalo_l"]["installed"]
    assert packs["buffalo_l"]["needs_licence_acceptance"]
    assert "bundled" in run("packs", "list").out
    info = run("packs", "info", "bundled")
    assert bundled_pack.contract.contract_id in info.out
    assert run("packs", "verify").code == 0
    refused = run("packs", "pull", "buffalo_l")
    assert refused.code == 4
    assert "--accept-license" in refused.err
    assert run("packs", "pull", "bundled").code == 0

    damaged = tmp_path / "damaged"
    shutil.copytree(bundled_pack.folder, damaged)
    with (damaged / "centerface.onnx").open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"\0\1\2\3")
    wrong = run("packs", "verify", damaged)
    assert wrong.code == 4
    assert "SHA-256" in wrong.err
    (damaged / "centerface.onnx").unlink()
    assert run("packs", "verify", damaged).code == 4


def test_doctor_finds_a_damaged_pack(run, bundled_pack: Pack, tmp_path, monkeypatch):
    healthy = run("doctor", "--json")
    assert {f["status"] for f in healthy.json} <= {"ok", "warning"}
    assert healthy.code == 0
    folder = tmp_path / "packs" / "broken"
    shutil.copytree(bundled_pack.folder, folder)
    manifest = folder / "pack.toml"
    manifest.write_text(manifest.read_text().replace('name = "bundled"', 'name = "broken"'))
    (folder / "dlib_resnet29.onnx").write_bytes(b"gone bad")
    monkeypatch.setenv("FACEREC_PACKS", str(tmp_path / "packs"))
    sick = run("doctor")
    assert sick.code == 1
    assert "PROBLEM" in sick.out
    assert "dlib_resnet29.onnx" in sick.out


def test_a_folder_that_is_empty_is_a_place_for_a_gallery(run, astronaut_path, tmp_path):
    run("enroll", "Eileen", astronaut_path)
    run("people", "export", tmp_path / "people.facerec")
    empty = tmp_path / "volume"
    empty.mkdir()
    assert f"none yet in {empty}" in run("doctor", "--gallery", empty).out
    made = run("people", "import", tmp_path / "people.facerec", "--gallery", empty)
    assert made.code == 0, made.err
    assert "Eileen" in run("people", "list", "--gallery", empty).out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    sick = run("doctor", "--gallery", tmp_path / "other")
    assert sick.code == 1 and "the folder holds 'photo.jpg'" in sick.out


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")
@pytest.mark.parametrize("command", ["doctor", "people list"])
def test_a_place_that_cannot_be_is_a_sentence(run, command, tmp_path):
    for place in (tmp_path / ("x" * 300), tmp_path / "loop" / "gallery"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        done = run(*command.split(), "--gallery", place)
        assert done.code in (1, 5), done
        assert str(place) in done.out + done.err and "Traceback" not in done.err


def test_doctor_names_a_gallery_that_does_not_open(run, astronaut_path):
    run("enroll", "Eileen", astronaut_path)
    database = Path(os.environ["FACEREC_GALLERY"]) / "gallery.db"
    database.write_bytes(b"\xff" * 4096)
    sick = run("doctor")
    assert sick.code == 1
    assert str(database.parent) in sick.out


def test_demo(run, group_photo_path):
    made = run("demo", "--json")
    assert made.code == 0, made.err
    assert made.json["people"] == 8
    assert run("demo", "--json").json["added"] == []
    found = run("identify", group_photo_path, "--json").json[0]["faces"]
    left_to_right = sorted(found, key=lambda face: face["box_xyxy"][0])
    assert [f["name"] for f in left_to_right] == [f"Guest {i}" for i in range(1, 7)]


def test_ctrl_c_stops_with_130_and_keeps_the_gallery(run, astronaut_path, tmp_path):
    run("enroll", "Eileen", astronaut_path)
    photos = []
    for i in range(200):
        photos.append(tmp_path / f"{i}.jpg")
        shutil.copy(astronaut_path, photos[-1])
    words = [sys.executable, "-m", "facerec.cli", "identify", *map(str, photos)]
    process = subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted" in err
    assert b"Traceback" not in err
    with Gallery.open(os.environ["FACEREC_GALLERY"], create=False) as opened:
        assert [p.name for p in opened.people()] == ["Eileen"]


def test_help_and_identify_load_nothing_heavy(run, astronaut_path):
    run("enroll", "Eileen", astronaut_path)
    probe = (
        "import sys; from facerec.cli import main; sys.argv = ['facerec', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop: print('CODE', stop.code)\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )

    def loaded(*words: str) -> set[str]:
        result = subprocess.run(
            [sys.executable, "-c", probe, *words], capture_output=True, text=True, cwd=REPOSITORY
        )
        assert "CODE 0" in result.stdout, result.stderr
        return set(result.stdout.split("LOADED", 1)[1].split())

    assert not loaded("identify", str(astronaut_path)) & HEAVY
    assert not loaded("--help") & (
        HEAVY | {"cv2", "numpy", "faiss", "onnxruntime", "sqlalchemy", "pydantic", "PIL"}
    )


def test_the_installed_command_and_its_version():
    from facerec import __version__

    assert in_a_process("--version").stdout.strip() == f"facerec {__version__}"
    closed = subprocess.run(
        f"{sys.executable} -m facerec.cli packs --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert "Traceback" not in closed.stderr


def test_every_command_has_the_common_options_and_an_example():
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    sections = [s for s in page.split("\n## ")[1:] if "Commands:" not in s]
    assert len(sections) >= 18
    for section in sections:
        assert "Example: facerec" in section, section
        for option in ("--gallery", "--pack", "--device"):
            assert option in section, (option, section)
        assert "--json" in section or section.startswith("facerec app")


def test_the_page_of_commands_is_up_to_date():
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "from scripts.document_cli import document; print(document(), end='')",
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "90"},
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == (REPOSITORY / "docs" / "cli.md").read_text()
