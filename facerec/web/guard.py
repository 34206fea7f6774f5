"""What stands before the pages: which requests pass, and what every answer carries.

Gradio serves more than this UI needs (file proxies, run history, monitoring, editing of the
app's source); only the listed paths exist here. Imports the standard library only.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from facerec.errors import ConfigError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_HASHED = "/assets/"
"""File names in it hold a hash of the content, so that a browser need never ask again."""
_STATIC = (_HASHED, "/static/", "/svelte/")
_PAGES = frozenset(
    ("/", "/config", "/login", "/login/", "/logout", "/theme.css", "/favicon.ico", "/robots.txt")
)
_API = frozenset(
    f"/gradio_api/{name}"
    for name in (
        "app_id",
        "cancel",
        "info",
        "login_check",
        "queue/data",
        "queue/join",
        "reset",
        "startup-events",
        "theme.css",
        "upload",
        "upload_progress",
        "user",
    )
)
_API_PREFIXES = ("/gradio_api/file=", "/gradio_api/heartbeat/")

# Gradio compiles its templates in the page, hence unsafe-eval. Nothing of another host loads,
# and nothing can be sent there.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob: mediastream:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """ASGI middleware. hosts: names that a request may call this server by; None: any.

    Without a password, a page of another site could otherwise reach a server on this machine
    by a name that it points at 127.0.0.1 (DNS rebinding), or post to it blindly.
    """

    def __init__(self, app: AsgiApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no page opens a WebSocket; returning refuses it
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        extra = _caching(scope["path"])

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = (*_HEADERS, *(extra if message["status"] == 200 else ()))
                names = {name for name, _ in ours}
                kept = [h for h in message["headers"] if h[0].lower() not in names]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence, or None for a request that may pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return 421, (
                f"This server does not answer to the name {_hostname(host)!r}. Open it by the "
                "address that it printed at the start, or start it with --auth."
            )
        origin = headers.get(b"origin")
        safe = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not safe and origin is not None and urlsplit(origin).netloc != host:
            return 403, "This request comes from a page of another site, and was refused."
        return None if _is_served(scope["path"]) else (404, "There is no such page.")


def _is_served(path: str) -> bool:
    return path in _PAGES or path in _API or path.startswith(_STATIC + _API_PREFIXES)


def _caching(path: str) -> tuple[tuple[bytes, bytes], ...]:
    """No face stays in the browser's cache; the program's own files do."""
    if path.startswith(_HASHED):
        return ((b"cache-control", b"public, max-age=31536000, immutable"),)
    return () if path.startswith(_STATIC) else ((b"cache-control", b"no-store"),)


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    return (urlsplit(f"//{host}").hostname or "") if host else ""


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def parse_auth(text: str) -> tuple[str, str]:
    """User and password of "USER:PASS", split at the first colon. Raises ConfigError."""
    user, colon, password = text.partition(":")
    if not colon or not user.strip() or not password:
        raise ConfigError(
            "--auth: expected USER:PASS, a user and a password with a colon between them"
        )
    return user.strip(), password


def credentials_match(given: tuple[str, str], wanted: tuple[str, str]) -> bool:
    """Compared in a time that does not depend on where they differ."""
    same = [
        hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
        for a, b in zip(given, wanted, strict=True)
    ]
    return all(same)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to ``host``. Raises ConfigError."""
    try:
        found = {
            str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        }
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"--host {host}: not an address or name of this machine") from exc
    return bool(found) and all(ipaddress.ip_address(a.split("%")[0]).is_loopback for a in found)
