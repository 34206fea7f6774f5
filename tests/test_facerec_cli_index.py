"""facerec index, as a user types it: output, exit codes, interruption, and what it loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from facerec import cli
from gallery import Gallery
from tests.index_samples import NAMES, make_collection

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``facerec index`` with the given words in this process."""

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["facerec", "index", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)

    return call


@pytest.fixture
def photos(tmp_path: Path, people) -> Path:
    make_collection(tmp_path / "photos", {n: people[n] for n in NAMES[:2]}, 2)
    return tmp_path / "photos"


def test_a_folder_is_indexed_once_and_the_report_says_so(run, photos, tmp_path) -> None:
    first = run(photos, "--by-folder")
    assert first.code == 0, first.err
    assert "4 photos: 4 enrolled (4 faces, 2 new people), 0 unchanged" in first.out
    assert "photos/s" in first.out and "faces/s" in first.out
    second = run(photos, "--by-folder", "--json")
    assert second.code == 0
    assert second.json["skipped"]["unchanged"] == second.json["photos"] == 4
    assert second.json["enrolled"] == 0 and second.json["failed"] == second.json["rejected"] == []
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        assert [p.name for p in gallery.people()] == list(NAMES[:2])


def test_the_exit_code_is_1_when_something_failed_and_only_then(
    run, photos, group_photo_path
) -> None:
    (photos / "Ada" / "group.jpg").write_bytes(group_photo_path.read_bytes())
    refused = run(photos, "--by-folder")
    assert refused.code == 0 and "[several_faces]" in refused.out and "1 refused" in refused.out
    (photos / "Ada" / "torn.jpg").write_bytes(b"torn")
    failed = run(photos, "--by-folder", "--json")
    assert failed.code == 1
    [failure] = failed.json["failed"]
    assert failure["code"] == "unreadable" and failure["photo"] == str(photos / "Ada" / "torn.jpg")
    assert run(photos, "--by-folder").code == 0  # known, and told before
    assert run(photos, "--by-folder", "--retry").code == 1


def test_names_come_from_a_list_or_the_command(run, photos, tmp_path) -> None:
    listed = tmp_path / "people.csv"
    listed.write_text("path,name\nphotos/Ada/0.jpg,Ada Lovelace\nlost.jpg,Bo\n")
    ran = run("--manifest", listed, "--json")
    assert ran.code == 1 and ran.json["enrolled"] == 1
    assert f"{listed}:3, column 'path': no such file" in ran.json["failed"][0]["reason"]
    ran = run(photos / "Bo", "--person", "Bo Derek", "--json")
    assert ran.code == 0 and ran.json["enrolled"] == 2
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        assert [p.name for p in gallery.people()] == ["Ada Lovelace", "Bo Derek"]


def test_without_names_everybody_is_unknown_and_prune_follows_the_files(
    run, photos, tmp_path
) -> None:
    assert run(photos, "--json").json["templates"] == 4
    (photos / "Ada" / "0.jpg").unlink()
    ran = run(photos, "--prune", "--json")
    assert ran.json["pruned_files"] == ran.json["removed_templates"] == 1
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        assert gallery.people() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a folder"),
        (["{photos}", "--by-folder", "--person", "Ada"], "not both"),
        (["{photos}/Ada", "--by-folder"], "no folders, so no folder says whom they show"),
        (["{photos}", "--person", "Ada"], "holds the folder"),
        (["{photos}", "{photos}/Ada"], "would be indexed twice"),
        (["--manifest", "{photos}/none.csv"], "cannot be read"),
        (["--manifest", "{photos}/none.csv", "--by-folder"], "names people itself"),
        (["{photos}", "--manifest", "{photos}/none.csv"], "SOURCEs or a --manifest, not both"),
        (["--manifest", "{photos}/none.csv", "--watch"], "--watch looks after folders"),
        (["{photos}", "--video-fps", "0"], "--video-fps"),
        (["{photos}/nowhere", "--watch"], "nothing to watch"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(run, photos, words, said) -> None:
    ran = run(*(word.format(photos=photos) for word in words))
    assert ran.code == 2 and said in " ".join(ran.err.split()), ran.err


def test_a_name_that_is_none_is_refused_before_any_work(run, photos) -> None:
    ran = run(photos / "Ada", "--person", "\u202e")
    assert ran.code == 5 and "invisible" in ran.err


def test_an_unchanged_collection_loads_no_model(photos, tmp_path) -> None:
    words = ["facerec", "index", str(photos), "--by-folder"]
    code = f"""
import sys
from facerec.cli import main
sys.argv = {words!r}
try:
    main()
finally:
    print("LOADED", *sorted(m for m in sys.modules if "." not in m))
"""
    for expected in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stderr
        loaded = set(done.stdout.splitlines()[-1].split())
        assert ("onnxruntime" in loaded) is expected
        assert not loaded & {"torch", "gradio", "insightface", "ray", "watchfiles"}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_the_same_command_goes_on(
    run, people, tmp_path, number
) -> None:
    photos = tmp_path / "photos"
    make_collection(photos, people, 10)
    command = [sys.executable, "-m", "facerec.cli", "index", str(photos), "--by-folder"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "gallery" / "gallery.db").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was too quick to be interrupted
        assert process.returncode == 130
        assert "Interrupted; the same command goes on from here." in out and "Traceback" not in err
    rest = run(photos, "--by-folder", "--json")
    assert rest.code == 0 and rest.json["photos"] == 60
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        assert gallery.count() == (6, 60)
        gallery.check()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_watched_folder_is_indexed_until_it_is_interrupted(people, tmp_path) -> None:
    photos = tmp_path / "photos"
    make_collection(photos, {"Ada": people["Ada"]}, 1)
    command = [sys.executable, "-u", "-m", "facerec.cli", "index", str(photos)]
    process = subprocess.Popen(
        [*command, "--by-folder", "--watch"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "1 enrolled" in process.stdout.readline()
    process.stdout.readline()
    make_collection(photos, {"Bo": people["Bo"]}, 1)
    assert "1 enrolled" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        assert gallery.count() == (2, 2)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_full_disk_ends_the_run_in_a_sentence_and_loses_nothing(run, people, tmp_path) -> None:
    """A limit on the size of files, which the system reports much as it does a full disk."""
    photos = tmp_path / "photos"
    make_collection(photos, people, 5)
    code = f"""
import resource, sys
import gallery.indexer
from facerec.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
gallery.indexer._COMMIT_PHOTOS = 5
sys.argv = ["facerec", "index", {str(photos)!r}, "--by-folder"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert "full" in done.stderr and "photos:" in done.stdout
    with Gallery.open(tmp_path / "gallery", create=False) as gallery:
        before = gallery.count()[1]
        assert before < 30
    rest = run(photos, "--by-folder", "--json")
    assert rest.json["skipped"]["unchanged"] == before and rest.json["enrolled"] == 30 - before
