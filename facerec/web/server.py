"""Bind, open the gallery, load the models, serve, and clean up. Imports late: see ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec.errors import ConfigError
from facerec.web.guard import AsgiApp, Guard, credentials_match, is_loopback, parse_auth

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.web.service import Service

MAX_UPLOAD_BYTES = 64 * 1024 * 1024
"""Of one photo; 120 megapixels of JPEG are about 40 MB."""
_FAILED_LOGIN_S = 1.0


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    demo: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Run the web UI until Ctrl-C or SIGTERM; the gallery is then closed, uploads are deleted.

    auth: "USER:PASS", asked of every visitor; required for a ``host`` that other machines
    reach. port 0: any free one. demo: fill the gallery, if it is empty, with people from
    photos that installed packages ship; without a gallery of the caller's choice, one of its
    own is used. say: gets one line with the address once the server takes requests.

    Raises ConfigError for a bad ``auth``, an address that cannot be bound or that needs
    ``auth``, or where Gradio is not installed; and what opening the gallery and the pack raises.
    """
    credentials = None if auth is None else parse_auth(auth)
    loopback = is_loopback(host)
    if credentials is None and not loopback:
        raise ConfigError(
            f"--host {host} lets other machines reach the gallery, so it needs a password: add "
            "--auth USER:PASS, or leave --host out to serve this machine only"
        )
    if demo:
        settings = settings_for_demo(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopped_by_sigterm())
        listener = stack.enter_context(_listen(host, port))
        stack.enter_context(_upload_folder())
        service = stack.enter_context(open_service(settings, demo=demo))
        own_names = None if credentials else _names_of(host)
        app = build_app(service, credentials=credentials, hosts=own_names)
        _run(app, listener, lambda: say(f"facerec is at {_url(host, listener)} (Ctrl-C stops it)"))


def build_app(
    service: Service,
    *,
    credentials: tuple[str, str] | None,
    hosts: frozenset[str] | None,
) -> AsgiApp:
    """The guarded pages as an ASGI application.

    hosts: names that the server answers to; None: any. Uploads go where GRADIO_TEMP_DIR points.
    """
    try:
        import fastapi
        import gradio
    except ImportError as exc:
        raise ConfigError(
            "the web UI needs Gradio, which is not installed: pip install 'facerec[ui]'"
        ) from exc
    from facerec.web.layout import CSS, FAVICON, HEAD, build_pages, theme

    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @outer.get("/favicon.ico", include_in_schema=False)
    def favicon() -> fastapi.Response:
        return fastapi.Response(FAVICON, media_type="image/svg+xml")

    gradio.mount_gradio_app(
        outer,
        build_pages(service),
        path="/",
        auth=None if credentials is None else _login(credentials),
        auth_message="This gallery is private.",
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    return Guard(outer, hosts)


def _login(wanted: tuple[str, str]) -> Callable[[str, str], Awaitable[bool]]:
    async def check(user: str, password: str) -> bool:
        if credentials_match((user, password), wanted):
            return True
        await asyncio.sleep(_FAILED_LOGIN_S)  # guessing is slow
        return False

    return check


def settings_for_demo(settings: Settings) -> Settings:
    """A gallery of its own for the demo, unless the caller named one."""
    from facerec.config import is_url

    if "gallery" in settings.model_fields_set or is_url(settings.gallery):
        return settings
    return settings.model_copy(update={"gallery": str(Path(settings.gallery).parent / "demo")})


@contextlib.contextmanager
def open_service(settings: Settings, *, demo: bool) -> Iterator[Service]:
    """The settings' gallery and pack at the pages' service; the gallery is closed afterwards.

    demo: fill it first, if it is empty.
    """
    from facerec.web.service import Service
    from gallery.opening import open_with_pack

    gallery, pipeline = open_with_pack(settings, create=True)
    with gallery:
        if demo and not len(gallery):
            from gallery.demo import build_demo

            build_demo(gallery, pipeline)
        yield Service(
            gallery,
            pipeline,
            fmr=settings.fmr,
            keep_crops=settings.keep_crops,
            max_pixels=settings.max_pixels,
        )


@contextlib.contextmanager
def _upload_folder() -> Iterator[Path]:
    """A folder that only this user may read, for what Gradio keeps; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="facerec-"))  # mode 0700
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError with the reason and what to do."""
    try:
        [*_, (family, kind, proto, _, address)] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        listener = socket.socket(family, kind, proto)
        try:
            if sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as exc:
        taken = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
        reason = "is in use by another program" if taken else f"cannot be bound ({exc})"
        raise ConfigError(f"{host}:{port} {reason}. Choose another port with --port.") from exc
    return listener


def _names_of(host: str) -> frozenset[str]:
    return frozenset(("localhost", "127.0.0.1", "::1", host.lower()))


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def _run(app: AsgiApp, listener: socket.socket, ready: Callable[[], object]) -> None:
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config: Any = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # open pages hold a stream that never ends
    )
    # On Ctrl-C uvicorn shuts down, then raises KeyboardInterrupt for the caller.
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that the clean-up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
