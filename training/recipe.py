"""A training run as a TOML file: typed, with every default; an unknown key is an error.

What a recipe holds decides what is computed, the data apart; where the data lies and where the
run goes are arguments. Imports the core, pydantic, tomlkit and the heads' catalogue.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from facerec.errors import ConfigError
from training.data.augment import Augmentation
from training.heads import HEADS, create_head

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
"""The folder of the recipes that are shipped."""

FREE_KEYS = frozenset(
    {
        "name",
        "description",
        "run.device",
        "run.compile",
        "run.log_every",
        "run.tensorboard",
        "run.checkpoint_every",
        "run.keep_last",
        "run.evaluate_every",
        "run.best_metric",
        "data.workers",
        "data.max_failures",
    }
)
"""Keys that may differ between a run and its resumption: they change no weight."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BackboneSection(_Section):
    """The network; the keys but ``batch_norm`` are ``create_backbone``'s."""

    name: str | None = None
    """Left out only where ``[start]`` says what is trained further."""
    embedding_dim: int | None = Field(default=None, ge=2)
    """None: the backbone's own, 512 for most."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    width: float | None = Field(default=None, gt=0)
    input_size: int | None = Field(default=None, ge=32)
    batch_norm: Literal["train", "frozen", "synchronised"] = "train"
    """``"frozen"``: statistics stay as they are, for fine-tuning with small batches.
    ``"synchronised"``: over all ranks; CUDA only."""

    def arguments(self) -> dict[str, Any]:
        """For ``create_backbone``."""
        return self.model_dump(exclude={"batch_norm"}, exclude_none=True)


class HeadSection(_Section):
    """``name``, and as further keys whatever that head takes: margin, sigma, scale, storage..."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = "elastic-arc"

    @property
    def overrides(self) -> dict[str, Any]:
        """For ``create_head``."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _build_one(self) -> HeadSection:
        if self.name not in HEADS:
            raise ValueError(f"no head {self.name!r}{_suggest(self.name, HEADS)}")
        overrides = self.overrides
        if "embedding_dim" in overrides:
            raise ValueError("embedding_dim is the network's: write it into [backbone]")
        if "num_classes" in overrides:
            raise ValueError("num_classes is the number of people in the data; leave it out")
        if overrides.get("storage") == "sharded":  # needs ranks, which reading a file does not
            overrides["storage"] = "dense"
        try:
            create_head(self.name, 2, 2, **overrides)
        except ConfigError as exc:
            known = ("margin", "sigma", "scale", "gradient", "storage", "sample_rate", "init_std")
            strange = [k for k in overrides if k not in (*known, *HEADS[self.name])]
            hint = (
                _suggest(strange[0], {**HEADS[self.name], **dict.fromkeys(known)})
                if strange
                else ""
            )
            raise ValueError(f"{exc}{hint}") from exc
        return self


class BroadFaceSection(_Section):
    """BroadFace around the head (Kim 2020). ``queue_size = 0``: none."""

    queue_size: int = Field(default=0, ge=0)
    """Q over all ranks together; each keeps its share."""
    compensate: bool = True
    drift: Literal["raw", "normalised"] = "raw"
    """``"raw"`` is the paper's formula."""
    warmup_steps: int = Field(default=0, ge=0)
    """Calls of the head that fill the queue without learning from it."""


class StartSection(_Section):
    """Where weights start from; left out: from the seed."""

    pack: str | None = None
    """A pack's name or folder, whose embedder is trained further."""
    checkpoint: str | None = None
    """A checkpoint of a run: its backbone, the averaged one if the run kept an average."""
    class_weights: Literal["random", "class-means", "keep"] = "random"
    """``"class-means"``: of the starting backbone's unit embeddings, less the mean of them all.
    ``"keep"``: the checkpoint's, for the same classes."""
    distil: float = Field(default=0.0, ge=0)
    """Weight of the mean of ``1 - cos(e, e_start)`` in the loss; 0: none."""

    @property
    def given(self) -> bool:
        """Whether a network is trained further."""
        return bool(self.pack or self.checkpoint)

    @model_validator(mode="after")
    def _possible(self) -> StartSection:
        if self.pack and self.checkpoint:
            raise ValueError("give 'pack' or 'checkpoint', not both")
        if self.class_weights == "keep" and not self.checkpoint:
            raise ValueError("class_weights = 'keep' needs a checkpoint to take them from")
        if not self.given and (self.distil or self.class_weights != "random"):
            raise ValueError("class means and distillation need a 'pack' or 'checkpoint'")
        return self


class OptimSection(_Section):
    """SGD. The update is torch's: ``v = momentum v + g + decay w``, ``w -= lr v``."""

    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    decay: Literal["all", "matrices"] = "all"
    """``"all"``: every parameter, as the ArcFace family's recipes. ``"matrices"``: only
    convolutions, matrices and class weights; no biases, BatchNorm gains, PReLU slopes
    (He 2019, arXiv 1812.01187, section 3.1)."""
    head_lr_scale: float = Field(default=1.0, gt=0)
    """The class weights' learning rate is this times the backbone's."""
    head_weight_decay: float | None = Field(default=None, ge=0)
    """None: as ``weight_decay``."""
    clip: float = Field(default=5.0, ge=0)
    """Largest Euclidean norm of the gradient; 0: no limit."""
    clip_scope: Literal["backbone", "together"] = "backbone"
    """``"backbone"``: its parameters' norm is limited and the class weights are left alone.
    ``"together"``: the norm of all parameters is limited."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the backbone's weights; 0: none is kept."""


class ScheduleSection(_Section):
    """Factor on the learning rate; see :class:`training.schedules.Schedule`."""

    kind: Literal["step", "polynomial", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = Field(default=(), strict=False)
    """Epochs counted from 1, at whose start the rate falls by ``gamma``."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    power: float = Field(default=2.0, gt=0)
    final: float = Field(default=0.0, ge=0, le=1)
    """The factor that polynomial and cosine end at."""
    warmup_epochs: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ScheduleSection:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise: {list(self.milestones)}")
        if self.milestones and self.kind != "step":
            raise ValueError(f"milestones belong to kind = 'step', not {self.kind!r}")
        return self


class RunSection(_Section):
    """Length, precision, and what is written when."""

    epochs: int = Field(default=26, ge=1)
    batch_size: int = Field(default=512, ge=1)
    """Images of one optimiser step, over all ranks and accumulated parts together."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a rank's share of the batch is walked in."""
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """The backbone's precision; head and loss are float32. ``"auto"``: bf16 where the
    processor computes it, otherwise off. ``"fp16"`` scales the loss; CUDA only."""
    channels_last: bool = True
    compile: bool = False
    log_every: int = Field(default=1, ge=1)
    """Steps per line of log.csv; the line has the mean loss since the last one."""
    tensorboard: bool = True
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps; 0: at the end of each epoch only, where one is always written."""
    keep_last: int = Field(default=2, ge=1)
    evaluate_every: int = Field(default=1, ge=0)
    """Epochs; the last epoch is always evaluated; 0: only that one."""
    best_metric: str | None = None
    """Which metric makes a checkpoint the best; None: the first that the evaluation gives."""


class DataSection(_Section):
    """Which photos are learnt from, and in which order."""

    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the identities that ``python -m training train`` keeps aside to evaluate on."""
    holdout_seed: int = Field(default=0, ge=0)
    """Of the split: apart from ``run.seed``, so that runs of other seeds keep the same aside."""
    min_images: int = Field(default=1, ge=1)
    """Identities with fewer are left out."""
    images_per_identity: int = Field(default=0, ge=0)
    """Of each identity in a batch (balanced sampling); 0: images as they come, shuffled."""
    in_memory: bool = False
    """Decode and warp every chip once and keep it, unreadable ones left out: for small sets.
    Augmentation then warps the kept pixels, not the stored ones."""
    workers: int = Field(default=2, ge=0)
    """Processes that prepare batches; any number gives the same batches."""
    max_failures: int | None = Field(default=None, ge=0)
    """So many unreadable images are passed over; None: 1 % of the set, at least 10."""


class Recipe(_Section):
    """Everything that decides a run, the data apart."""

    name: str = "recipe"
    description: str = ""
    backbone: BackboneSection = BackboneSection()
    head: HeadSection = HeadSection()
    broadface: BroadFaceSection = BroadFaceSection()
    start: StartSection = StartSection()
    data: DataSection = DataSection()
    augmentation: Augmentation = Augmentation()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if not (self.backbone.name or self.start.given):
            raise ValueError("backbone.name is missing, and [start] names no network either")
        if self.run.batch_size % self.run.accumulate:
            raise ValueError(
                f"run.batch_size {self.run.batch_size} does not divide into run.accumulate "
                f"{self.run.accumulate} parts"
            )
        if self.schedule.warmup_epochs >= self.run.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} leaves nothing of "
                f"run.epochs {self.run.epochs}"
            )
        late = [m for m in self.schedule.milestones if not 1 < m < self.run.epochs + 1]
        if late:
            raise ValueError(
                f"schedule.milestones {late} lie outside of the run's epochs 2 to {self.run.epochs}"
            )
        return self

    def changed(self, **keys: Any) -> Recipe:
        """A copy with other values, dotted names as keywords: ``changed(**{"optim.lr": 0.01})``.

        Raises ConfigError for an unknown key or a value out of range.
        """
        content = self.model_dump(exclude_none=True)
        for dotted, value in keys.items():
            *tables, key = dotted.split(".")
            table = content
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"recipe: {name!r} in {dotted!r} is a value, not a table")
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        return recipe_from(content, "recipe")

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted name."""
        return dict(_flatten(self.model_dump(exclude_none=True)))

    def to_toml(self) -> str:
        """The whole recipe, defaults included; :func:`load_recipe` makes an equal one of it."""
        return tomlkit.dumps(_plain(self.model_dump(exclude_none=True)))


def shipped_recipes() -> dict[str, str]:
    """Name and description of every recipe that is shipped."""
    paths = sorted(RECIPES.glob("*.toml"))
    return {path.stem: _read(path).get("description", "") for path in paths}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by its name, or a TOML file by its path.

    Raises ConfigError, naming file and key, for a file that is missing or does not parse, an
    unknown key, or a value of the wrong type or out of range.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and path.name == str(name_or_path):
        path = RECIPES / f"{name_or_path}.toml"
        if not path.is_file():
            known = [p.stem for p in sorted(RECIPES.glob("*.toml"))]
            raise ConfigError(
                f"no recipe {str(name_or_path)!r}{_suggest(str(name_or_path), known)}; shipped are "
                f"{', '.join(known)}; a file of your own is given by its path, ending in .toml"
            )
    return recipe_from({"name": path.stem, **_read(path)}, str(path))


def recipe_from(content: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested tables; ``source`` names them in errors (ConfigError)."""
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as exc:
        problems = "; ".join(_problem(error) for error in exc.errors())
        raise ConfigError(f"{source}: {problems}") from exc


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """``["optim.lr=0.01", "head.name=arcface"]`` as values by dotted name.

    A value is read as TOML; what is none is text. Raises ConfigError for an item without "=".
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{setting!r}: write KEY=VALUE, such as optim.lr=0.01")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What of ``new`` would make a resumed run of ``old`` compute something else, as sentences."""
    before, after = old.flat(), new.flat()
    keys = sorted((before.keys() | after.keys()) - FREE_KEYS)
    return [
        f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # no TOML, or no UTF-8
        raise ConfigError(f"{path}: is no TOML: {exc}") from exc


def _problem(error: Mapping[str, Any]) -> str:
    """One finding of pydantic as a sentence, with a suggestion where a key is unknown."""
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location)
    if error["type"] != "extra_forbidden":
        where = f"{dotted}: " if dotted else ""
        given = "" if isinstance(error["input"], BaseModel | dict) else f" (got {error['input']!r})"
        return f"{where}{error['msg'].removeprefix('Value error, ')}{given}"
    key, section = location[-1], _section(location[:-1])
    place = f"[{'.'.join(location[:-1])}]" if location[:-1] else "the recipe"
    hint = _suggest(key, section) or _elsewhere(key)
    return f"unknown key {dotted!r}{hint}; {place} takes {', '.join(section)}"


def _section(location: Iterable[str]) -> list[str]:
    model: Any = Recipe
    for name in location:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _elsewhere(key: str) -> str:
    """A hint for a key that is right but in the wrong table."""
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            close = difflib.get_close_matches(key, field.annotation.model_fields, 1, 0.75)
            if close:
                return f"; did you mean {name}.{close[0]}?"
    return ""


def _suggest(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    """Tuples as lists, as TOML writes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
