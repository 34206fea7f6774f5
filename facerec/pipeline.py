"""Detect, align, embed: from images to faces. Imports the core only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facerec.alignment import align
from facerec.detection import Detector, load_detector
from facerec.embedding import Embedder
from facerec.packs.manifest import Pack
from facerec.runtime import Network, Workers, available_threads, resolve_device
from facerec.types import Detections, EmbeddingContract, Face, RGBImage, ThresholdTable


class Pipeline:
    """A model pack at work on one device.

    >>> pipeline = Pipeline.load(find_pack("bundled"))
    >>> [faces] = pipeline.extract([load_image("group.jpg")])
    >>> faces[0].embedding.shape
    (128,)

    Safe to share between threads. ``device`` is what was chosen: "cpu" or "cuda".
    """

    def __init__(
        self, pack: Pack, detector: Detector, embedder: Embedder, device: str, workers: Workers
    ) -> None:
        self.pack = pack
        self.detector = detector
        self.embedder = embedder
        self.device = device
        self._workers = workers

    @staticmethod
    def load(pack: Pack, *, device: str = "auto", threads: int | None = None) -> Pipeline:
        """The pipeline of ``pack`` on ``device`` ("auto", "cpu" or "cuda").

        threads: of the CPU; None for every core that this process may use. Checks the
        hashes of the model files. Raises ModelError for what is missing, damaged or does not
        load, and where CUDA is asked for and does not come up.
        """
        chosen = resolve_device(device)
        count = threads or available_threads()
        workers = Workers(count)
        pack.verify()
        detector = load_detector(pack, chosen, count, workers)
        embedder = Embedder(pack, Network(pack.embedder_path, chosen, count), workers)
        return Pipeline(pack, detector, embedder, chosen, workers)

    @property
    def contract(self) -> EmbeddingContract:
        """What this pipeline's embeddings mean."""
        return self.embedder.contract

    @property
    def thresholds(self) -> ThresholdTable | None:
        """The pack's measured thresholds, if it has any."""
        return self.pack.thresholds

    def extract(self, images: Sequence[RGBImage]) -> list[tuple[Face, ...]]:
        """Every face of every image, embedded; per image the best detection first.

        images: (H, W, 3) uint8 RGB each, of any sizes. Work is shared between the images,
        so that thirty together take less than thirty one by one.
        """
        return self.embed_detected(images, self.detector.detect(images))

    def embed_detected(
        self, images: Sequence[RGBImage], detections: Sequence[Detections]
    ) -> list[tuple[Face, ...]]:
        """The faces at ``detections``, one entry per image, in their order."""
        chips = self._workers.map(
            lambda pair: self.align(*pair), list(zip(images, detections, strict=True))
        )
        if not chips:
            return []
        embeddings = self.embedder.embed(np.concatenate(chips))
        faces: list[tuple[Face, ...]] = []
        start = 0
        for found in detections:
            rows = embeddings[start : start + len(found)]
            start += len(found)
            faces.append(
                tuple(
                    Face(box, points, score, row)
                    for (box, score, points), row in zip(found, rows, strict=True)
                )
            )
        return faces

    def align(self, image: RGBImage, detections: Detections) -> RGBImage:
        """Chips (N, S, S, 3) uint8 RGB of the faces, as the pack's embedder wants them."""
        return align(image, detections.landmarks, self.contract.template, self.contract.input_size)
