"""YuNet: OpenCV's small detector with five landmarks (Wu et al. 2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.detection.base import NetworkDetector, RawDetections
from facerec.errors import ModelError

_STRIDES = (8, 16, 32)


class YuNet(NetworkDetector):
    """Outputs per stride s, over the cells row by row: cls_s, obj_s (N, cells, 1); bbox_s
    (N, cells, 4) as centre offset and log size in cells; kps_s (N, cells, 10) as xy offsets in
    cells. The score is sqrt(cls * obj)."""

    def read(self, canvases: NDArray[np.uint8], *, wide: bool) -> list[RawDetections]:
        batch = self._blobs.fill(canvases, bgr=True)
        outputs = dict(
            zip(self.network.output_names, self.network.run(batch, wide=wide), strict=True)
        )
        missing = [n for s in _STRIDES for n in _names(s) if n not in outputs]
        if missing:
            raise ModelError(f"{self.network.path}: not a YuNet; output {missing[0]} is missing")
        width = canvases.shape[2]
        return [self._read_one(outputs, i, width) for i in range(len(batch))]

    def _read_one(
        self, outputs: dict[str, NDArray[np.float32]], row: int, width: int
    ) -> RawDetections:
        scores, boxes, landmarks = [], [], []
        for stride in _STRIDES:
            cls, obj, bbox, kps = (outputs[name][row] for name in _names(stride))
            score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
            self.check_scores(score)
            cells = np.nonzero(score >= self.spec.score_threshold)[0]
            corner = np.stack([cells % (width // stride), cells // (width // stride)], axis=1)
            centre = (corner + bbox[cells, :2]) * stride
            half = np.exp(bbox[cells, 2:]) * stride / 2
            scores.append(score[cells])
            boxes.append(np.concatenate([centre - half, centre + half], axis=1))
            landmarks.append((corner[:, None] + kps[cells].reshape(-1, 5, 2)) * stride)
        return RawDetections(
            np.concatenate(boxes).astype(np.float32),
            np.concatenate(scores).astype(np.float32),
            np.concatenate(landmarks).astype(np.float32),
        )


def _names(stride: int) -> tuple[str, str, str, str]:
    return f"cls_{stride}", f"obj_{stride}", f"bbox_{stride}", f"kps_{stride}"
