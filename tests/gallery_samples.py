"""Small galleries of random unit vectors, for the tests of the gallery package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from facerec.types import EmbeddingContract, FloatArray, ThresholdTable
from gallery import Gallery, NewTemplate
from tests.gallery_engines import place

DIM = 32

CONTRACT = EmbeddingContract(
    embedder_sha256="ab" * 32,
    template="arcface-112",
    input_size=112,
    colour="RGB",
    mean=(127.5, 127.5, 127.5),
    scale=(1 / 127.5, 1 / 127.5, 1 / 127.5),
    flip=True,
    dim=DIM,
)

TABLE = ThresholdTable(
    fmr=(1e-1, 1e-2, 1e-3, 1e-4),
    cosine=(0.2, 0.35, 0.5, 0.6),
    fnmr=(0.0, 0.01, 0.02, 0.05),
    measured_on="made up for the tests",
)

JPEG = b"\xff\xd8\xff\xe0"


def unit(seed: int, n: int | None = None, dim: int = DIM) -> FloatArray:
    """(dim,) or (n, dim) random unit vectors."""
    rows = np.random.default_rng(seed).standard_normal((1 if n is None else n, dim))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return vectors[0] if n is None else vectors


def near(vector: FloatArray, cosine: float, seed: int = 0) -> FloatArray:
    """A unit vector whose similarity to ``vector`` is ``cosine``."""
    other = np.random.default_rng((77, seed)).standard_normal(vector.shape)
    other -= (other @ vector) * vector.astype(np.float64)
    other /= np.linalg.norm(other)
    mixed = cosine * vector.astype(np.float64) + np.sqrt(1 - cosine**2) * other
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def template(embedding: FloatArray, photo: str = "photo", crop: bytes | None = None) -> NewTemplate:
    """A template of the photo of that name; ``crop``: what its JPEG holds."""
    return NewTemplate(
        embedding=embedding,
        source=f"{photo}.jpg",
        content_sha256=sha(photo),
        det_score=0.9,
        crop_jpeg=None if crop is None else JPEG + crop,
        landmarks=None if crop is None else np.arange(10, dtype=np.float32).reshape(5, 2),
    )


def open_gallery(folder: Path) -> Gallery:
    return Gallery.open(place(folder), contract=CONTRACT, thresholds=TABLE, pack_name="sample")


def fill(gallery: Gallery, people: int, each: int = 1, seed: int = 0) -> FloatArray:
    """Enrol "person 0" and so on; returns their vectors, (people, each, DIM)."""
    vectors = unit(seed, people * each).reshape(people, each, DIM)
    for i in range(people):
        gallery.enroll(
            f"person {i}", [template(vectors[i, j], f"{seed}-{i}-{j}") for j in range(each)]
        )
    return vectors
