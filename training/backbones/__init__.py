"""Face encoders: images in, embeddings out. Imports torch and the core, nothing of the heads.

``create_backbone`` builds by name, ``backbone_from_pack`` takes up a pack's own network.
"""

from training.backbones.base import Backbone, Preprocessing
from training.backbones.cost import count_macs, count_parameters
from training.backbones.packs import (
    STARTING_POINT,
    backbone_from_pack,
    save_starting_point,
)
from training.backbones.registry import BACKBONES, create_backbone

__all__ = [
    "BACKBONES",
    "STARTING_POINT",
    "Backbone",
    "Preprocessing",
    "backbone_from_pack",
    "count_macs",
    "count_parameters",
    "create_backbone",
    "save_starting_point",
]
