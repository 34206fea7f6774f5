"""Model packs: a detector and an embedder with their licence, hashes and thresholds.

``manifest`` says what a pack is, ``registry`` finds one, ``download`` fetches one.
Imports the core only; importing it loads no network or model code.
"""

from facerec.packs.download import PullProgress, pull_pack
from facerec.packs.manifest import (
    ArchiveSpec,
    DetectorSpec,
    EmbedderSpec,
    Pack,
    PackManifest,
    ThresholdsSpec,
    TrainingDataSpec,
    TrainingSpec,
    VariantSpec,
)
from facerec.packs.registry import PackInfo, find_pack, known_packs, list_packs

__all__ = [
    "ArchiveSpec",
    "DetectorSpec",
    "EmbedderSpec",
    "Pack",
    "PackInfo",
    "PackManifest",
    "PullProgress",
    "ThresholdsSpec",
    "TrainingDataSpec",
    "TrainingSpec",
    "VariantSpec",
    "find_pack",
    "known_packs",
    "list_packs",
    "pull_pack",
]
