"""Made sets and scalar oracles for the tests of the evaluation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from facerec.alignment import find_template
from tests.training_runs import (
    SIZE,
    blob_chips,
)
from training.backbones import Backbone, create_backbone
from training.checkpoint import CheckpointFolder
from training.data import write_verification_bin
from training.evaluate import SetOptions

STORED = SetOptions(template="arcface-112", size=SIZE)


def tiny_network() -> Backbone:
    """The smallest network, always the same."""
    torch.manual_seed(4)
    return create_backbone("mobilefacenet-paper", 16, width=0.25, input_size=SIZE).eval()


def png(chip: np.ndarray) -> bytes:
    """RGB, losslessly."""
    return cv2.imencode(".png", np.ascontiguousarray(chip[:, :, ::-1]))[1].tobytes()


def write_pairs_bin(path: Path, pairs: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A .bin of blob people; its chips (2p, S, S, 3) and issame (p,)."""
    chips, labels = blob_chips(8, 6, seed)
    rng = np.random.default_rng(seed)
    rows, same = [], []
    for at in range(pairs):
        person, other = rng.choice(8, 2, replace=False)
        genuine = at % 3 > 0
        left, right = rng.choice(np.flatnonzero(labels == person), 2, replace=False)
        rows += [left, right if genuine else rng.choice(np.flatnonzero(labels == other))]
        same.append(genuine)
    write_verification_bin(path, [png(chips[row]) for row in rows], same)
    return chips[rows], np.array(same)


def embedding(network: Backbone, chip: np.ndarray, *, flip: bool) -> np.ndarray:
    """One chip at a time, by the network's own preprocessing; not of unit length."""
    total = np.zeros(network.embedding_dim)
    for view in (chip, chip[:, ::-1]) if flip else (chip,):
        pixels = torch.from_numpy(view.transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            total += network(network.preprocessing.apply(pixels))[0].double().numpy()
    return total


def unit(vector: np.ndarray) -> np.ndarray:
    """Of length 1."""
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


def tar_oracle(genuine: list[float], impostor: list[float], far: float) -> float:
    """Of all thresholds with a share of impostors accepted of at most ``far``, the best TAR."""
    best = 0.0
    for threshold in [*genuine, *impostor, 2.0]:
        if sum(i >= threshold for i in impostor) / len(impostor) <= far:
            best = max(best, sum(g >= threshold for g in genuine) / len(genuine))
    return best


def accuracy_bounds(scores: list[float], same: list[bool], folds: int) -> list[set[float]]:
    """Per fold, its accuracy at every threshold that is best on the others."""
    parts = np.array_split(np.arange(len(scores)), folds)
    result = []
    for part in parts:
        rest = [i for i in range(len(scores)) if i not in part]
        cuts = sorted(scores[i] for i in rest)
        middles = [(a + b) / 2 for a, b in itertools.pairwise(cuts)]
        right = {t: sum((scores[i] >= t) == same[i] for i in rest) for t in (*middles, -2.0, 2.0)}
        best = [t for t, count in right.items() if count == max(right.values())]
        result.append({sum((scores[i] >= t) == same[i] for i in part) / len(part) for t in best})
    return result


def save_checkpoint(folder: Path, backbone: Backbone, *, step: int = 7, best: bool = False) -> Path:
    """A checkpoint of the network alone, as a run of that folder would have it."""
    state = {
        "format": 1,
        "recipe": {},
        "backbone_arguments": backbone.arguments,
        "backbone": backbone.state_dict(),
        "ema": None,
        "step": step,
    }
    return CheckpointFolder(folder / "checkpoints").save(state, best=best)


def write_ijb(folder: Path, prefix: str = "ijbc", templates: int = 12) -> dict:
    """A dozen templates of four people: stills, and videos of several frames."""
    rng = np.random.default_rng(8)
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    points = find_template("arcface-112").scaled_to(SIZE)
    media, landmarks, where = [], [], {}
    for template in range(templates):
        for item in range(2):
            for _ in range(3 if (template + item) % 3 == 0 else 1):
                name = f"{len(media) + 1}.png"
                chip = blob_chips(4, 1, seed=5)[0][template % 4]
                noisy = (chip + rng.normal(0, 30, chip.shape)).clip(0, 255).astype(np.uint8)
                image = np.pad(noisy, ((7, 3), (5, 9), (0, 0)))
                (folder / "loose_crop" / name).write_bytes(png(image))
                at = points + np.array([5, 7])  # the chip, whole pixels away
                score = round(float(rng.uniform(0.5, 1)), 3)
                numbers = " ".join(f"{v:.6f}" for v in at.ravel())
                media.append(f"{name} {100 + template} {10 * template + item}")
                landmarks.append(f"{name} {numbers} {score}")
                where.setdefault(100 + template, {}).setdefault(10 * template + item, []).append(
                    (noisy, score)
                )
    pairs = [(100 + a, 100 + b, int(a % 4 == b % 4)) for a in range(templates) for b in range(a)]
    rng.shuffle(landmarks)
    meta = folder / "meta"
    (meta / f"{prefix}_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (meta / f"{prefix}_name_5pts_score.txt").write_text("\n".join(landmarks) + "\n")
    (meta / f"{prefix}_template_pair_label.txt").write_text(
        "\n".join(" ".join(map(str, pair)) for pair in pairs) + "\n"
    )
    return {"where": where, "pairs": pairs}
