"""A connection to Ray: to a cluster that answers, or to one of this machine's own, started here.

Imports the core; ray as the first connection is made.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from facerec.errors import ConfigError, ModelError

LOCAL = "local"
ANSWER_S = 10.0
"""A cluster that says nothing for so long does not answer."""

_STORE_BYTES = 256 << 20
_STORE_BYTES_A_WORKER = 64 << 20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that this will be the default
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def check_address(address: str) -> None:
    """Raises ConfigError for what is no address of a cluster."""
    if address == LOCAL:
        return
    try:
        _, port = _endpoint(address)
    except ValueError:
        port = None
    if not port:
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT, as 'ray start --head' "
            f"prints it, ray://HOST:10001 from outside of the cluster, or {LOCAL!r}"
        )


@contextmanager
def connected(address: str, cpus: int) -> Iterator[Any]:
    """The module ``ray``, connected to ``address``.

    "local" starts a Ray of ``cpus`` processors on this machine, with a token of its own that
    keeps others out, and stops it at the end. A process that is connected already stays so.
    Call it from the main thread: what Ray starts ends with the thread that started it. Raises
    ConfigError for a wrong address or where Ray is not installed, ModelError where it does not
    answer.
    """
    check_address(address)
    if address == LOCAL:
        _keep_others_out()
    with _variables(_QUIET):
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        folder = _own_folder() if address == LOCAL else None
        try:
            with _keeping_sigterm():
                if folder is None:
                    _attach(ray, address)
                else:
                    _start(ray, cpus, folder)
            yield ray
        finally:
            with _keeping_sigterm():
                ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as exc:
        raise ConfigError("indexing on Ray needs ray: pip install 'facerec[scale]'") from exc
    return ray


def _keep_others_out() -> None:
    """Ray listens on the network, and whoever may talk to it may run anything: so it gets a token
    that nobody knows. It reads that as it is imported, for good; later it has its own ways."""
    if "ray" not in sys.modules and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _start(ray: Any, cpus: int, folder: Path) -> None:
    try:
        ray.init(
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES + cpus * _STORE_BYTES_A_WORKER,
            include_dashboard=False,
            _temp_dir=str(folder),
            **_silence(),
        )
    except Exception as exc:
        raise ModelError(f"Ray does not start on this machine: {first_line(exc)}") from exc


def _attach(ray: Any, address: str) -> None:
    _knock(address)
    try:
        ray.init(address=address, **_silence())
    except Exception as exc:  # of many kinds: another version, no node on this machine, ...
        raise ModelError(
            f"the Ray cluster at {address} takes no work from here: {first_line(exc)} "
            "HOST:PORT needs a node of the cluster on this machine ('ray start --address=...'); "
            "from outside of it give ray://HOST:10001. Ray and Python have to be of the same "
            "versions everywhere, and a cluster with a token wants it in RAY_AUTH_TOKEN."
        ) from exc


def _silence() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.CRITICAL}


def _knock(address: str) -> None:
    """Whether something that speaks gRPC answers; Ray itself would try for minutes."""
    host, port = _endpoint(address)
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S):
            pass
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            _greet(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except OSError as exc:
        raise ModelError(
            f"the Ray cluster at {address} does not answer: {exc.strerror or exc}. Start it, or "
            f"index with '--ray {LOCAL}' or without --ray; nothing is lost meanwhile."
        ) from exc


def _greet(endpoint: str) -> None:
    import grpc

    channel = grpc.insecure_channel(endpoint)
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
    except grpc.FutureTimeoutError as exc:
        raise TimeoutError(f"what listens there says nothing for {ANSWER_S:.0f} s") from exc
    finally:
        channel.close()


def _endpoint(address: str) -> tuple[str, int]:
    """Host and port. Raises ValueError where there is none."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme not in ("", "ray") or not parts.hostname or not parts.port:
        raise ValueError(address)
    return parts.hostname, parts.port


def _own_folder() -> Path:
    """For Ray's sockets and logs; short, since a socket's path is at most 107 bytes long."""
    short = Path(os.sep) / "tmp"
    return Path(tempfile.mkdtemp(prefix="facerec-ray-", dir=short if short.is_dir() else None))


def first_line(exc: BaseException) -> str:
    """What is the matter, without the pages that Ray adds; ends with a full stop."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[0] if lines else type(exc).__name__
    return text if text.endswith((".", "!", "?")) else text + "."


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set in the environment, for Ray's processes too; what the user has set stays."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in the place of whose the process is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
