"""What the enrolment gate lets through: LFW as it is, smaller, and blurred.

    python benchmarks/gate.py --lfw lfw

Prints, for every n-th photo of LFW scaled and blurred on purpose, the share that the gate
accepts and the reasons of the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from facerec.image import load_image
from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import RGBImage

CASES = [(1.0, 0.0), (0.6, 0.0), (0.5, 0.0), (0.35, 0.0), (1.0, 1.5), (1.0, 2.5), (1.0, 4.0)]
BATCH = 32


def altered(image: RGBImage, scale: float, sigma: float) -> RGBImage:
    """Blurred by a Gaussian of ``sigma`` pixels, then scaled."""
    if sigma:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if scale != 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lfw", type=Path, required=True, help="NAME/NAME_0001.jpg")
    parser.add_argument("--every", type=int, default=10, help="take every n-th photo")
    args = parser.parse_args()
    pipeline, gate = Pipeline.load(find_pack("bundled")), Gate()
    paths = sorted(args.lfw.glob("*/*.jpg"))[:: args.every]
    print(f"{len(paths)} photos; {gate}")
    print("scale  sigma  no face  accepted  reasons")
    for scale, sigma in CASES:
        reasons: Counter[str] = Counter()
        accepted = missed = 0
        for start in range(0, len(paths), BATCH):
            images = [altered(load_image(p), scale, sigma) for p in paths[start : start + BATCH]]
            for image, faces in zip(images, pipeline.extract(images), strict=True):
                if not faces:
                    missed += 1
                    continue
                found = gate.check(image, faces[0])
                accepted += not found
                reasons.update(r.code for r in found)
        share = accepted / len(paths)
        print(f"{scale:5.2f}  {sigma:5.1f}  {missed:7d}  {share:8.1%}  {dict(reasons)}")


if __name__ == "__main__":
    main()
