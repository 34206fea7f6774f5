"""Embeddings of a labelled set, and what they say about people that training has not seen.

Imports torch, NumPy and the core.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from facerec import metrics
from facerec.errors import ConfigError, ModelError
from facerec.pairs import pair_scores
from training.backbones import Backbone
from training.data import FaceDataset, FaceSource, OrderedSampler, make_loader


class NoDirection(ModelError):
    """A network gave NaN, infinity or zero for a face: what divergence looks like from outside."""


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[None]:
    """The backbone's precision: bfloat16, float16, or None for float32 throughout."""
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


@torch.no_grad()
def embed(
    backbone: Backbone,
    source: FaceSource,
    *,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 128,
    workers: int = 0,
    precision: torch.dtype | None = None,
    flip: bool = False,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Unit embeddings (n, d) float32 on the CPU, and the images (n,) of ``source`` they are of.

    rank, world: which part of the set. flip: add the embedding of the mirror image to each, as a
    pack with ``flip`` does. Images that cannot be read are left out, more than 1 %
    of them is an ImageError. The network is in evaluation mode while this runs, on the device
    where it is. Raises NoDirection for an embedding that is not finite or zero.
    """
    device = next(backbone.parameters()).device
    dataset = FaceDataset(source, backbone.preprocessing)
    sampler = OrderedSampler(len(source), rank=rank, world=world)
    was_training = backbone.training
    backbone.eval()
    found, indices = [], []
    try:
        for batch in make_loader(dataset, sampler, batch_size, workers):
            # chips (b, 3, S, S) uint8 -> images (b, 3, S, S) float32 -> (b, d)
            images = backbone.preprocessing.apply(batch.images.to(device))
            with autocast(device, precision):
                embeddings = backbone(images)
                if flip:
                    embeddings = embeddings + backbone(images.flip(3))
            embeddings = embeddings.float()
            lengths = torch.linalg.vector_norm(embeddings, dim=1)  # (b,)
            if not (lengths.isfinite() & (lengths > 0)).all():
                raise NoDirection(f"{backbone.name}: gave NaN, infinity or zero for a face")
            found.append(F.normalize(embeddings).cpu())
            indices.append(batch.indices)
    finally:
        backbone.train(was_training)
    if not found:
        return torch.zeros(0, backbone.embedding_dim), np.zeros(0, np.int64)
    # A substitute for an unreadable image is one that has been seen: count it once.
    kept, first = np.unique(torch.cat(indices).numpy(), return_index=True)
    return torch.cat(found)[torch.from_numpy(first)], kept.astype(np.int64)


class HeldOutVerification:
    """Every pair of photos of people that were kept aside: ``metric(backbone) -> figures``.

    The first figure is the true-accept rate at a false-accept rate of ``far``, so that it
    decides which checkpoint is the best; the equal error rate comes second. Raises ConfigError
    where there is no pair of the same person or none of two.
    """

    def __init__(
        self,
        source: FaceSource,
        *,
        far: float = 1e-3,
        batch_size: int = 128,
        workers: int = 0,
        precision: torch.dtype | None = None,
    ) -> None:
        counts = np.bincount(source.labels, minlength=source.num_classes)
        if source.num_classes < 2 or int(counts.max()) < 2:
            raise ConfigError(
                f"{source.origin}: {source.num_classes} held-out identities with at most "
                f"{int(counts.max())} photos each; comparing needs two identities, one of them "
                "with two photos. Raise data.holdout, or set it to 0."
            )
        self.source, self.far = source, far
        self.batch_size, self.workers, self.precision = batch_size, workers, precision
        self.names = (f"held_out_tar_at_far_{far:g}", "held_out_eer")

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        embeddings, indices = embed(
            backbone,
            self.source,
            batch_size=self.batch_size,
            workers=self.workers,
            precision=self.precision,
        )
        genuine, impostor = pair_scores(embeddings.numpy(), self.source.labels[indices])
        figures = (metrics.tar_at_far(genuine, impostor, self.far), metrics.eer(genuine, impostor))
        return dict(zip(self.names, figures, strict=True))
