"""Margin heads for face recognition: a margin policy, class weights, and the loss over them.

``create_head("arcface", 512, 85742)(embeddings, labels)`` is a scalar loss whose backward costs
no (N, C) matrix more than one block of logits. Imports torch and facerec's errors only. The
formulas, options and costs are in docs/heads.md.
"""

from training.heads.catalogue import HEADS, create_head
from training.heads.head import Head, HeadOptions
from training.heads.margins import (
    AdaMargin,
    ElasticMargin,
    MagMargin,
    MarginPolicy,
    Margins,
)

__all__ = [
    "HEADS",
    "AdaMargin",
    "ElasticMargin",
    "Head",
    "HeadOptions",
    "MagMargin",
    "MarginPolicy",
    "Margins",
    "create_head",
]
