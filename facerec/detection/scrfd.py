"""SCRFD, as the ``insightface`` package understands it (Guo et al. 2021, arXiv 2105.04714)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.detection.base import NetworkDetector, RawDetections
from facerec.errors import ModelError
from facerec.packs.manifest import DetectorSpec
from facerec.runtime import Network, Workers

_MEAN = (127.5, 127.5, 127.5)
_SCALE = (1 / 128, 1 / 128, 1 / 128)


class Scrfd(NetworkDetector):
    """insightface says what the graph's outputs are and decodes boxes and landmarks.

    It is given only the anchors above the threshold, a handful of ten thousand, and placing
    and suppression are ours: an image is padded to the next multiple of 32, not to a square.
    """

    def __init__(self, spec: DetectorSpec, network: Network, workers: Workers) -> None:
        super().__init__(spec, network, workers)
        from insightface.model_zoo.scrfd import SCRFD, distance2bbox, distance2kps

        reader = SCRFD(session=network.session(wide=True), static_shape_sessions=False)
        if not reader.use_kps:
            raise ModelError(
                f"{network.path}: not an SCRFD with landmarks; take a model whose name ends in "
                "'bnkps' or 'kps'"
            )
        self._strides: list[int] = reader._feat_stride_fpn
        self._anchors: int = reader._num_anchors
        self._to_boxes = distance2bbox
        self._to_landmarks = distance2kps

    def read(self, canvases: NDArray[np.uint8], *, wide: bool) -> list[RawDetections]:
        return [self._read_one(canvas, wide) for canvas in canvases]

    def _read_one(self, canvas: NDArray[np.uint8], wide: bool) -> RawDetections:
        batch = self._blobs.fill(canvas[None], mean=_MEAN, scale=_SCALE)
        outputs = self.network.run(batch, wide=wide)
        levels = len(self._strides)
        found = [
            self._read_level(
                stride,
                canvas.shape[1] // stride,
                outputs[i].reshape(-1),
                outputs[i + levels].reshape(-1, 4),
                outputs[i + 2 * levels].reshape(-1, 10),
            )
            for i, stride in enumerate(self._strides)
        ]
        scores, centres, sides, points = (np.concatenate(p) for p in zip(*found, strict=True))
        boxes: NDArray[np.float32] = self._to_boxes(centres, sides)
        landmarks: NDArray[np.float32] = self._to_landmarks(centres, points)
        return RawDetections(boxes, scores, landmarks.reshape(-1, 5, 2))

    def _read_level(
        self,
        stride: int,
        width: int,
        scores: NDArray[np.float32],
        sides: NDArray[np.float32],
        points: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], ...]:
        """The anchors above the threshold of one level, whose cells come row by row.

        Scores (K,), cell corners (K, 2), distances to the box's sides (K, 4) and to the
        landmarks (K, 10), all but the scores in network pixels.
        """
        self.check_scores(scores)
        keep = np.nonzero(scores >= self.spec.score_threshold)[0]
        rows, columns = np.divmod(keep // self._anchors, width)
        centres = np.empty((len(keep), 2), dtype=np.float32)
        centres[:, 0] = columns * stride
        centres[:, 1] = rows * stride
        return scores[keep], centres, sides[keep] * stride, points[keep] * stride
