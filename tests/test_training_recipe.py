"""Recipes: what is shipped, what is refused, and the course of the learning rate."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facerec.errors import ConfigError

pytest.importorskip("torch")

from training.build import preprocessing_of
from training.recipe import (
    differences,
    load_recipe,
    parse_overrides,
    recipe_from,
    shipped_recipes,
)
from training.schedules import Schedule

BASE = {"backbone": {"name": "iresnet18"}}


# --- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_say_what_they_are_and_survive_a_round_trip(
    name: str, tmp_path: Path
) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 20
    copy = tmp_path / "copy.toml"
    copy.write_text(recipe.to_toml())
    assert load_recipe(copy) == recipe
    assert preprocessing_of(recipe).input_size >= 64


def test_elasticface_is_as_published() -> None:
    recipe = load_recipe("elasticface-arc-ms1mv2-r100")
    assert recipe.backbone.arguments() == {
        "name": "iresnet100",
        "embedding_dim": 512,
        "dropout": 0.0,
    }
    assert recipe.head.name == "elastic-arc"
    assert recipe.head.overrides == {"margin": 0.5, "sigma": 0.05, "scale": 64.0}
    optim, run = recipe.optim, recipe.run
    assert (optim.lr, optim.momentum, optim.weight_decay, optim.clip) == (0.1, 0.9, 5e-4, 5.0)
    assert (run.epochs, run.batch_size, recipe.augmentation.flip) == (26, 512, 0.5)
    assert recipe.broadface.queue_size == 0
    assert recipe.schedule.milestones == (8, 14, 20, 25)


def test_the_other_published_recipes() -> None:
    casia = load_recipe("casia-r50")
    assert (casia.backbone.name, casia.backbone.dropout) == ("iresnet50", 0.4)
    assert (casia.run.epochs, casia.schedule.milestones) == (40, (22, 30))
    broad = load_recipe("broadface-arc-ms1mv2-r100")
    assert (broad.head.name, broad.broadface.queue_size) == ("arcface", 32_768)
    assert (broad.broadface.compensate, broad.broadface.drift) == (True, "raw")
    both = load_recipe("broadface-elastic-cos-plus-ms1mv2-r100")
    assert both.head.name == "elastic-cos+"
    assert differences(broad, both) == [
        "head.margin was 0.5, is 0.35",
        "head.name was 'arcface', is 'elastic-cos+'",
        "head.sigma was None, is 0.025",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"optim": {"momentun": 0.9}}, ["optim.momentun", "'momentum'", "[optim] takes lr"]),
        ({"optim": {"epochs": 3}}, ["optim.epochs", "run.epochs"]),
        ({"augmentation": {"flp": 1}}, ["augmentation.flp", "'flip'"]),
        ({"optimiser": {"lr": 1}}, ["'optimiser'", "'optim'", "the recipe takes name"]),
        ({"head": {"name": "arcface", "margni": 0.4}}, ["'margni'", "'margin'"]),
        ({"head": {"name": "arcface", "sigma": 0.4}}, ["'sigma'", "arcface"]),
        ({"head": {"name": "elastic-ark"}}, ["elastic-ark", "'elastic-arc'"]),
        ({"head": {"name": "elastic-arc", "sigma": -1.0}}, ["sigma", "-1.0"]),
        ({"run": {"epochs": "many"}}, ["run.epochs", "'many'"]),
        ({"run": {"batch_size": 10, "accumulate": 3}}, ["batch_size 10", "accumulate 3"]),
        ({"run": {"amp": "fp8"}}, ["run.amp", "bf16"]),
        ({"optim": {"lr": 0}}, ["optim.lr", "greater than 0"]),
        ({"schedule": {"milestones": [9, 3]}}, ["must rise"]),
        ({"schedule": {"kind": "cosine", "milestones": [3]}}, ["kind = 'step'"]),
        ({"schedule": {"milestones": [30]}, "run": {"epochs": 26}}, ["30", "2 to 26"]),
        ({"schedule": {"warmup_epochs": 5}, "run": {"epochs": 5}}, ["warmup_epochs 5"]),
        ({"start": {"pack": "a", "checkpoint": "b"}}, ["not both"]),
        ({"start": {"class_weights": "keep"}}, ["needs a checkpoint"]),
        ({"start": {"distil": 1.0}}, ["need a 'pack' or 'checkpoint'"]),
        ({"backbone": {}}, ["backbone.name is missing"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key_and_a_remedy(
    content: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_from({**BASE, **content}, "mine.toml")
    assert str(error.value).startswith("mine.toml: ")
    for word in words:
        assert word in str(error.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'casia-r50'"):
        load_recipe("casia-r5")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("lr = = 1")
    with pytest.raises(ConfigError, match=r"broken.toml: is no TOML"):
        load_recipe(broken)


def test_changes_from_a_command_line() -> None:
    values = parse_overrides(["optim.lr=0.02", "head.name=elastic-cos+", "schedule.milestones=[3]"])
    recipe = recipe_from(BASE, "x").changed(**values)
    assert recipe.optim.lr == 0.02
    assert recipe.head.name == "elastic-cos+"
    assert recipe.schedule.milestones == (3,)
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_overrides(["optim.lr"])
    with pytest.raises(ConfigError, match=r"unknown key 'optim.rl'"):
        recipe.changed(**{"optim.rl": 1.0})
    with pytest.raises(ConfigError, match=r"'name' in 'name.first' is a value"):
        recipe.changed(**{"name.first": 1.0})


def test_what_a_head_is_told_by_others_is_no_key_of_it() -> None:
    for key, said in (("embedding_dim", r"into \[backbone\]"), ("num_classes", "leave it out")):
        with pytest.raises(ConfigError, match=f"head: {key} is .*{said}"):
            load_recipe("small-data").changed(**{f"head.{key}": 512})


def test_only_what_changes_weights_counts_as_a_difference() -> None:
    recipe = recipe_from(BASE, "x")
    assert differences(recipe, recipe.changed(**{"run.keep_last": 7, "data.workers": 0})) == []
    held = recipe.changed(**{"data.in_memory": not recipe.data.in_memory})
    assert len(differences(recipe, held)) == 1  # pixels are warped twice, the unreadable left out
    assert differences(recipe, recipe.changed(**{"optim.lr": 0.5})) == ["optim.lr was 0.1, is 0.5"]


def test_the_documentation_names_every_key_and_recipe() -> None:
    text = (Path(__file__).parent.parent / "docs/training.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    table = ""
    named: set[str] = set()
    for row in rows:
        cells = row.split("|")
        if cells[1].strip().startswith("`["):
            table = cells[1].strip(" `[]") + "."
        named |= {table + key for key in re.findall(r"`([a-z_]+)`", cells[2])}
    known = set(recipe_from(BASE, "x").flat())
    optional = {"backbone.embedding_dim", "backbone.width", "run.best_metric", "start.pack"}
    assert known | optional <= named | {"name", "description"}
    for name in shipped_recipes():
        assert f"`{name}`" in text


# --- learning rate -------------------------------------------------------------------------


def test_the_published_steps() -> None:
    """Milestones are counted from 1: seven epochs at the first rate, as the paper's 8."""
    schedule = Schedule("step", 260, 10, milestones=(8, 14, 20, 25))
    per_epoch = [schedule.factor(10 * epoch) for epoch in range(26)]
    assert per_epoch == pytest.approx([1.0] * 7 + [0.1] * 6 + [0.01] * 6 + [1e-3] * 5 + [1e-4] * 2)
    assert schedule.factor(69) == 1.0 and schedule.factor(70) == pytest.approx(0.1)


def test_warm_up_rises_in_a_line_from_its_first_share() -> None:
    schedule = Schedule("constant", 100, 10, warmup_steps=4)
    assert [schedule.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_polynomial_and_cosine_at_known_points() -> None:
    polynomial = Schedule("polynomial", 110, 11, warmup_steps=10, power=2)
    assert polynomial.factor(10) == 1
    assert polynomial.factor(60) == pytest.approx(0.25)
    cosine = Schedule("cosine", 110, 11, warmup_steps=10, final=0.1)
    assert cosine.factor(10) == 1
    assert cosine.factor(60) == pytest.approx(0.55)
    assert cosine.factor(110) == pytest.approx(0.1)


@given(
    kind=st.sampled_from(["step", "polynomial", "cosine", "constant"]),
    total=st.integers(2, 500),
    warm=st.floats(0, 0.9),
    final=st.floats(0, 1),
)
def test_the_factor_stays_in_range_and_falls_after_the_warm_up(
    kind: str, total: int, warm: float, final: float
) -> None:
    warmup = int(total * warm)
    milestones = (2.0, 3.5) if kind == "step" else ()
    schedule = Schedule(kind, total, total / 5, warmup, milestones, final=final)  # type: ignore[arg-type]
    factors = [schedule.factor(step) for step in range(total)]
    assert all(0 < f <= 1 and math.isfinite(f) for f in factors)
    after = factors[warmup:]
    assert all(b <= a + 1e-12 for a, b in pairwise(after))
