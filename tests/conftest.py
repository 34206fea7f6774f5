"""Shared fixtures. Real faces come from the photos that insightface and scikit-image ship."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from facerec.image import load_image
from facerec.packs import find_pack
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.types import RGBImage
from tests.gallery_engines import (
    MILVUS,
    PostgresServer,
    milvus_server,
    why_no_milvus_lite,
    why_no_postgres,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Ctrl-C works in tests of it, also where a shell started them in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see neither the environment's settings nor the user's gallery and cache."""
    for variable in list(os.environ):
        if variable.startswith("FACEREC_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("FACEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FACEREC_GALLERY", str(tmp_path / "gallery"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of research data and third-party weights beside the checkout, if there is one."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs ../shared (research data, not part of the project)")
    return folder


def _package_file(package: str, relative: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / relative


@pytest.fixture(scope="session")
def group_photo_path() -> Path:
    """A JPEG of 1280x886 with six faces, shipped by insightface."""
    return _package_file("insightface", "data/images/t1.jpg")


@pytest.fixture(scope="session")
def close_up_path() -> Path:
    """A PNG of 112x112 that one face fills, shipped by insightface."""
    return _package_file("insightface", "data/images/Tom_Hanks_54745.png")


@pytest.fixture(scope="session")
def astronaut_path() -> Path:
    """A PNG of 512x512 with one face (NASA, public domain), shipped by scikit-image."""
    return _package_file("skimage", "data/astronaut.png")


@pytest.fixture(scope="session")
def group_photo(group_photo_path: Path) -> np.ndarray:
    return load_image(group_photo_path)


@pytest.fixture(scope="session")
def close_up(close_up_path: Path) -> np.ndarray:
    return load_image(close_up_path)


@pytest.fixture(scope="session")
def astronaut(astronaut_path: Path) -> np.ndarray:
    return load_image(astronaut_path)


@pytest.fixture(scope="session")
def bundled_pack() -> Pack:
    return find_pack("bundled")


@pytest.fixture(scope="session")
def pipeline(bundled_pack: Pack) -> Pipeline:
    """The default pack on the CPU."""
    return Pipeline.load(bundled_pack, device="cpu", threads=2)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL of the tests' own, without a gallery."""
    if reason := why_no_postgres():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def milvus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Milvus that several processes can reach: the server that Milvus Lite brings, or the
    one that the environment names."""
    if address := os.environ.get(MILVUS):
        yield address
        return
    if reason := why_no_milvus_lite():
        pytest.skip(reason)
    with milvus_server(tmp_path_factory.mktemp("milvus") / "vectors") as (address, _):
        yield address


@pytest.fixture(scope="session")
def people(astronaut_path: Path, group_photo_path: Path, pipeline: Pipeline) -> dict[str, RGBImage]:
    """Name -> portrait, of whom collections to index are made."""
    from tests.index_samples import portraits

    return portraits(astronaut_path, group_photo_path, pipeline)
