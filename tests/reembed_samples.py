"""Templates of real faces with their crops, and a second pack, for the tests of reembed."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest

from facerec.alignment import align, loose_crop
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.types import Face, FloatArray
from gallery import NewTemplate
from tests.gallery_samples import sha


@pytest.fixture(scope="module", name="other_pack")
def other_pack_fixture(tmp_path_factory: pytest.TempPathFactory, bundled_pack: Pack) -> Pack:
    """The bundled models without the mirror image: another contract."""
    folder = tmp_path_factory.mktemp("packs") / "unflipped"
    shutil.copytree(bundled_pack.folder, folder)
    text = (folder / "pack.toml").read_text().replace("flip = true", "flip = false")
    (folder / "pack.toml").write_text(text.replace('name = "bundled"', 'name = "unflipped"'))
    return Pack.load(folder)


@pytest.fixture(scope="module", name="other")
def other_fixture(other_pack: Pack) -> Pipeline:
    return Pipeline.load(other_pack, device="cpu", threads=2)


@pytest.fixture(scope="module", name="faces")
def faces_fixture(pipeline: Pipeline, group_photo: np.ndarray) -> tuple[Face, ...]:
    """The six of the group photo, left to right."""
    return tuple(sorted(pipeline.extract([group_photo])[0], key=lambda face: face.box_xyxy[0]))


Views = Callable[[int, int], list[NewTemplate]]


@pytest.fixture(scope="module", name="views")
def views_fixture(pipeline: Pipeline, group_photo: np.ndarray, faces: tuple[Face, ...]) -> Views:
    """(who, count) -> as many templates of one of the six, each of another crop, with it."""

    def make(who: int, count: int) -> list[NewTemplate]:
        rng = np.random.default_rng(who)
        crop, landmarks = loose_crop(group_photo, faces[who].box_xyxy, faces[who].landmarks)
        jpegs = [
            to_jpeg(
                np.clip(crop * rng.uniform(0.8, 1.1) + rng.normal(0, 3, crop.shape), 0, 255).astype(
                    np.uint8
                )
            )
            for _ in range(count)
        ]
        rows = embed_crops(pipeline, jpegs, landmarks)
        return [
            NewTemplate(row, f"{who}-{i}.jpg", sha(f"{who}-{i}"), 0.9, jpeg, landmarks)
            for i, (row, jpeg) in enumerate(zip(rows, jpegs, strict=True))
        ]

    return make


def embed_crops(pipeline: Pipeline, jpegs: list[bytes], landmarks: FloatArray) -> FloatArray:
    """What re-embedding has to come to, by the core alone: (n, d)."""
    contract = pipeline.contract
    chips = [
        align(load_image(jpeg), landmarks[None], contract.template, contract.input_size)
        for jpeg in jpegs
    ]
    return pipeline.embedder.embed(np.concatenate(chips))
