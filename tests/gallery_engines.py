"""Real engines for the tests: a PostgreSQL server of their own, and where a gallery lies on it.

A test names its galleries by folders. :func:`place` says what such a folder stands for:
itself, or a URL. The environment carries that on to other processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    import psycopg

ENGINES = ("sqlite", "postgresql", "postgresql+milvus-lite")
"""For one process; a file of Milvus Lite is for no more."""
SHARED_ENGINES = ("sqlite", "postgresql", "postgresql+milvus-server")
"""For several processes; the server is Milvus Lite's own."""
VARIABLE = "TEST_OF_GALLERY_ENGINE"
MILVUS = "TEST_MILVUS"
"""Address of a Milvus to run the tests on, instead of Milvus Lite."""

in_folders_only = pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
"""Of a test about files, in a module that has the fixture :func:`engine`."""


@pytest.fixture(params=ENGINES, autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs each test of a module that imports it on every engine: see :func:`place`."""
    return _settle(request, monkeypatch)


@pytest.fixture(params=SHARED_ENGINES, autouse=True)
def shared_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As :func:`engine`, of a module whose tests start further processes."""
    return _settle(request, monkeypatch)


def _settle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.delenv(VARIABLE, raising=False)
    if "milvus" in name and (reason := why_no_milvus_lite()):
        pytest.skip(reason)
    if name != "sqlite":
        server = request.getfixturevalue("postgres_server")
        shared = "server" in name or ("milvus" in name and MILVUS in os.environ)
        address = request.getfixturevalue("milvus_address") if shared else ""
        monkeypatch.setenv(VARIABLE, json.dumps([name, str(server.folder), address]))
    return name


USER = "facerec"
PASSWORD = "se cret/@:%"


def why_no_postgres() -> str | None:
    """Why no server can be started here; None where one can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "needs psycopg (pip install 'facerec[scale]')"
    if _programs() is None:
        return "needs PostgreSQL's server programs (apt-get install postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return None


def why_no_milvus_lite() -> str | None:
    try:
        import milvus_lite  # noqa: F401
        import pymilvus  # noqa: F401
    except ImportError:
        return "needs pymilvus and milvus-lite (pip install 'facerec[scale]')"
    return None


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them off the PATH."""
    if found := shutil.which("pg_ctl"):
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return folders[-1].parent if folders else None


def _other_user() -> str | None:
    import pwd

    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


class PostgresServer:
    """A server on a socket in a folder of its own; crash-safe, but for a loss of power."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="facerec-pg-"))
        self.data = self.folder / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = _other_user()
            assert user is not None
            shutil.chown(self.folder, user)
            self._as = ["runuser", "-u", user, "--"]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(self.data), "-U", USER, "-A", "scram-sha-256", "--no-sync",
                  "-E", "UTF8", "--locale=C.UTF-8", f"--pwfile={secret}")  # fmt: skip
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        programs = _programs()
        assert programs is not None
        command = [*self._as, str(programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off -c shared_buffers=32MB"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-s", "-l", str(self.folder / "log"),
                  "-o", options, "start")  # fmt: skip

    def crash(self) -> None:
        """Every process of the server ends at once, as if it had been killed."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-s", "-m", "immediate", "stop")

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self.folder)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server is there, and none of them does anything."""
        with self.connection() as connection:
            pids = [row[0] for row in connection.execute("SELECT pid FROM pg_stat_activity")]
        pids += [int((self.data / "postmaster.pid").read_text().split()[0])]
        for pid in pids:
            self._signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                self._signal(pid, signal.SIGCONT)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with suppress(ProcessLookupError):  # the one that was asked for the others
            os.kill(pid, number)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """As the owner of everything; each statement by itself."""
        import psycopg

        with psycopg.connect(url_of(self.folder, "public"), autocommit=True) as connection:
            yield connection

    def url(self, schema: str, **parameters: str) -> str:
        """Of a gallery that has this new schema of the database to itself."""
        with self.connection() as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return url_of(self.folder, schema, **parameters)


def url_of(socket_folder: Path, schema: str, **parameters: str) -> str:
    everything = {"host": str(socket_folder), "options": f"-csearch_path={schema}", **parameters}
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in everything.items())
    return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@/postgres?{query}"


def place(folder: Path) -> Path | str:
    """What Gallery.open is given for a gallery that the test keeps in ``folder``."""
    engine, server, address = json.loads(os.environ.get(VARIABLE, '["sqlite", "", ""]'))
    if engine == "sqlite":
        return folder
    import psycopg

    schema = "g" + hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    with psycopg.connect(url_of(Path(server), "public"), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    if engine == "postgresql":
        return url_of(Path(server), schema)
    return url_of(Path(server), schema, milvus=address or f"{folder.absolute()}.milvus.db")


@contextmanager
def milvus_server(folder: Path, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Milvus Lite as a server that several processes share; its address and process."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder),
         "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()
