"""From aligned chips to unit embeddings, as a pack's manifest describes them.

Imports the core and NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facerec.alignment import find_template
from facerec.errors import ConfigError, ModelError
from facerec.packs.manifest import Pack
from facerec.runtime import Blobs, Network, Workers
from facerec.types import FloatArray, RGBImage

_CHIPS_PER_RUN = {"cpu": 8, "cuda": 128}
"""More do not run faster on a core, and cost memory; see benchmarks/pipeline.py."""


class Embedder:
    """A pack's embedder on one device.

    ``embed`` may be called from several threads. Raises ModelError where the file does
    not load, or its input is not what the manifest says.
    """

    def __init__(self, pack: Pack, network: Network, workers: Workers) -> None:
        self.contract = pack.contract
        self.network = network
        self._workers = workers
        size = self.contract.input_size
        try:
            find_template(self.contract.template)
        except ConfigError as exc:
            raise ModelError(f"pack {pack.name!r}: {exc}") from exc
        if network.fixed_size_hw not in (None, (size, size)):
            raise ModelError(
                f"{network.path}: takes chips of {network.fixed_size_hw}, but the pack's manifest "
                f"says input_size = {size}"
            )
        self._chips_per_run = network.fixed_batch or _CHIPS_PER_RUN[network.device]
        self._blobs = Blobs()

    def embed(self, chips: RGBImage) -> FloatArray:
        """Embeddings of aligned chips.

        chips: (N, S, S, 3) uint8 RGB, S the contract's input size, N may be 0. Returns
        (N, d) float32 of unit length. With ``flip`` in the contract, the embedding is the
        mean of the chip's and its mirror image's, then normalised. Raises ValueError for
        chips of another shape, ModelError where the network answers with another dimension
        or with NaN.
        """
        features = self.features(chips)
        return self._normalised(features) if len(features) else features

    def features(self, chips: RGBImage) -> FloatArray:
        """As :meth:`embed`, before the embeddings are given unit length: (N, d) float32."""
        size = self.contract.input_size
        if chips.dtype != np.uint8 or chips.shape[1:] != (size, size, 3):
            raise ValueError(
                f"chips: expected (N, {size}, {size}, 3) uint8, got {chips.shape} {chips.dtype}"
            )
        if not len(chips):
            return np.zeros((0, self.contract.dim), dtype=np.float32)
        step = self._step(len(chips))
        parts = [chips[i : i + step] for i in range(0, len(chips), step)]
        wide = len(parts) == 1
        raw = np.concatenate(self._workers.map(lambda p: self._run(p, wide=wide), parts))
        if raw.shape[1] != self.contract.dim:
            raise ModelError(
                f"{self.network.path}: gives {raw.shape[1]} numbers a face, but the pack's "
                f"manifest says dim = {self.contract.dim}"
            )
        return raw

    def _step(self, count: int) -> int:
        """Chips per run: what the graph allows, and no more than fills every thread."""
        if self.network.fixed_batch or self.network.device != "cpu":
            return self._chips_per_run
        share = -(-count // self._workers.threads)
        return min(self._chips_per_run, share) if count > 1 else 1

    def _run(self, chips: RGBImage, *, wide: bool) -> NDArray[np.float32]:
        out = self._forward(chips, wide=wide)
        if self.contract.flip:
            out = (out + self._forward(chips[:, :, ::-1], wide=wide)) * np.float32(0.5)
        return out

    def _forward(self, chips: RGBImage, *, wide: bool) -> NDArray[np.float32]:
        batch = self._blobs.fill(
            chips,
            bgr=self.contract.colour == "BGR",
            mean=self.contract.mean,
            scale=self.contract.scale,
        )
        demanded = self.network.fixed_batch
        if demanded and len(batch) < demanded:
            padding = np.zeros((demanded - len(batch), *batch.shape[1:]), dtype=np.float32)
            batch = np.concatenate([batch, padding])
        out = self.network.run(batch, wide=wide)[0]
        if out.shape[:1] != (len(batch),):
            raise ModelError(
                f"{self.network.path}: expected one embedding a chip, got an output of shape "
                f"{out.shape} for {len(batch)} chips"
            )
        return out.reshape(len(batch), -1)[: len(chips)].astype(np.float32, copy=False)

    def _normalised(self, raw: FloatArray) -> FloatArray:
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise ModelError(f"{self.network.path}: gave NaN, infinity or zero for a face")
        unit: FloatArray = raw / norms
        return unit
