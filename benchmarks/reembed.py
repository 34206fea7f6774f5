"""What a gallery loses when it moves to a new model by its crops instead of the original photos.

    python benchmarks/reembed.py --lfw lfw --pack FOLDER

On the photos of LFW's View 2. The old pack finds the face nearest the centre of each photo, and
the gallery's loose crop of it is cut and coded as an enrolment would. The new pack then embeds
each face four times: from the crop, with the landmarks stored beside it; from the crop, with those
that its own detector finds in it; from the photo, with the stored landmarks; and from the photo,
with the face that its own detector finds, as enrolling anew would. So what the crop costs and what
the other detector's landmarks do can be told apart.

Of every tenth photo the crop is also cut from the photo enlarged four times, where the face is
larger than the crop may be, and embedded beside that photo with the same landmarks.

Prints a table, and JSON with ``--json FILE``; ``--keep FILE`` keeps the embeddings and reads
them back.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from facerec.alignment import align, loose_crop
from facerec.evaluation import pair_similarities
from facerec.image import load_image, to_jpeg
from facerec.lfw import PAIRS_FILE, Protocol, central_faces, find_photos, read_protocol
from facerec.metrics import kfold_accuracy, operating_points
from facerec.packs import find_pack
from facerec.pairs import pair_scores
from facerec.pipeline import Pipeline
from facerec.types import Detections, FloatArray, RGBImage
from gallery.stored_faces import same_landmarks

ENLARGED = 4
EVERY = 10
WAYS = ("crop", "crop_detected", "same_landmarks", "anew")
NOBODY = np.zeros((0, 1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Cut:
    """A gallery's crop of one face, and the photo that it is of: images and (5, 2) landmarks."""

    crop: RGBImage
    in_crop: FloatArray
    photo: RGBImage
    in_photo: FloatArray


def cut(photo: RGBImage, faces: Detections, scale: int = 1) -> Cut:
    """Of the one face of ``faces``. scale: of ``photo`` to that in which the face was found."""
    box, landmarks = faces.boxes_xyxy[0] * scale, (faces.landmarks[0] + 0.5) * scale - 0.5
    crop, moved = loose_crop(photo, box, landmarks)
    return Cut(load_image(to_jpeg(crop)), moved, photo, landmarks)


def chips(pipeline: Pipeline, image: RGBImage, landmarks: FloatArray) -> RGBImage:
    contract = pipeline.contract
    return align(image, landmarks[None], contract.template, contract.input_size)


def ways_of(new: Pipeline, photo: RGBImage, faces: Detections, own: Detections) -> list[RGBImage]:
    """Chips by each of ``WAYS``: (1, S, S, 3), or none where no face was found."""
    anew = new.align(photo, own) if len(own) else NOBODY
    if not len(faces):
        return [NOBODY, NOBODY, NOBODY, anew]
    c = cut(photo, faces)
    again = same_landmarks(new.detector.detect([c.crop])[0], c.in_crop)
    return [
        chips(new, c.crop, c.in_crop),
        chips(new, c.crop, c.in_crop if again is None else again),
        chips(new, c.photo, c.in_photo),
        anew,
    ]


def big_ways_of(new: Pipeline, photo: RGBImage, faces: Detections) -> list[RGBImage]:
    large = cv2.resize(photo, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    c = cut(large, faces, ENLARGED)
    return [chips(new, c.crop, c.in_crop), chips(new, c.photo, c.in_photo)]


def embed_all(old: Pipeline, new: Pipeline, paths: list[Path]) -> dict[str, FloatArray]:
    """Each photo's embedding by each of ``WAYS``, (n, d), zeros without a face; of every tenth
    photo, enlarged, ``big_crop`` and ``big_photo``; ``sides`` (n,) of the crops, pixels."""
    rows: dict[str, list[FloatArray]] = {way: [] for way in (*WAYS, "big_crop", "big_photo")}
    sides: list[int] = []
    own = central_faces(new.detector, paths) if new.pack.name != old.pack.name else None
    began = time.perf_counter()
    for images, faces in central_faces(old.detector, paths):
        mine = next(own)[1] if own is not None else faces
        for image, found, again in zip(images, faces, mine, strict=True):
            made = dict(zip(WAYS, ways_of(new, image, found, again), strict=True))
            if len(found) and len(sides) % EVERY == 0:
                large = big_ways_of(new, image, found)
                made |= dict(zip(("big_crop", "big_photo"), large, strict=True))
            sides.append(max(cut(image, found).crop.shape[:2]) if len(found) else 0)
            some = [c for c in made.values() if len(c)]
            embedded = iter(new.embedder.embed(np.concatenate(some)) if some else ())
            for way, chip in made.items():
                rows[way].append(next(embedded) if len(chip) else np.zeros(new.contract.dim))
        rate = len(sides) / (time.perf_counter() - began)
        print(f"\r{len(sides):,} of {len(paths):,} photos, {rate:.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
    stacked = {way: np.array(r, np.float32) for way, r in rows.items()}
    return {**stacked, "sides": np.array(sides)}


def likeness(a: FloatArray, b: FloatArray) -> dict[str, float]:
    """How alike two embeddings of the same faces are: cosines."""
    cosines = np.einsum("nd,nd->n", a, b)[(a.any(axis=1)) & (b.any(axis=1))]
    return {
        "mean": float(cosines.mean()),
        "1 %": float(np.percentile(cosines, 1)),
        "lowest": float(cosines.min()),
    }


def accuracy(protocol: Protocol, left: FloatArray, right: FloatArray) -> dict[str, float]:
    """View 2 with the left photo of a pair from one set of rows and the right from another."""
    found = left.any(axis=1) & right.any(axis=1)
    both = np.concatenate([left, right])
    scores = pair_similarities(both, np.tile(found, 2), protocol.left, protocol.right + len(left))
    folds = kfold_accuracy(scores, protocol.same, protocol.fold)
    return {"mean": folds.mean, "std": folds.std}


def misses(protocol: Protocol, left: FloatArray, right: FloatArray) -> dict[str, float]:
    """FNMR at the thresholds for FMR 1e-3 and 1e-4 of ``right``'s own pairs, every pair of photos.

    The first photo of a pair is of the rows ``left``, the other of ``right``: a gallery is
    searched with probes that its new pack embeds, at that pack's thresholds.
    """
    found = left.any(axis=1) & right.any(axis=1)
    labels = protocol.labels[found]
    _, impostor = pair_scores(right[found], labels)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    a, b = first[same], second[same]
    genuine = np.einsum("nd,nd->n", left[found][a], right[found][b])
    points = operating_points(genuine, impostor, (1e-3, 1e-4))
    return {f"FMR {p.fmr:g}": p.fnmr for p in points}


def report(protocol: Protocol, rows: dict[str, FloatArray]) -> dict[str, Any]:
    """All figures, by name."""
    anew = rows["anew"]
    return {
        "cosine with anew": {way: likeness(rows[way], anew) for way in WAYS[:3]},
        "cosine of crop with same landmarks": likeness(rows["crop"], rows["same_landmarks"]),
        "the same, photos enlarged": likeness(rows["big_crop"], rows["big_photo"]),
        "accuracy": {way: accuracy(protocol, rows[way], rows[way]) for way in WAYS},
        "accuracy, one photo of a pair anew": {
            way: accuracy(protocol, rows[way], anew) for way in WAYS[:3]
        },
        "misses": {way: misses(protocol, rows[way], rows[way]) for way in WAYS},
        "misses, one photo of a pair anew": {
            way: misses(protocol, rows[way], anew) for way in WAYS[:3]
        },
        "crop side": {
            "median": float(np.median(rows["sides"])),
            "at the limit": float((rows["sides"] >= 256).mean()),
        },
        "no face": {way: int((~rows[way].any(axis=1)).sum()) for way in WAYS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--pack", default="bundled", help="the new one")
    parser.add_argument("--old", default="bundled", help="whose detector made the crops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    protocol = read_protocol(given.lfw / PAIRS_FILE)
    if given.keep and given.keep.exists():
        with np.load(given.keep) as data:
            rows = dict(data)
    else:
        old, new = (
            Pipeline.load(find_pack(name), device="cpu", threads=given.threads)
            for name in (given.old, given.pack)
        )
        rows = embed_all(old, new, find_photos(protocol, given.lfw))
        if given.keep:
            np.savez(given.keep, **rows)
    result = report(protocol, rows)
    for name, figures in result.items():
        print(f"{name}: {json.dumps(figures)}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
