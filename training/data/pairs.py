"""Verification sets in insightface's ``.bin`` files: lfw.bin, cfp_fp.bin, agedb_30.bin, ...

Imports the core and NumPy. A ``.bin`` is a pickle of ``(images, issame)``: 2p encoded images,
pair i being images 2i and 2i + 1, and p booleans. Written by Python 2 or 3, by any NumPy, with
the images as bytes or as arrays of uint8. A pickle can run any code when it is loaded; here it
is given only what such a file consists of, and everything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.errors import ConfigError, ImageError
from facerec.image import load_image
from facerec.types import RGBImage


@dataclass(frozen=True, eq=False)
class VerificationSet:
    """p pairs. images: 2p encoded images, pair i is images 2i and 2i + 1. same: (p,) bool."""

    images: Sequence[bytes]
    same: NDArray[np.bool_]
    origin: str

    def __len__(self) -> int:
        return len(self.same)

    def image(self, index: int) -> RGBImage:
        """(H, W, 3) uint8 RGB of image ``index``. Raises ImageError, naming it."""
        try:
            return load_image(self.images[index])
        except ImageError as exc:
            reason = str(exc).removeprefix("the image: ")
            raise ImageError(f"{self.origin}, image {index}: {reason}") from exc


def read_verification_bin(path: Path) -> VerificationSet:
    """The pairs in a ``.bin`` file; no code of the file is run.

    Raises ConfigError for a file that is missing, damaged, of another content, or that asks
    for anything but bytes, lists, numbers and arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        content = _Unpickler(io.BytesIO(data)).load()
    except _Refused as exc:
        raise ConfigError(
            f"{path}: refused: it wants {exc} loaded, which no such set needs"
        ) from exc
    # Damage can make the unpickler raise nearly anything; nothing of ours runs inside.
    except Exception as exc:
        raise ConfigError(f"{path}: damaged, or not a verification set: {exc!r}") from exc
    return _checked(content, str(path))


def write_verification_bin(path: Path, images: Sequence[bytes], same: ArrayLike) -> None:
    """Write a ``.bin`` file. Raises ValueError unless there are two images per pair."""
    flags = [bool(s) for s in np.asarray(same).ravel()]
    if len(images) != 2 * len(flags):
        raise ValueError(f"{len(images)} images for {len(flags)} pairs")
    Path(path).write_bytes(pickle.dumps((list(images), flags), protocol=4))


def _checked(content: Any, origin: str) -> VerificationSet:
    try:
        encoded, flags = content
        images = [_as_bytes(image) for image in encoded]
        same = np.array([bool(flag) for flag in flags])
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"{origin}: not a verification set: expected (images, issame), {exc}"
        ) from exc
    if not len(same) or len(images) != 2 * len(same):
        raise ConfigError(f"{origin}: {len(images)} images do not make {len(same)} pairs")
    return VerificationSet(images, same, origin)


def _as_bytes(image: Any) -> bytes:
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, _Array) and isinstance(image.values, np.ndarray):
        values = image.values
        if values.dtype.itemsize == 1:
            return values.tobytes()
    raise TypeError(f"an image is bytes or an array of bytes, got {type(image).__name__}")


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is not on the list."""


class _Unpickler(pickle.Unpickler):
    """Loads bytes, numbers, lists, tuples and plain arrays; Python 2's str become bytes.

    NumPy's own functions are not on the list either: a dtype restored from a hostile state can
    declare bytes to be object pointers. What the pickle takes for NumPy are the small classes
    below, reached through functions made for this one load, so that nothing of it stays.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="bytes")
        make_bytes = lambda *args: _bytes(*args)  # noqa: E731
        self._allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): lambda: None,  # only ever named, as an argument
            ("numpy", "dtype"): lambda kind, *_: _Kind(kind),
            ("_codecs", "encode"): lambda *args: _encode(*args),
            ("builtins", "bytes"): make_bytes,
            ("builtins", "bytearray"): make_bytes,
            ("__builtin__", "bytes"): make_bytes,
            ("__builtin__", "bytearray"): make_bytes,
        }
        for core in ("numpy.core", "numpy._core"):
            self._allowed[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
            self._allowed[f"{core}.multiarray", "scalar"] = lambda kind, raw: kind.read(raw)[0]
            self._allowed[f"{core}.numeric", "_frombuffer"] = lambda raw, kind, *_: _Array(
                kind.read(raw)
            )

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the object {pid!r}")


class _Kind:
    """What stands for a dtype: of booleans and numbers, or of objects."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code = _text(code)
        self.order = "|"
        if self.code.startswith("O"):
            return
        if np.dtype(self.code).kind not in "biuf":
            raise _Refused(f"an array of {self.code}")

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def read(self, raw: Any) -> NDArray[Any]:
        """The numbers in ``raw``, in one dimension."""
        dtype = np.dtype(self.code)
        if self.order in ("<", ">"):
            dtype = np.dtype(f"{self.order}{dtype.str[1:]}")
        if dtype.hasobject or not isinstance(raw, (bytes, bytearray)):
            raise _Refused("numbers that are not bytes")
        return np.frombuffer(raw, dtype)


class _Array:
    """What stands for an array: its elements in order, as numbers or as a list of objects."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[Any] | list[Any] | None = None) -> None:
        self.values = [] if values is None else values

    def __setstate__(self, state: Any) -> None:
        _, _, kind, _, raw = state
        self.values = list(raw) if kind.code.startswith("O") else kind.read(raw)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _encode(text: str, encoding: Any = "latin-1") -> bytes:
    if _text(encoding) not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin-1")


def _bytes(content: Any = b"", encoding: Any = "latin-1") -> bytes:
    if isinstance(content, str):
        return _encode(content, encoding)
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    if isinstance(content, list) and not content:
        return b""
    raise _Refused(f"bytes of {type(content).__name__}")
