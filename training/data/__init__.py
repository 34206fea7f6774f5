"""Faces to learn from: sources, splits, augmentation, samplers, loader.

A *source* gives aligned chips with labels, from folders, photos, RecordIO or tar shards; a
*dataset* turns them into what a backbone takes; a *sampler* says in which order; a *loader*
makes batches of the three. Imports torch and the core, nothing of the heads.
"""

from facerec.folders import list_identities
from training.data.augment import Augmentation, ChipTransform
from training.data.folder import ImageFolder
from training.data.loader import Batch, FaceDataset, FailureLog, Loader, make_loader
from training.data.opening import in_memory, open_source
from training.data.pairs import VerificationSet, read_verification_bin, write_verification_bin
from training.data.photos import AlignedPhotos, align_photos
from training.data.recordio import RecordFile, RecordSource, RecordWriter, write_face_records
from training.data.samplers import BalancedSampler, Draw, OrderedSampler, Sampler, ShuffleSampler
from training.data.shards import ShardSource, expand_shards, shard_blocks, write_shard
from training.data.sources import (
    ArraySource,
    FaceSource,
    MemorySource,
    SourceSummary,
    keep_identities,
    require_trainable,
    summarise,
)
from training.data.splits import Split, split_identities

__all__ = [
    "AlignedPhotos",
    "ArraySource",
    "Augmentation",
    "BalancedSampler",
    "Batch",
    "ChipTransform",
    "Draw",
    "FaceDataset",
    "FaceSource",
    "FailureLog",
    "ImageFolder",
    "Loader",
    "MemorySource",
    "OrderedSampler",
    "RecordFile",
    "RecordSource",
    "RecordWriter",
    "Sampler",
    "ShardSource",
    "ShuffleSampler",
    "SourceSummary",
    "Split",
    "VerificationSet",
    "align_photos",
    "expand_shards",
    "in_memory",
    "keep_identities",
    "list_identities",
    "make_loader",
    "open_source",
    "read_verification_bin",
    "require_trainable",
    "shard_blocks",
    "split_identities",
    "summarise",
    "write_face_records",
    "write_shard",
    "write_verification_bin",
]
