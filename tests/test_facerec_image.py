"""Reading images: every mode, format and orientation against arrays that are known."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from facerec.errors import ImageError
from facerec.image import FORMATS, SUFFIXES, load_image, to_jpeg


def _gradient(height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth, and different in every corner: red grows right, green down, blue is diagonal."""
    y, x = np.mgrid[:height, :width]
    channels = (x * 255 / (width - 1), y * 255 / (height - 1), (x + y) * 2)
    return np.stack(channels, axis=2).round().astype(np.uint8)


GRADIENT = _gradient()
GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))


def _encode(image: np.ndarray | Image.Image, format_: str, **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of writing mode I as PNG
        picture.save(buffer, format_, **options)
    return buffer.getvalue()


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _assert_is_rgb(image: np.ndarray) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags.c_contiguous


# Formats


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
    ],
)
def test_lossless_formats_come_back_exactly(format_: str, options: dict[str, object]) -> None:
    image = load_image(_encode(GRADIENT, format_, **options))
    _assert_is_rgb(image)
    np.testing.assert_array_equal(image, GRADIENT)


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("MPO", {"quality": 95}),
    ],
)
def test_lossy_formats_come_back_nearly(format_: str, options: dict[str, object]) -> None:
    image = load_image(_encode(GRADIENT, format_, **options))
    _assert_is_rgb(image)
    assert image.shape == GRADIENT.shape
    assert np.abs(image.astype(int) - GRADIENT).mean() < 3  # channels in another order: over 50


def test_a_gif_comes_back_exactly() -> None:
    np.testing.assert_array_equal(load_image(_encode(GREY, "GIF")), _rgb(GREY))


@pytest.mark.parametrize("format_", ["ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_refused(format_: str) -> None:
    assert format_ not in FORMATS
    with pytest.raises(ImageError, match="not an image that can be read"):
        load_image(_encode(GRADIENT, format_))


def test_suffixes_are_lower_case_and_start_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp"} <= SUFFIXES
    assert all(s.startswith(".") and s == s.lower() for s in SUFFIXES)


def test_bytes_str_and_path_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data := _encode(GRADIENT, "JPEG"))
    expected = load_image(data)
    np.testing.assert_array_equal(load_image(path), expected)
    np.testing.assert_array_equal(load_image(str(path)), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_smallest_images(format_: str, size: tuple[int, int]) -> None:
    image = load_image(_encode(Image.new("RGB", size, (10, 200, 30)), format_))
    _assert_is_rgb(image)
    assert image.shape == (size[1], size[0], 3)
    assert np.abs(image.astype(int) - (10, 200, 30)).max() <= 12


# Modes


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    "deep", [GREY.astype(np.uint16) * 257, GREY.astype(np.int32) * 257], ids=["I;16", "I"]
)
def test_sixteen_bit_grey_keeps_its_high_byte(format_: str, deep: np.ndarray) -> None:
    np.testing.assert_array_equal(load_image(_encode(deep, format_)), _rgb(GREY))


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_a_dark_sixteen_bit_photo_stays_dark(format_: str) -> None:
    """All of its values are below 256 of 65,535: black, not an 8-bit photo."""
    dark = GREY.astype(np.uint16)
    assert load_image(_encode(dark, format_)).max() <= 1


def test_sixteen_bit_netpbm_is_scaled_by_its_maximum() -> None:
    values = np.array([0, 100, 512, 1023], ">u2").tobytes()
    image = load_image(b"P5 4 1 1023\n" + values)
    np.testing.assert_allclose(image[0, :, 0], [0, 25, 128, 255], atol=1)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_grey_is_taken_as_zero_to_one_or_to_255(top: float) -> None:
    values = (GREY / 255 * top).astype(np.float32)
    np.testing.assert_array_equal(load_image(_encode(values, "TIFF")), _rgb(GREY))


def test_float_grey_with_nan_and_infinity_is_clipped() -> None:
    values = np.array([[np.nan, -5.0, 0.5, 1.0], [0, 0, 0, 0]], np.float32)
    assert load_image(_encode(values, "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(("format_", "tolerance"), [("JPEG", 3), ("TIFF", 0)])
def test_cmyk(format_: str, tolerance: int) -> None:
    cmyk = Image.fromarray(GRADIENT).convert("CMYK")
    options = {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {}
    image = load_image(_encode(cmyk, format_, **options))
    # Without black, R = 255 - C: written out here, not taken from Pillow.
    expected = 255 - np.asarray(cmyk).astype(int)[..., :3]
    assert np.abs(image.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit(format_: str) -> None:
    bits = Image.fromarray(GREY).convert("1")
    expected = _rgb(np.asarray(bits).astype(np.uint8) * 255)
    np.testing.assert_array_equal(load_image(_encode(bits, format_)), expected)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette(format_: str) -> None:
    palette = Image.fromarray(GRADIENT).quantize(64)
    expected = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    np.testing.assert_array_equal(load_image(_encode(palette, format_)), expected)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG2000"])
def test_transparent_pixels_become_white_and_others_mix(format_: str) -> None:
    alpha = np.tile(np.array([0, 64, 128, 255], np.uint8), (40, 14))
    rgba = np.dstack([GRADIENT, alpha])
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    image = load_image(_encode(rgba, format_, **options))
    share = alpha[..., None] / 255
    expected = GRADIENT * share + 255 * (1 - share)
    assert np.abs(image - expected).max() <= 1
    np.testing.assert_array_equal(load_image(rgba), image)


def test_grey_with_alpha() -> None:
    pixels = np.dstack([GREY, np.full_like(GREY, 128)])
    expected = GREY * (128 / 255) + 255 * (127 / 255)
    image = load_image(_encode(Image.fromarray(pixels, "LA"), "PNG"))
    assert np.abs(image - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    key = (0, 0, 0) if mode == "RGB" else 0
    picture = Image.fromarray(GREY).convert(mode)
    image = load_image(_encode(picture, "PNG", transparency=key))
    black = np.asarray(picture.convert("L")) == 0
    assert (image[black] == 255).all()
    assert (image[~black] > 0).all()


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_an_animation_the_first_frame_counts(format_: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    data = _encode(frames[0], format_, save_all=True, append_images=frames[1:])
    image = load_image(data)
    assert image.shape == (24, 32, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 4


# Orientation

# From the EXIF standard (CIPA DC-008, tag 274): what turns the stored array upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def _stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array that ``orientation`` turns into ``upright``: all but 6 and 8 are involutions."""
    return np.ascontiguousarray(UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)](upright))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format_", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("MPO", {"quality": 95, "subsampling": 0}, 3),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("AVIF", {"quality": 95}, 3),
    ],
)
def test_every_orientation_comes_out_upright(
    format_: str, options: dict[str, object], tolerance: int, orientation: int
) -> None:
    stored = _stored(GRADIENT, orientation)
    np.testing.assert_array_equal(UPRIGHT[orientation](stored), GRADIENT)
    exif = Image.Exif()
    exif[274] = orientation
    image = load_image(_encode(stored, format_, exif=exif, **options))
    _assert_is_rgb(image)
    assert image.shape == GRADIENT.shape
    assert np.abs(image.astype(int) - GRADIENT).mean() <= tolerance


def test_sixteen_bit_photos_are_turned_too() -> None:
    exif = Image.Exif()
    exif[274] = 6
    stored = _stored(_rgb(GREY), 6)[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(load_image(_encode(stored, "PNG", exif=exif)), _rgb(GREY))


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[274] = value
    np.testing.assert_array_equal(load_image(_encode(GRADIENT, "PNG", exif=exif)), GRADIENT)


_BROKEN_EXIF = {
    "not TIFF": b"garbage",
    "cut after the byte order": b"II*\0",
    "points outside": b"II*\0\xff\xff\xff\x7f",
    "claims 65,535 entries": b"II*\0\x08\0\0\0\xff\xff",
    "orientation as text": b"II*\0\x08\0\0\0\x01\0"
    + struct.pack("<HHI4s", 274, 2, 2, b"6\0\0\0")
    + bytes(4),
}


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", _BROKEN_EXIF.values(), ids=_BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_cost_the_photo(format_: str, exif: bytes) -> None:
    options: dict[str, object] = {"quality": 95} if format_ == "JPEG" else {}
    if format_ == "WEBP":
        options = {"lossless": True}
    image = load_image(_encode(GRADIENT, format_, exif=b"Exif\0\0" + exif, **options))
    assert image.shape == GRADIENT.shape
    assert np.abs(image.astype(int) - GRADIENT).mean() < 3


# Damage

_DAMAGED = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "avif": ("AVIF", {}),
    "jpeg 2000": ("JPEG2000", {}),
    "ppm": ("PPM", {}),
}


@functools.cache
def _whole(name: str) -> tuple[bytes, np.ndarray]:
    format_, options = _DAMAGED[name]
    data = _encode(GRADIENT, format_, **options)
    return data, load_image(data)


def _array_or_error(data: bytes) -> np.ndarray | None:
    """The image, None where it was refused properly; everything else is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about the damage
        try:
            return load_image(data)
        except ImageError as exc:
            assert str(exc).startswith("the image: ")
            return None


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "webp", "gif"])
def test_half_a_file_is_refused_as_truncated(name: str) -> None:
    data, _ = _whole(name)
    with pytest.raises(ImageError, match="the image: damaged or truncated"):
        load_image(data[: len(data) // 2])


@settings(max_examples=300, deadline=None, derandomize=True)
@example(name="jpeg 2000", cut=0.48046875)  # between header and pixels: was black, not refused
@given(name=st.sampled_from(sorted(_DAMAGED)), cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused_or_lacks_nothing(name: str, cut: float) -> None:
    data, whole = _whole(name)
    image = _array_or_error(data[: int(cut * len(data))])
    if image is not None:  # only a trailer is gone, such as PNG's IEND
        np.testing.assert_array_equal(image, whole)


@pytest.mark.parametrize("name", sorted(_DAMAGED))
def test_a_file_cut_in_its_last_bytes(name: str) -> None:
    data, whole = _whole(name)
    for missing in range(1, min(16, len(data))):
        image = _array_or_error(data[:-missing])
        if image is not None:
            np.testing.assert_array_equal(image, whole)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    name=st.sampled_from(sorted(_DAMAGED)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_a_damaged_file_is_refused_or_is_an_image(
    name: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(_whole(name)[0])
    for where, value in changes:
        data[int(where * len(data))] = value
    image = _array_or_error(bytes(data))
    if image is not None:
        _assert_is_rgb(image)


_MAGIC = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"]
_MAGIC += [b"RIFF\0\1\0\0WEBPVP8 ", b"\0\0\0\x20ftypavif", b"P6 4 4 255\n", b"\xff\x4f\xff\x51"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(magic=st.sampled_from(_MAGIC), rest=st.binary(max_size=400))
def test_random_bytes_are_refused_or_are_an_image(magic: bytes, rest: bytes) -> None:
    image = _array_or_error(magic + rest)
    if image is not None:
        _assert_is_rgb(image)


# Bombs


def _png(width: int, height: int, pixels: bytes, bits: int = 8) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _bombs(side: int) -> dict[str, bytes]:
    """Small files that claim side x side pixels; the PNG truly holds them."""
    squeeze = zlib.compressobj(9)
    row_block = bytes((side + 1) * 100)
    pixels = b"".join(squeeze.compress(row_block) for _ in range(side // 100)) + squeeze.flush()
    jpeg = bytearray(_encode(GREY, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    bmp = bytearray(_encode(GREY, "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(_encode(GREY, "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    ppm = b"P6 %d %d 255\n" % (side, side) + bytes(100)
    return {
        "PNG": _png(side, side, pixels),
        "JPEG": bytes(jpeg),
        "BMP": bytes(bmp),
        "GIF": bytes(gif),
        "PPM": ppm,
    }


_LOAD_BOMBS = """
import json, resource, sys, time
from pathlib import Path
from facerec.errors import ImageError
from facerec.image import load_image
kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answers = {}
load_image(Path(sys.argv[1]) / "harmless")
for path in sorted(Path(sys.argv[1]).glob("*.bomb")):
    before, start = kib(), time.perf_counter()
    try:
        load_image(path)
    except ImageError as exc:
        answers[path.stem] = [str(exc), kib() - before, time.perf_counter() - start]
print(json.dumps(answers))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory says whether 400 megapixels were decoded."""
    bombs = _bombs(20_000)
    for name, data in bombs.items():
        assert len(data) < 2_000_000
        (tmp_path / f"{name}.bomb").write_bytes(data)
    (tmp_path / "harmless").write_bytes(_encode(GREY, "PNG"))
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_BOMBS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    answers = json.loads(done.stdout)
    assert set(answers) == set(bombs)
    for name, (message, grown_kib, seconds) in answers.items():
        assert message.startswith(str(tmp_path / f"{name}.bomb"))
        assert "20000x20000" in message
        assert grown_kib < 20_000, name  # decoded, it would be 400,000 and more
        assert seconds < 0.5, name


def test_the_pixel_limit_is_exact_and_named() -> None:
    data = _encode(GRADIENT, "PNG")
    pixels = GRADIENT.shape[0] * GRADIENT.shape[1]
    assert load_image(data, max_pixels=pixels).shape == GRADIENT.shape
    assert load_image(GRADIENT, max_pixels=pixels).shape == GRADIENT.shape
    for source in (data, GRADIENT):
        with pytest.raises(ImageError, match=r"56x40 pixels .* limit of 2,239 .*max_pixels"):
            load_image(source, max_pixels=pixels - 1)


def test_our_limit_decides_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of, then refuses, what is larger than its own global limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format_ in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF"):
            assert load_image(_encode(GRADIENT, format_)).shape == GRADIENT.shape
            small = _encode(GRADIENT[:30, :50], format_)
            assert load_image(small).shape == (30, 50, 3)


def test_a_strip_longer_than_opencv_can_address_is_refused() -> None:
    for shape in ((1, 32_768, 3), (32_768, 1, 3)):
        with pytest.raises(ImageError, match="32768"):
            load_image(np.zeros(shape, np.uint8))
    assert load_image(np.zeros((1, 32_767, 3), np.uint8)).shape == (1, 32_767, 3)


# Names and reasons


@pytest.mark.parametrize(
    "name", ["zoé.jpg", "名前.jpg", "two\nlines.jpg", "a b'c\".jpg", "\U0001f600.jpg", "-rf"]
)
def test_any_file_name_is_read_and_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_encode(GRADIENT, "PNG"))
    np.testing.assert_array_equal(load_image(path), GRADIENT)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(str(path))


def test_each_reason_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo")
    for source, reason in [
        (tmp_path / "missing.jpg", "no such file"),
        (tmp_path, "a folder"),
        (empty, r"empty \(0 bytes\)"),
        (text, "not an image that can be read"),
        ("nul\0byte.jpg", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(source)
        assert str(caught.value).startswith(str(source))
    with pytest.raises(ImageError, match=r"the image: empty \(0 bytes\)"):
        load_image(b"")


def test_a_file_too_large_for_a_photo_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # sparse: takes no space on the disk
    with pytest.raises(ImageError, match=r"film\.jpg: 3\.0 GiB"):
        load_image(path)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"heim", b"hevc"])
def test_heic_comes_with_advice(brand: bytes) -> None:
    with pytest.raises(ImageError, match=r"HEIC.*export it as JPEG"):
        load_image(b"\0\0\0\x18ftyp" + brand + bytes(100))


# Arrays


def test_arrays_are_checked() -> None:
    for array, reason in [
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((4, 4, 3), np.uint16), "expected uint8"),
        (np.zeros((4, 4, 3), bool), "expected uint8"),
        (np.zeros((4, 4, 3), np.int8), "expected uint8"),
        (np.zeros((4,), np.uint8), "expected uint8"),
        (np.zeros((1, 4, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((4, 0, 3), np.uint8), "expected uint8"),
        (np.zeros((4, 4, 1), np.uint8), "3 channels"),
        (np.zeros((4, 4, 2), np.uint8), "3 channels"),
        (np.zeros((3, 4, 5), np.uint8), "3 channels"),
    ]:
        with pytest.raises(ImageError, match=reason):
            load_image(array)  # type: ignore[arg-type]


def test_arrays_pass_and_become_contiguous() -> None:
    np.testing.assert_array_equal(load_image(GRADIENT), GRADIENT)
    np.testing.assert_array_equal(load_image(GREY), _rgb(GREY))
    for view in (GRADIENT[:, ::-1], GRADIENT[::2, ::3], np.asfortranarray(GRADIENT)):
        image = load_image(view)
        _assert_is_rgb(image)
        np.testing.assert_array_equal(image, view)


# Writing


def test_to_jpeg_is_close_and_carries_no_metadata() -> None:
    for view in (GRADIENT, GRADIENT[:, ::-1], GRADIENT[5:30, 7:50]):
        data = to_jpeg(view)
        error = load_image(data).astype(float) - view
        assert 10 * np.log10(255**2 / (error**2).mean()) > 30  # PSNR in dB
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert not image.getexif()


def test_to_jpeg_grows_with_quality() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(to_jpeg(noisy, quality)) for quality in (30, 60, 90)]
    assert sizes == sorted(set(sizes))
