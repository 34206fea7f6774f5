"""Fetching a known pack: verified, resumable, and never half installed.

A file is downloaded into ``NAME.part``, hashed, and only then renamed; pack.toml is
written last, so a folder with a pack.toml is a whole pack. Imports the core and,
when something is fetched, the standard library's network and zip modules.

InsightFace's packs come from the archives of that package's own model zoo. They are
not fetched by its code, which checks no hash and takes a half unpacked folder for a
whole one; a folder that it has fetched before is used, after a check.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from facerec.errors import ModelError
from facerec.packs.manifest import MANIFEST_NAME, Pack, PackManifest, sha256_file
from facerec.packs.registry import BUNDLED, find_pack, known_packs, packs_folder, suggestion

if TYPE_CHECKING:
    from http.client import HTTPResponse

CONNECT_TIMEOUT_S = 10.0
"""A network that does not answer for so long is taken for none."""
_BLOCK = 1 << 18
_ATTEMPTS = 4
"""Connections per file, as long as each brings something."""


@dataclass(frozen=True)
class PullProgress:
    """How far the download of one file is. Sizes in bytes."""

    file: str
    done_bytes: int
    total_bytes: int | None


ProgressCallback = Callable[[PullProgress], None]


@dataclass(frozen=True)
class _Item:
    """Something to download: its name in the pack's folder and what it must be."""

    name: str
    url: str
    sha256: str
    size_bytes: int | None


class _Unreachable(Exception):
    """A download failed; the message is the reason, without the remedy."""


def pull_pack(
    name: str,
    *,
    accept_licence: bool = False,
    cache: Path | None = None,
    progress: ProgressCallback | None = None,
) -> Pack:
    """The known pack ``name``, fetched into the cache unless it is there already.

    accept_licence: a yes to the licence of packs that ask for one. cache: None is the
    user's cache. progress: called from time to time, with figures of one file; what it
    raises (KeyboardInterrupt included) stops the download, which the next call resumes.
    Raises ModelError for an unknown name, a licence not accepted, a file with a wrong
    hash, and where the network fails; the last lists every file that is still needed
    and the folder to put it into by hand.
    """
    if name == BUNDLED:
        pack = find_pack(BUNDLED, cache=cache)
        pack.verify()
        return pack
    manifest = known_packs().get(name)
    if manifest is None:
        names = ", ".join(known_packs())
        raise ModelError(
            f"cannot fetch pack {name!r}: not known. {suggestion(name)}Packs that can be fetched "
            f"are {names}."
        )
    folder = packs_folder(cache) / name
    if manifest.needs_licence_acceptance and not (accept_licence or _is_whole(folder, manifest)):
        raise ModelError(
            f"pack {name!r} has the licence: {manifest.licence}. It is fetched only if you accept "
            f"that: 'facerec packs pull {name} --accept-license'. Its source is {manifest.source}."
        )
    return install(manifest, folder, progress=progress)


def install(
    manifest: PackManifest, folder: Path, *, progress: ProgressCallback | None = None
) -> Pack:
    """The pack that ``manifest`` describes, complete in ``folder``; nothing is fetched twice.

    Every file of the manifest has a sha256, and a url or the archive that holds it.
    Files that lie in the folder already, put there by hand or by an earlier call, are
    kept where their hash is right. Errors as for :func:`pull_pack`.
    """
    if _is_whole(folder, manifest):
        return Pack.load(folder)
    report = progress or (lambda _: None)
    with _os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _adopt(manifest, folder)
        try:
            if _missing(manifest, folder):
                _fetch(manifest, folder, report)
        except _Unreachable as exc:
            raise ModelError(_by_hand(manifest, folder, str(exc))) from exc
        _write_atomically(folder / MANIFEST_NAME, manifest.to_toml())
    return Pack.load(folder)


# --- what is here, what is missing ------------------------------------------------------


def _is_whole(folder: Path, manifest: PackManifest) -> bool:
    """True where ``folder`` holds this very pack, hashes included."""
    path = folder / MANIFEST_NAME
    try:
        same = path.is_file() and Pack.load(folder).manifest == manifest
    except ModelError:
        return False
    return same and not _missing(manifest, folder)


def _missing(manifest: PackManifest, folder: Path) -> list[str]:
    """Names of model files that are absent or not what the manifest says."""
    return [
        spec.file for spec in manifest.files if not _is_right(folder / spec.file, str(spec.sha256))
    ]


def _is_right(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256


def _adopt(manifest: PackManifest, folder: Path) -> None:
    """Take missing files from where the insightface package keeps its own."""
    theirs = Path("~/.insightface/models").expanduser() / manifest.name
    for spec in manifest.files:
        source, target = theirs / Path(spec.file).name, folder / spec.file
        if not _is_right(target, str(spec.sha256)) and _is_right(source, str(spec.sha256)):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".copy")
            shutil.copyfile(source, temporary)
            temporary.replace(target)


def _fetch(manifest: PackManifest, folder: Path, report: ProgressCallback) -> None:
    """Download what is missing. Raises _Unreachable where the network fails."""
    for item in _items(manifest, _missing(manifest, folder)):
        target = folder / item.name
        if not _is_right(target, item.sha256):
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(item, target, report)
        if manifest.archive is not None:
            _unpack(manifest, target, folder)
            target.unlink()


def _items(manifest: PackManifest, missing: list[str]) -> list[_Item]:
    if manifest.archive is not None:
        archive = manifest.archive
        return [_Item(f"{manifest.name}.zip", archive.url, archive.sha256, archive.size_bytes)]
    items = []
    for spec in manifest.files:
        if spec.file in missing:
            if spec.url is None or spec.sha256 is None:
                raise ModelError(f"pack {manifest.name!r}: no url or no sha256 for {spec.file}")
            items.append(_Item(spec.file, spec.url, spec.sha256, spec.size_bytes))
    return items


def _by_hand(manifest: PackManifest, folder: Path, reason: str) -> str:
    """What to do without a network: every file still needed, and where it goes."""
    lines = [
        f"cannot fetch pack {manifest.name!r}: {reason}. Where there is a network, download",
    ]
    for item in _items(manifest, _missing(manifest, folder)):
        size = f"{item.size_bytes} bytes, " if item.size_bytes else ""
        wrong = "; the one there has another" if (folder / item.name).is_file() else ""
        lines.append(f"  {item.name} ({size}SHA-256 {item.sha256}{wrong})")
        lines.append(f"    {item.url}")
    lines.append(f"and put it into {folder}")
    if manifest.archive is not None:
        lines.append("or put these files of that archive there:")
        for spec in manifest.files:
            lines.append(f"  {spec.file} (SHA-256 {spec.sha256})")
    lines.append("Then run the same command again; it checks the files and goes on.")
    return "\n".join(lines)


# --- download ---------------------------------------------------------------------------


def _download(item: _Item, target: Path, report: ProgressCallback) -> None:
    """``item`` at ``target``, through a .part file that survives an interruption.

    A resumed file with a wrong hash may be the tail of one version behind the head of
    another, so it is fetched once more from its start. Raises ModelError if the whole
    file has a wrong hash, _Unreachable if it could not be had.
    """
    part = target.with_name(target.name + ".part")
    resumed = part.is_file() and part.stat().st_size > 0
    _complete(item, part, report)
    actual = sha256_file(part)
    if actual != item.sha256 and resumed:
        part.unlink()
        _complete(item, part, report)
        actual = sha256_file(part)
    if actual != item.sha256:
        part.unlink()
        raise ModelError(
            f"{item.url}: what the server sent has SHA-256 {actual}, expected {item.sha256}. "
            "Nothing was installed. A proxy or sign-in page may have answered in its place; "
            "try another network, or a newer version of facerec if the file was replaced."
        )
    part.replace(target)


def _complete(item: _Item, part: Path, report: ProgressCallback) -> None:
    """Append to ``part`` until it has the length that the server states."""
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        if item.size_bytes is not None and before >= item.size_bytes:
            if before == item.size_bytes:
                return
            part.unlink()  # longer than the file can be
            before = 0
        total = _transfer(item, part, before, report)
        after = part.stat().st_size
        if total is None or after == total:
            return
        if after <= before and attempt:
            break
    raise _Unreachable(
        f"{item.url}: the connection broke off after {after} of {total} bytes; they are kept, and "
        "the same command resumes"
    )


def _transfer(item: _Item, part: Path, start: int, report: ProgressCallback) -> int | None:
    """One connection: bytes from ``start`` on go behind ``part``. Returns the whole's length."""
    with _open(item, start) as response:
        resumes = response.status == 206 and _first_byte(response) == start
        start = start if resumes else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else item.size_bytes
        done = start
        with part.open("ab" if resumes else "wb") as out:
            report(PullProgress(item.name, done, total))
            for block in _blocks(response):
                out.write(block)
                done += len(block)
                if item.size_bytes is not None and done > item.size_bytes:
                    return done  # too long to be the file: the hash will say so
                report(PullProgress(item.name, done, total))
    return total


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The body, until it ends or breaks off; the caller compares lengths."""
    from http.client import HTTPException

    try:
        while block := response.read(_BLOCK):
            yield block
    except (HTTPException, OSError):
        return


@contextmanager
def _open(item: _Item, start: int) -> Iterator[HTTPResponse]:
    """An answered request for ``item`` from byte ``start``. Raises _Unreachable for none."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    # Without compression in between, ranges and lengths are those of the file.
    headers = {"User-Agent": "facerec", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urlopen(Request(item.url, headers=headers), timeout=CONNECT_TIMEOUT_S)
    except HTTPError as exc:
        if exc.code == 416 and start:
            with _open(item, 0) as whole:  # the part is longer than the file: start again
                yield whole
            return
        raise _Unreachable(f"{item.url}: the server answered {exc.code} {exc.reason}") from exc
    except (HTTPException, OSError) as exc:
        raise _Unreachable(f"{item.url}: {getattr(exc, 'reason', exc)}") from exc
    with response:
        yield response


def _first_byte(response: HTTPResponse) -> int | None:
    """Where the part that the server sends begins, from ``bytes 100-199/200``."""
    value = response.headers.get("Content-Range", "")
    first = value.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


# --- files ------------------------------------------------------------------------------


def _unpack(manifest: PackManifest, archive: Path, folder: Path) -> None:
    """The model files of ``archive``, each under whatever folder it has there.

    Entries are looked up by file name and written under the manifest's own names, so
    that no name inside the archive decides where anything goes.
    """
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(archive) as stored:
            for spec in manifest.files:
                wanted = PurePosixPath(spec.file).name
                entries = [e for e in stored.infolist() if PurePosixPath(e.filename).name == wanted]
                if len(entries) != 1:
                    raise ModelError(f"{archive}: holds {len(entries)} files named {wanted}, not 1")
                with stored.open(entries[0]) as source:
                    _write_verified(source, folder / spec.file, str(spec.sha256))
    except BadZipFile as exc:
        raise ModelError(f"{archive}: not a zip archive ({exc})") from exc


def _write_verified(source: IO[bytes], target: Path, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".unpacked")
    with temporary.open("wb") as out:
        shutil.copyfileobj(source, out, _BLOCK)
    actual = sha256_file(temporary)
    if actual != sha256:
        temporary.unlink()
        raise ModelError(f"{target.name}: SHA-256 in the archive is {actual}, expected {sha256}")
    temporary.replace(target)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written, as a ModelError."""
    try:
        yield
    except OSError as exc:
        raise ModelError(
            f"cannot write to {exc.filename or folder}: {exc.strerror or exc}. Free some space, or "
            "name another folder with FACEREC_CACHE."
        ) from exc
