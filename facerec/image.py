"""Reading images: file, bytes or array in, RGB uint8 HxWx3 out.

Everything that goes wrong with an image goes wrong here, as an ImageError that
names the image. Imports the core, NumPy and Pillow.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from facerec.errors import ImageError
from facerec.types import RGBImage

DEFAULT_MAX_PIXELS = 120_000_000
_MAX_SIDE = 32_767
"""OpenCV's warps address the source with 16-bit integers."""
_MAX_BYTES = 1 << 30
"""Of a file: an uncompressed TIFF of 120 megapixels and 16 bits has three quarters of it."""

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        AvifImagePlugin.AvifImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)
"""What is decoded; everything else is refused, so that exotic decoders see no input."""

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .mpo .png .webp .bmp .tif .tiff .gif .avif .jp2 .ppm .pgm".split()
)
"""File name endings that a folder walk takes for photos."""

_JPEG2000_END = b"\xff\xd9"
_ORIENTATION_TAG = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Upright from EXIF's orientation (CIPA DC-008, tag 274); Pillow rotates counter-clockwise."""

ImageSource = str | Path | bytes | NDArray[np.uint8]


def load_image(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> RGBImage:
    """The image as (H, W, 3) uint8 RGB, upright.

    EXIF orientation is applied; CMYK, grey, palette and 16-bit images are converted;
    transparent pixels become white; of an animation the first frame counts. An array is
    taken as RGB(A) or grey and checked, not converted from BGR.

    Raises ImageError, naming the image and the reason: no such file, a folder, empty,
    not an image, truncated, or more than ``max_pixels`` (checked before decoding).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError(f"{name}: empty (0 bytes)")
    try:
        with _open(data) as image:
            _check_size(name, image.width, image.height, max_pixels)
            # OpenJPEG gives black for what is missing. Its marker of the end occurs nowhere else.
            if image.format == "JPEG2000" and _JPEG2000_END not in data:
                raise ImageError(f"{name}: damaged or truncated: its end is missing")
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(
            f"{name}: not an image that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF and AVIF "
            f"can){_hint(data)}"
        ) from exc
    except Image.DecompressionBombError as exc:  # of a TIFF's tile; all else is ours to check
        raise ImageError(f"{name}: refused before decoding: {exc}") from exc
    except MemoryError as exc:
        raise ImageError(f"{name}: not enough memory to decode it") from exc
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... for damage.
    except Exception as exc:
        raise ImageError(f"{name}: damaged or truncated: {exc}") from exc


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes. Raises ImageError for what is missing, a folder, huge or unreadable."""
    try:
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _MAX_BYTES:
                raise ImageError(
                    f"{path}: {size / 2**30:.1f} GiB are more than any photo has; is it a film?"
                )
            return stream.read()
    except IsADirectoryError as exc:
        raise ImageError(f"{path}: a folder, where an image file is meant") from exc
    except FileNotFoundError as exc:
        raise ImageError(f"{path}: no such file") from exc
    except (OSError, ValueError) as exc:
        raise ImageError(f"{path}: cannot be read: {exc}") from exc


def to_jpeg(image: RGBImage, quality: int = 90) -> bytes:
    """The (H, W, 3) uint8 RGB image as JPEG, without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > _MAX_SIDE:
        raise ImageError(
            f"{name}: {width}x{height} pixels are more than the limit of {max_pixels:,} "
            f"(and {_MAX_SIDE:,} a side); scale it down, or raise the setting max_pixels"
        )


def _open(data: bytes) -> Image.Image:
    """What Image.open does with ``FORMATS``, but for Pillow's size check.

    That is one limit for the whole process, which warns from 89 megapixels (phones have
    108) and refuses from 179, whatever ``max_pixels`` allows.
    """
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(data[:16])
        if isinstance(accepted, str) or not accepted:  # a string says what Pillow was built without
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open: another's file
            continue
    raise UnidentifiedImageError("no decoder knows these bytes")


def _to_rgb(image: Image.Image) -> RGBImage:
    """Decode, turn upright, and bring any of Pillow's modes to RGB."""
    image.load()
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _sixteen_bit_to_rgb(np.asarray(image))
    if image.mode in ("I", "F"):
        return _deep_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says.

    Not by ImageOps.exif_transpose, which also writes the EXIF anew, and fails where that is
    broken: EXIF that cannot be read says nothing against the pixels.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # Pillow's parser raises whatever it trips over
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _sixteen_bit_to_rgb(grey: NDArray[np.generic]) -> RGBImage:
    """Grey (H, W) of 0..65535 to RGB uint8."""
    return _repeat(grey.astype(np.float64) / 257)


def _deep_to_rgb(grey: NDArray[np.generic]) -> RGBImage:
    """Grey (H, W) of 32 bits to RGB uint8. The format does not say where white is: it is the
    lowest of 1 (floats only), 255 and 65535 that no pixel exceeds."""
    values = np.nan_to_num(grey.astype(np.float64))
    brightest = values.max(initial=0)
    if np.issubdtype(grey.dtype, np.floating) and brightest <= 1:
        return _repeat(values * 255)
    return _repeat(values / 257 if brightest > 255 else values)


def _repeat(grey: NDArray[np.float64]) -> RGBImage:
    byte = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(byte[..., None], 3, axis=2)


def _from_array(array: NDArray[np.uint8], max_pixels: int) -> RGBImage:
    name = "the image array"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"{name}: expected uint8 (H, W, 3), got {array.dtype} {array.shape}")
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ImageError(f"{name}: expected 3 channels (RGB), got {array.shape[2]}")
    _check_size(name, array.shape[1], array.shape[0], max_pixels)
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.shape[2] == 4:
        return _to_rgb(Image.fromarray(array, "RGBA"))
    return np.ascontiguousarray(array)


def _hint(data: bytes) -> str:
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheim", b"ftyphevc"):
        return ": it is HEIC, as phones save it; export it as JPEG first"
    return ""
