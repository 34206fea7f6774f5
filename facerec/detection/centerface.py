"""CenterFace: an anchor-free detector with five landmarks (Xu et al. 2019, arXiv 1911.03599)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.detection.base import NetworkDetector, RawDetections

_STRIDE = 4
_OUTPUTS = 4


class CenterFace(NetworkDetector):
    """Outputs, at stride 4: heatmap (N, 1, h, w), log size in cells (N, 2, h, w) as height and
    width, centre offset (N, 2, h, w) as y and x, landmarks (N, 10, h, w) as y, x pairs
    relative to the box's top-left corner, in units of its height and width.

    Above some 300 pixels its boxes shrink into the face and its landmarks drift: at 900, tight
    photos of one face embedded to a cosine of 0.95 with their originals, and some gave two
    faces; with the second look it is 0.996, and one."""

    large_face_px = 240

    def read(self, canvases: NDArray[np.uint8], *, wide: bool) -> list[RawDetections]:
        batch = self._blobs.fill(canvases)
        heatmap, log_size, offset, points = self.network.run(batch, wide=wide)
        self.check_scores(heatmap)
        return [
            self._read_one(heatmap[i, 0], log_size[i], offset[i], points[i])
            for i in range(len(batch))
        ]

    def _read_one(
        self,
        heatmap: NDArray[np.float32],
        log_size: NDArray[np.float32],
        offset: NDArray[np.float32],
        points: NDArray[np.float32],
    ) -> RawDetections:
        rows, columns = np.nonzero(heatmap >= self.spec.score_threshold)
        size_hw = np.exp(log_size[:, rows, columns]) * _STRIDE  # (2, K)
        centre_y = (rows + offset[0, rows, columns] + 0.5) * _STRIDE
        centre_x = (columns + offset[1, rows, columns] + 0.5) * _STRIDE
        top = centre_y - size_hw[0] / 2
        left = centre_x - size_hw[1] / 2
        boxes = np.stack([left, top, left + size_hw[1], top + size_hw[0]], axis=1)
        relative = points[:, rows, columns].reshape(5, 2, -1)  # (5, yx, K)
        landmarks = np.stack(
            [relative[:, 1] * size_hw[1] + left, relative[:, 0] * size_hw[0] + top], axis=2
        )  # (5, K, xy)
        return RawDetections(
            boxes.astype(np.float32),
            heatmap[rows, columns],
            landmarks.transpose(1, 0, 2).astype(np.float32),
        )
