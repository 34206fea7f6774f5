"""From a recipe to what the loop works with: network, head, optimiser, schedule, precision.

Imports torch and the core.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facerec.errors import ConfigError, ModelError
from facerec.packs import find_pack
from training.backbones import Backbone, Preprocessing, backbone_from_pack, create_backbone
from training.broadface import BroadFace
from training.checkpoint import State, backbone_from_state, load_checkpoint
from training.data import (
    BalancedSampler,
    FaceDataset,
    FaceSource,
    Loader,
    Sampler,
    ShuffleSampler,
    make_loader,
    shard_blocks,
)
from training.distributed import Ranks
from training.heads import Head, create_head
from training.heldout import embed
from training.recipe import Recipe
from training.schedules import Schedule

Classifier = Head | BroadFace


def build_backbone(recipe: Recipe) -> tuple[Backbone, State | None]:
    """The network that the recipe starts from, and the checkpoint it came from, if from one.

    What ``[backbone]`` states must be what the starting point is; the rest is taken from there.
    Raises ConfigError for a contradiction or an unknown name, ModelError for a pack or a
    checkpoint that cannot be a starting point.
    """
    start, wanted = recipe.start, recipe.backbone.arguments()
    if not (start.pack or start.checkpoint):
        return create_backbone(**wanted), None
    state: State | None = None
    if start.pack:
        origin = f"pack {start.pack!r}"
        backbone = backbone_from_pack(find_pack(start.pack), dropout=wanted.get("dropout"))
    else:
        origin = str(start.checkpoint)
        state = load_checkpoint(Path(origin))
        arguments = state["backbone_arguments"]
        if "dropout" in wanted:
            state["backbone_arguments"] = {**arguments, "dropout": wanted["dropout"]}
        backbone = backbone_from_state(state, origin)
    wrong = [
        f"{key} is {backbone.arguments.get(key)!r} there, the recipe says {value!r}"
        for key, value in wanted.items()
        if backbone.arguments.get(key) != value
    ]
    if wrong:
        raise ConfigError(
            f"{origin} holds another backbone: {'; '.join(wrong)}. Leave these keys of [backbone] "
            "out, or start from somewhere else."
        )
    return backbone, state


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """How the recipe's network wants its chips, without drawing its weights."""
    if recipe.start.given:
        return build_backbone(recipe)[0].preprocessing
    with torch.device("meta"):
        return create_backbone(**recipe.backbone.arguments(), pretrained=False).preprocessing


def build_classifier(recipe: Recipe, dim: int, classes: int, ranks: Ranks) -> Classifier:
    """The head, inside of BroadFace if there is a queue, on the ranks' device.

    With several ranks class weights are sharded unless ``head.storage`` says ``"dense"``;
    ``"sampled"`` then samples each shard. One rank holds them all, whatever it says.
    """
    overrides = dict(recipe.head.overrides)
    overrides.setdefault("seed", recipe.run.seed)
    storage = overrides.pop("storage", "sharded")
    if storage == "sampled":
        overrides.setdefault("sample_rate", 0.1)
    if storage != "dense" and ranks.world > 1:
        overrides["storage"] = "sharded"
    elif storage == "sampled":
        overrides["storage"] = "sampled"
    head = create_head(recipe.head.name, dim, classes, **overrides).to(ranks.device)
    broad = recipe.broadface
    if not broad.queue_size:
        return head
    return BroadFace(
        head,
        broad.queue_size // ranks.world,
        compensate=broad.compensate,
        drift=broad.drift,
        warmup_steps=broad.warmup_steps,
    ).to(ranks.device)


def head_of(classifier: Classifier) -> Head:
    """The head itself."""
    return classifier.head if isinstance(classifier, BroadFace) else classifier


def build_optimizer(recipe: Recipe, backbone: Backbone, head: Head) -> torch.optim.SGD:
    """SGD with up to three groups, each with its ``weight_decay`` and ``lr_scale``.

    The backbone's matrices and filters; its vectors (biases, BatchNorm, PReLU), which
    ``optim.decay = "matrices"`` spares; the class weights. ``fused``: one pass over the
    parameters instead of one for each operation.
    """
    optim = recipe.optim
    trained = [p for p in backbone.parameters() if p.requires_grad]
    vector_decay = optim.weight_decay if optim.decay == "all" else 0.0
    head_decay = optim.weight_decay if optim.head_weight_decay is None else optim.head_weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": vector_decay},
        {"params": list(head.parameters()), "weight_decay": head_decay},
    ]
    for group, scale in zip(groups, (1.0, 1.0, optim.head_lr_scale), strict=True):
        group["lr_scale"] = scale
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,
    )


def build_schedule(recipe: Recipe, steps_per_epoch: float, total_steps: int) -> Schedule:
    """The learning rate's course over the recipe's epochs."""
    section = recipe.schedule
    return Schedule(
        kind=section.kind,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=round(section.warmup_epochs * steps_per_epoch),
        milestones=section.milestones,
        gamma=section.gamma,
        power=section.power,
        final=section.final,
    )


def precision_of(amp: str, device: torch.device) -> torch.dtype | None:
    """What the backbone computes in; None for float32.

    ``"auto"``: bfloat16 on a GPU or processor with instructions for it. Raises ModelError where
    the device cannot do what is asked for.
    """
    if amp == "off":
        return None
    if amp == "fp16":
        if device.type != "cuda":
            raise ModelError(
                "run.amp = 'fp16' needs CUDA, where the loss is scaled; on a CPU choose 'bf16' "
                "or 'off'"
            )
        return torch.float16
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = _cpu_has_bfloat16()
    return torch.bfloat16 if able or amp == "bf16" else None


def _cpu_has_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def freeze_statistics(backbone: nn.Module) -> None:
    """BatchNorm uses its running statistics from here on, and leaves them."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            module.eval()


def synchronise_statistics(backbone: Backbone, ranks: Ranks) -> Backbone:
    """BatchNorm over the batches of all ranks; ConfigError on a CPU, where torch has none."""
    if ranks.device.type != "cuda":
        raise ConfigError("backbone.batch_norm = 'synchronised' needs CUDA; use 'train'")
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    converted: Backbone = convert(backbone)
    return converted


def build_loader(recipe: Recipe, source: FaceSource, backbone: Backbone, ranks: Ranks) -> Loader:
    """This rank's batches, shuffled or balanced by identity, augmented."""
    data, seed = recipe.data, recipe.run.seed
    dataset = FaceDataset(source, backbone.preprocessing, recipe.augmentation, seed=seed)
    sampler: Sampler
    if data.images_per_identity:
        sampler = BalancedSampler(
            source.labels,
            data.images_per_identity,
            seed=seed,
            rank=ranks.rank,
            world=ranks.world,
        )
    else:
        sampler = ShuffleSampler(
            len(source),
            seed=seed,
            rank=ranks.rank,
            world=ranks.world,
            blocks=shard_blocks(source),
        )
    return make_loader(
        dataset,
        sampler,
        recipe.run.batch_size // ranks.world,
        data.workers,
        max_failures=data.max_failures,
        pin_memory=ranks.device.type == "cuda",
    )


def set_class_weights(
    recipe: Recipe,
    head: Head,
    backbone: Backbone,
    source: FaceSource,
    ranks: Ranks,
    started: State | None,
    precision: torch.dtype | None,
) -> None:
    """Class weights as ``start.class_weights`` says; ``"random"`` is how the head drew them."""
    if recipe.start.class_weights == "class-means":
        means, counts = class_means(
            backbone, source, ranks, workers=recipe.data.workers, precision=precision
        )
        _start_from(head, means, counts)
    elif recipe.start.class_weights == "keep":
        assert started is not None  # the recipe sees to it
        _keep(head, started, source, str(recipe.start.checkpoint))


@torch.no_grad()
def class_means(
    backbone: Backbone,
    source: FaceSource,
    ranks: Ranks,
    *,
    workers: int = 0,
    precision: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of each class's unit embeddings (C, d), and how many they are (C,); on every rank.

    Each rank embeds its part of the images, without augmentation.
    """
    embeddings, indices = embed(
        backbone,
        source,
        rank=ranks.rank,
        world=ranks.world,
        workers=workers,
        precision=precision,
    )
    labels = torch.from_numpy(source.labels[indices])
    sums = torch.zeros(source.num_classes, backbone.embedding_dim)
    sums.index_add_(0, labels, embeddings)
    counts = torch.bincount(labels, minlength=source.num_classes)
    parts = ranks.gather((sums, counts))
    if parts is not None:
        sums = torch.stack([part[0] for part in parts]).sum(0)
        counts = torch.stack([part[1] for part in parts]).sum(0)
    total: tuple[Tensor, Tensor] = ranks.from_main((sums, counts))
    return total


def _start_from(head: Head, sums: Tensor, counts: Tensor) -> None:
    """Class weights := the directions of the classes' means, seen from the mean of them all.

    What all weights share moves every logit alike before they are normalised, and afterwards
    only hides what tells them apart: a network whose embeddings fill a narrow cone (the bundled
    one: strangers have cosines near 0.85) would start with thousands of weights that are all but
    parallel, and unlearn the cone first. Where embeddings already surround the origin, the mean
    of the means is near zero and nothing changes.

    Their length is that of randomly drawn weights, ``init_std * sqrt(d)``: a cosine head does
    not see it, but the angle that a step turns them by goes with lr / |w|^2, so that a learning
    rate means the same after either start. A class without a readable image keeps its random
    weight.
    """
    seen = (counts > 0)[:, None]
    means = torch.where(seen, sums / counts.clamp_min(1)[:, None], 0)
    means = means - means.sum(0) / seen.sum().clamp_min(1)
    length = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    wanted = head.options.init_std * math.sqrt(head.embedding_dim)
    usable = (length > 1e-6) & seen
    weights = means / length.clamp_min(1e-12) * wanted
    head.load_full_weight(torch.where(usable, weights, head.full_weight()))


def _keep(head: Head, started: State, source: FaceSource, origin: str) -> None:
    """The checkpoint's class weights. Raises ConfigError unless the identities are the same."""
    weight, theirs = started["head"]["head.weight"], started["data"]
    if len(weight) != source.num_classes:
        raise ConfigError(
            f"{origin} has class weights of {len(weight):,} identities, the data has "
            f"{source.num_classes:,}: start.class_weights = 'keep' needs the same ones. Choose "
            "'class-means' or 'random'."
        )
    if theirs["identities"] != describe_identities(source):
        raise ConfigError(
            f"{origin} was trained on other identities than the data has, though as many: "
            "start.class_weights = 'keep' needs the same ones. Choose 'class-means' or 'random'."
        )
    head.load_full_weight(weight)
    bias = started["head"].get("head.bias")
    if head.bias is not None and bias is not None:
        with torch.no_grad():
            head.bias.copy_(bias[head.shard.low : head.shard.high])


def describe_identities(source: FaceSource) -> str:
    """SHA-256 over the identities' names, in the order of their labels."""
    names = "\0".join(source.identities[i] for i in range(source.num_classes))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
