"""What to tell a person whose training diverged. Imports torch and the core."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerec.errors import ModelError
from training.data import Batch, FaceSource
from training.logs import write_json

DIAGNOSIS = "diagnosis.json"
_NAMED = 5


def diagnose(
    reason: str,
    *,
    run_dir: Path,
    rank: int,
    step: int,
    learning_rate: float,
    batch: Batch | None,
    norms: list[Tensor],
    source: FaceSource,
    recent: list[dict[str, Any]],
    checkpoint: Path | None,
) -> ModelError:
    """The error to raise, after writing RUN/diagnosis.json.

    batch: of the step; None where an evaluation noticed it before a batch was read. norms:
    lengths of the embeddings that were computed, in the order of the batch. recent: the last
    lines of the log, in which gradients grew or did not.
    """
    lengths = torch.cat(norms).cpu() if norms else torch.zeros(0)
    finite = lengths[lengths.isfinite()]
    indices, labels = ([], []) if batch is None else (batch.indices.tolist(), batch.labels.tolist())
    broken = (~lengths.isfinite()).nonzero().flatten().tolist()
    images = [
        {
            "image": source.name(index),
            "label": int(label),
            "embedding_norm": float(lengths[row]) if row < len(lengths) else None,
        }
        for row, (index, label) in enumerate(zip(indices, labels, strict=True))
    ]
    summary = {
        "smallest": float(finite.min()) if len(finite) else None,
        "median": float(finite.median()) if len(finite) else None,
        "largest": float(finite.max()) if len(finite) else None,
        "not_finite": len(broken),
    }
    content = {
        "reason": reason,
        "step": step,
        "learning_rate": learning_rate,
        "embedding_norms": summary,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "recent": recent,
        "batch": [_readable(image) for image in images],
    }
    path = run_dir / (DIAGNOSIS if rank == 0 else f"diagnosis-{rank}.json")
    write_json(path, content)
    worst = [images[row]["image"] for row in broken[:_NAMED]] or [
        image["image"] for image in images[:_NAMED]
    ]
    kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was due"
    return ModelError(
        f"training diverged at step {step}: {reason}. Learning rate {learning_rate:g}; embedding "
        f"norms {_range(summary)}; {len(broken)} of {len(images)} embeddings not finite; images of "
        f"the batch: {', '.join(worst)}{', ...' if len(images) > len(worst) else ''} (all in "
        f"{path}). {kept}. Lower optim.lr, warm up for longer, clip (optim.clip), or use "
        "run.amp = 'off'."
    )


def _range(summary: dict[str, Any]) -> str:
    if summary["median"] is None:
        return "unknown"
    return f"{summary['smallest']:.3g} to {summary['largest']:.3g}"


def _readable(image: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    norm = image["embedding_norm"]
    return {**image, "embedding_norm": norm if norm is None or math.isfinite(norm) else str(norm)}
