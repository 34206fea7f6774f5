"""Pictures with every face boxed and named, for the web page and ``facerec identify --draw``.

A known face has a solid blue box, an unknown one a dashed orange box (Okabe and Ito's
palette, which colour-blind readers tell apart). Imports the core, NumPy, OpenCV and Pillow.

Names are set in DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic, Hebrew,
Arabic and more, but no Chinese, Japanese, Korean or emoji. For those an installed system
font is tried; where there is none the label says "face 3", counted as the faces come.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from facerec.errors import ImageError
from facerec.types import Decision, Face, FloatArray, RGBImage

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]

KNOWN: Colour = (0, 114, 178)
UNKNOWN: Colour = (230, 159, 0)
_INK: dict[Colour, Colour] = {KNOWN: (255, 255, 255), UNKNOWN: (0, 0, 0)}

_SYSTEM_FONTS = (
    "NotoSansCJK-Bold.ttc",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyhbd.ttc",
    "msyh.ttc",
    "YuGothB.ttc",
    "malgunbd.ttf",
    "unifont.ttf",
)
_LETTERS = (0.03, 0.025, 0.02, 0.016)
"""Heights of the letters to try, as shares of the image's longer side."""
_NO_GLYPH = "\U0010ffff"


@dataclass(frozen=True, eq=False)
class Mark:
    """A face to be boxed. box_xyxy: (4,) pixels. text: a name, or what else to say; score: cosine.

    known: which of the two styles.
    """

    box_xyxy: FloatArray
    text: str
    score: float | None = None
    known: bool = True


def draw_decisions(
    image: RGBImage,
    faces: Sequence[Face],
    decisions: Sequence[Decision],
    *,
    max_side: int | None = None,
) -> RGBImage:
    """A copy of the (H, W, 3) uint8 RGB image with each face's name, or unknown, and score.

    max_side: shrink a larger image first, so that lines and letters stay legible.
    """
    marks = []
    for face, decision in zip(faces, decisions, strict=True):
        best = decision.candidates[0].similarity if decision.candidates else None
        match = decision.match
        marks.append(
            Mark(face.box_xyxy, match.name if match else "unknown", best, match is not None)
        )
    return draw_marks(image, marks, max_side=max_side)


def draw_marks(image: RGBImage, marks: Sequence[Mark], *, max_side: int | None = None) -> RGBImage:
    """A copy of the (H, W, 3) uint8 RGB image with boxes and labels; see :class:`Mark`.

    The size of lines and letters follows that of the image. Labels avoid each other and
    stay inside the image where they can; a name too long for its place is cut.
    """
    small, factor = shrink(image, max_side)
    canvas = Image.fromarray(small)
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 280))
    boxes = [_box(mark, factor, canvas.size) for mark in marks]
    for mark, box in zip(marks, boxes, strict=True):
        _draw_box(draw, box, KNOWN if mark.known else UNKNOWN, width, dashed=not mark.known)
    for label in _labels(marks, boxes, canvas.size, 4 * width):
        colour = KNOWN if label.known else UNKNOWN
        draw.rectangle(label.place, fill=colour, outline=(0, 0, 0))
        draw.multiline_text(
            ((label.place[0] + label.place[2]) / 2, (label.place[1] + label.place[3]) / 2),
            label.text,
            font=label.font,
            fill=_INK[colour],
            anchor="mm",
            spacing=label.spacing,
        )
    return np.asarray(canvas, dtype=np.uint8).copy()


def shrink(image: RGBImage, max_side: int | None) -> tuple[RGBImage, float]:
    """The image with its longer side at most ``max_side`` pixels, and the factor applied."""
    factor = 1.0 if max_side is None else min(1.0, max_side / max(image.shape[:2]))
    if factor == 1.0:
        return image, factor
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), factor


def save_picture(image: RGBImage, path: str | Path) -> None:
    """Write the (H, W, 3) uint8 RGB image; the ending of ``path`` names the format.

    Raises ImageError for an ending that is no image format, or a path that cannot be written.
    """
    try:
        Image.fromarray(image).save(path)
    except ValueError as exc:
        raise ImageError(f"{path}: not the name of an image; end it in .png or .jpg") from exc
    except OSError as exc:
        raise ImageError(f"{path}: cannot be written ({exc.strerror or exc})") from exc


def _box(mark: Mark, factor: float, size: tuple[int, int]) -> Rectangle:
    """The box in pixels of the canvas, cut at its border."""
    scaled = np.clip(mark.box_xyxy * factor, 0, np.array(size * 2) - 1.0)
    x0, y0, x1, y1 = (float(v) for v in scaled)
    return x0, y0, max(x0, x1), max(y0, y1)


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, width: int, *, dashed: bool
) -> None:
    """The outline: coloured, on a dark edge, so that it stands out from any picture."""
    draw.rectangle(_grown(box, 1), outline=(0, 0, 0), width=width + 2)
    if not dashed:
        draw.rectangle(box, outline=colour, width=width)
        return
    x0, y0, x1, y1 = box
    dash = 4.0 * width
    for start in np.arange(x0, x1, 2 * dash):
        stop = min(start + dash, x1)
        draw.rectangle((start, y0, stop, y0 + width - 1), fill=colour)
        draw.rectangle((start, y1 - width + 1, stop, y1), fill=colour)
    for start in np.arange(y0, y1, 2 * dash):
        stop = min(start + dash, y1)
        draw.rectangle((x0, start, x0 + width - 1, stop), fill=colour)
        draw.rectangle((x1 - width + 1, start, x1, stop), fill=colour)


@dataclass(frozen=True)
class _Label:
    place: Rectangle
    text: str
    font: Font
    spacing: float
    known: bool


def _labels(
    marks: Sequence[Mark], boxes: Sequence[Rectangle], canvas: tuple[int, int], distance: float
) -> list[_Label]:
    """A label for each mark that says something, in the largest letters that leave room for all.

    distance: pixels to keep from other faces' boxes; a label that touches one would seem to
    belong to it.
    """
    labels: list[_Label] = []
    for share in _LETTERS:
        size = max(11, round(max(canvas) * share))
        labels, hidden = [], 0.0
        for i, (mark, box) in enumerate(zip(marks, boxes, strict=True)):
            font, text = _font_for(mark.text, f"face {i + 1}", size)
            text = _wrapped(text, mark.score, font, min(_room(box, size), canvas[0] - size))
            if not text:
                continue
            lines = text.split("\n")
            pad = max(2, size // 5)
            width = max(font.getlength(line) for line in lines) + 2 * pad
            others = [_grown(other, distance) for other in (*boxes[:i], *boxes[i + 1 :])]
            taken = [label.place for label in labels]
            extent = (width, size * 1.25 * len(lines) + 2 * pad)
            place, cost = _place(extent, box, others, taken, canvas)
            labels.append(_Label(place, text, font, size * 0.25, mark.known))
            hidden += cost
        if not hidden:
            break
    return labels


def _room(box: Rectangle, size: int) -> float:
    """How wide a label may be, for a face of this box and letters of this size."""
    return max(1.6 * (box[2] - box[0]), 9 * size)


def _wrapped(text: str, score: float | None, font: Font, room: float) -> str:
    """The text and the score on one line if they fit, else on two, the text cut to fit."""
    number = "" if score is None else f"{score:.2f}"
    line = " ".join(part for part in (text, number) if part)
    if font.getlength(line) <= room:
        return line
    return "\n".join(part for part in (_cut(text, font, room), number) if part)


def _place(
    size: tuple[float, float],
    box: Rectangle,
    others: Sequence[Rectangle],
    taken: Sequence[Rectangle],
    canvas: tuple[int, int],
) -> tuple[Rectangle, float]:
    """Above, below or inside the box, left-, right- or centre-aligned: where it hides least.

    Returns the place, and how much of other labels and faces it hides.
    """
    width, height = size
    x0, y0, x1, y1 = box
    lefts = (x0, x1 - width, (x0 + x1 - width) / 2)
    tops = (y0 - height, y1, y1 - height, y0)
    options = []
    for rank, (top, left) in enumerate((t, x) for t in tops for x in lefts):
        left = min(max(left, 0), canvas[0] - 1 - width)
        top = min(max(top, 0), canvas[1] - 1 - height)
        place = (left, top, left + width, top + height)
        hidden = 4 * sum(_overlap(place, other) for other in taken)
        hidden += 2 * sum(_overlap(place, other) for other in others)
        cost = hidden + _overlap(place, box) + 1e-3 * rank * width * height
        options.append((cost, hidden, place))
    _, hidden, place = min(options)
    return place, hidden


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _grown(box: Rectangle, by: float) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _cut(text: str, font: Font, room: float) -> str:
    """``text``, or its beginning and an ellipsis, in at most ``room`` pixels."""
    kept = text
    while len(kept) > 1 and font.getlength(kept + "…" * (kept != text)) > room:
        kept = kept[:-1].rstrip()
    return kept + "…" * (kept != text)


def _font_for(text: str, otherwise: str, size: int) -> tuple[Font, str]:
    """A font that has every letter of ``text``, and the text; else ``otherwise``."""
    font = _font(None, size)
    if text.isascii() or _has_glyphs(font, text):
        return font, text
    for name in _SYSTEM_FONTS:
        try:
            candidate = _font(name, size)
        except OSError:
            continue
        if _has_glyphs(candidate, text):
            return candidate, text
    return font, otherwise


def _has_glyphs(font: Font, text: str) -> bool:
    missing = bytes(font.getmask(_NO_GLYPH))
    return all(c.isspace() or bytes(font.getmask(c)) != missing for c in set(text))


@functools.lru_cache(maxsize=32)
def _font(name: str | None, size: int) -> Font:
    """The font of that file name; None: DejaVu Sans, or Pillow's own. Raises OSError."""
    if name is not None:
        return ImageFont.truetype(name, size)
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
