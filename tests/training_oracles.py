"""Slow, obviously right versions of the losses, for the tests of training/.

``scalar_loss`` follows the papers in plain Python floats, one logit at a time. ``dense_loss``
does the same in float64 torch with every (M, C) matrix in full, so that autograd gives its
gradients. Neither imports the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other on a busy machine cost most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def continued_cosine(phase: float) -> float:
    """(-1)^k cos(phase) - 2k with k = floor(phase / pi): Liu 2017, section 3."""
    k = math.floor(phase / math.pi)
    return (-1) ** k * math.cos(phase) - 2 * k


def scalar_target(name: str, theta: float, norm: float, margin: float, p: dict) -> float:
    """The target's logit over s, from the papers; ``margin`` is the row's drawn or fixed m."""
    if name == "normface":
        return math.cos(theta)
    if name == "sphereface":
        return continued_cosine(margin * theta)
    if name in ("cosface", "elastic-cos", "elastic-cos+"):
        return math.cos(theta) - margin
    if name in ("arcface", "elastic-arc", "elastic-arc+"):
        return continued_cosine(theta + margin)
    if name == "combined":
        return continued_cosine(p["m1"] * theta + p["m2"]) - p["m3"]
    if name == "adaface":
        quality = max(-1.0, min(1.0, (norm - p["mean"]) / (p["std"] / p["h"])))
        g_angle, g_add = -p["margin"] * quality, p["margin"] * quality + p["margin"]
        return continued_cosine(theta + g_angle) - g_add
    if name == "magface":
        slope = (p["u_m"] - p["l_m"]) / (p["u_a"] - p["l_a"])
        return continued_cosine(theta + p["l_m"] + slope * (norm - p["l_a"]))
    raise AssertionError(name)


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def scalar_loss(
    name: str,
    embeddings: list[list[float]],
    weight: list[list[float]],
    bias: list[float],
    labels: list[int],
    margins: list[float],
    p: dict,
) -> float:
    """Mean loss of a batch. ``p``: the head's parameters, and AdaFace's mean and std."""
    losses = []
    for e, label, margin in zip(embeddings, labels, margins, strict=True):
        norm = math.sqrt(dot(e, e))
        logits = []
        for c, w in enumerate(weight):
            if name == "softmax":
                logits.append(dot(e, w) + bias[c])
                continue
            cosine = max(-1.0, min(1.0, dot(e, w) / (norm * math.sqrt(dot(w, w)))))
            psi = cosine
            if c == label:
                psi = scalar_target(name, math.acos(cosine), norm, margin, p)
            logits.append(p["scale"] * psi)
        largest = max(logits)
        total = largest + math.log(sum(math.exp(z - largest) for z in logits))
        loss = total - logits[label]
        if name == "magface":
            loss += p["lambda_g"] * (1 / norm + norm / p["u_a"] ** 2)
        losses.append(loss)
    return sum(losses) / len(losses)


def dense_logits(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    m1: float = 1.0,
    m2: Tensor | float = 0.0,
    m3: Tensor | float = 0.0,
) -> Tensor:
    """(M, C) logits with every angle, one-hot and margin matrix in full; float64."""
    rows = torch.nn.functional.normalize(embeddings.double(), dim=1)
    columns = torch.nn.functional.normalize(weight.double(), dim=1)
    theta = torch.acos((rows @ columns.t()).clamp(-1 + 1e-15, 1 - 1e-15))
    one_hot = torch.nn.functional.one_hot(labels, len(weight)).double()

    def column(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1)

    phase = theta + one_hot * ((m1 - 1) * theta + column(m2))
    k = torch.floor(phase.detach() / math.pi)
    psi = (1 - 2 * (k % 2)) * torch.cos(phase) - 2 * k
    return scale * (psi - one_hot * column(m3))


def dense_loss(embeddings: Tensor, weight: Tensor, labels: Tensor, **margins: object) -> Tensor:
    """Mean cross-entropy of :func:`dense_logits`, float64.

    As ln(1 + sum of exp(others - target)): the slope of a row that is all but certain comes from
    the others, where cross_entropy takes it as p - 1, of which few digits are left.
    """
    logits = dense_logits(embeddings, weight, labels, **margins)  # type: ignore[arg-type]
    target = torch.nn.functional.one_hot(labels, len(weight)).bool()
    others = logits.masked_fill(target, -math.inf).logsumexp(dim=1)
    return torch.nn.functional.softplus(others - logits[target]).mean()


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry of what was expected."""
    top = expected.double().abs().max().clamp_min(1e-300)
    return float((found.double() - expected.double()).abs().max() / top)
