"""Boxed and named faces: colours, places, letters, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facerec.draw import KNOWN, UNKNOWN, Mark, draw_decisions, draw_marks, save_picture, shrink
from facerec.errors import ImageError
from facerec.image import load_image
from facerec.types import Candidate, Decision, Face


def _grey(height: int = 300, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def _box(*xyxy: float) -> np.ndarray:
    return np.array(xyxy, np.float32)


def _has(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((image == np.array(colour, np.uint8)).all(axis=2).any())


def _face(*xyxy: float) -> Face:
    embedding = np.zeros(4, np.float32)
    embedding[0] = 1
    return Face(_box(*xyxy), np.zeros((5, 2), np.float32), 0.9, embedding)


def test_a_known_face_and_an_unknown_one_differ_in_colour_and_the_input_is_unchanged():
    image = _grey()
    near = Candidate(1, "Ada", 0.7, 1)
    known, unknown = Decision((near,), 0.5, 1e-3, 1e-3), Decision((near,), 0.8, 1e-3, 1e-3)
    face = _face(150, 120, 250, 230)
    blue = draw_decisions(image, [face], [known])
    orange = draw_decisions(image, [face], [unknown])
    assert _has(blue, KNOWN) and not _has(blue, UNKNOWN)
    assert _has(orange, UNKNOWN) and not _has(orange, KNOWN)
    assert (image == 128).all()


def test_an_empty_gallery_draws_unknown_without_a_score():
    drawn = draw_decisions(_grey(), [_face(150, 120, 250, 230)], [Decision((), 0.5, 1e-3, 0.0)])
    same = draw_marks(_grey(), [Mark(_box(150, 120, 250, 230), "unknown", None, known=False)])
    assert np.array_equal(drawn, same)


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 70), (340, 240, 400, 300), (-50, -50, 500, 500), (390, 290, 450, 350)]
)
def test_faces_at_the_border_are_drawn_inside_the_image(box):
    drawn = draw_marks(_grey(), [Mark(_box(*box), "A name that is far too long " * 4, 0.5)])
    assert drawn.shape == (300, 400, 3)
    assert _has(drawn, KNOWN)


def test_labels_keep_off_other_faces():
    boxes = [_box(100, 150, 150, 210), _box(100, 100, 150, 146)]  # one right above the other
    alone = draw_marks(_grey(), [Mark(boxes[1], "", None)])
    both = draw_marks(_grey(), [Mark(boxes[0], "Grace", 0.5), Mark(boxes[1], "", None)])
    inner = (slice(108, 140), slice(108, 142))
    assert np.array_equal(both[inner], alone[inner])


@pytest.mark.parametrize("name", ["Zoë Łukasiewicz", "Ольга", "Ελένη", "שלום"])
def test_letters_beyond_ascii_are_drawn_as_themselves(name):
    box = _box(150, 120, 250, 230)
    drawn = draw_marks(_grey(), [Mark(box, name)])
    number = draw_marks(_grey(), [Mark(box, "face 1")])
    other = draw_marks(_grey(), [Mark(box, name[::-1])])
    assert not np.array_equal(drawn, number)
    assert not np.array_equal(drawn, other)


def test_a_name_that_no_font_can_draw_becomes_the_number_of_the_face():
    box = _box(150, 120, 250, 230)
    drawn = draw_marks(_grey(), [Mark(box, "\U000f1234", 0.5)])  # private use: no font has it
    assert np.array_equal(drawn, draw_marks(_grey(), [Mark(box, "face 1", 0.5)]))


def test_a_large_picture_is_shrunk_first_and_a_small_one_never_enlarged():
    drawn = draw_marks(_grey(1000, 2000), [Mark(_box(100, 100, 300, 300), "Ada")], max_side=500)
    assert drawn.shape == (250, 500, 3)
    small, factor = shrink(_grey(), 1000)
    assert factor == 1.0 and small.shape == (300, 400, 3)


def test_a_picture_is_saved_in_the_format_of_its_name(tmp_path: Path):
    save_picture(_grey(), tmp_path / "out.png")
    assert np.array_equal(load_image(tmp_path / "out.png"), _grey())
    with pytest.raises(ImageError, match=r"out\.xyz.*\.png or \.jpg"):
        save_picture(_grey(), tmp_path / "out.xyz")
    with pytest.raises(ImageError, match="cannot be written"):
        save_picture(_grey(), tmp_path / "missing" / "out.png")
