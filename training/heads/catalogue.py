"""The heads by name, with their papers' defaults. Imports torch only.

========================= ====================================================== ===============
name                      target's logit over s                                  source
========================= ====================================================== ===============
softmax                   e . w + b, nothing normalised, s = 1
normface                  cos(theta)                                             Wang 2017
sphereface                f(m theta)                                             Liu 2017
cosface                   cos(theta) - m                                         Wang 2018
arcface                   f(theta + m)                                           Deng 2019
combined                  f(m1 theta + m2) - m3                                  Deng 2019
elastic-arc, elastic-arc+ f(theta + m_i), m_i ~ N(m, sigma)                      Boutros 2022
elastic-cos, elastic-cos+ cos(theta) - m_i, m_i ~ N(m, sigma)                    Boutros 2022
adaface                   f(theta - m q) - (m q + m), q from the norm            Kim 2022
magface                   f(theta + m(a)), a the norm, plus lambda_g g(a)        Meng 2021
========================= ====================================================== ===============

f is the cosine, continued beyond [0, pi] as in :mod:`training.heads.margins`.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch.distributed as dist

from facerec.errors import ConfigError
from training.heads.head import Head, HeadOptions
from training.heads.margins import AdaMargin, ElasticMargin, MagMargin, MarginPolicy

HEADS: dict[str, dict[str, float]] = {
    "softmax": {},
    "normface": {"scale": 64.0},
    "sphereface": {"scale": 64.0, "margin": 1.7},
    "cosface": {"scale": 64.0, "margin": 0.35},
    "arcface": {"scale": 64.0, "margin": 0.5},
    "combined": {"scale": 64.0, "m1": 1.0, "m2": 0.3, "m3": 0.2},
    "elastic-arc": {"scale": 64.0, "margin": 0.5, "sigma": 0.05},
    "elastic-cos": {"scale": 64.0, "margin": 0.35, "sigma": 0.05},
    "elastic-arc+": {"scale": 64.0, "margin": 0.5, "sigma": 0.0175},
    "elastic-cos+": {"scale": 64.0, "margin": 0.35, "sigma": 0.025},
    "adaface": {"scale": 64.0, "margin": 0.4, "h": 0.333, "momentum": 0.99},
    "magface": {
        "scale": 64.0, "l_a": 10.0, "u_a": 110.0, "l_m": 0.45, "u_m": 0.8, "lambda_g": 35.0,
    },
}  # fmt: skip
"""Every head's parameters and their defaults; ``create_head`` takes them as overrides."""

_COMMON = {f.name: f.default for f in fields(HeadOptions) if f.name not in ("scale", "normalise")}
_CHOICES = {
    "gradient": ("exact", "straight-through"),
    "storage": ("dense", "sharded", "sampled"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "margin": (0.0, math.pi),
    "m1": (1e-6, 16.0),
    "m2": (0.0, math.pi),
    "m3": (0.0, 2.0),
    "sigma": (0.0, 1.0),
    "h": (1e-6, 1e6),
    "momentum": (0.0, 1.0),
    "l_a": (1e-6, 1e6),
    "u_a": (1e-6, 1e6),
    "l_m": (0.0, math.pi),
    "u_m": (0.0, math.pi),
    "lambda_g": (0.0, 1e6),
    "scale": (1e-6, 1e6),
    "sample_rate": (1e-9, 1.0),
    "init_std": (1e-9, 1e3),
    "seed": (0, 2**40),
    "block_rows": (1, 2**31),
}
_WHOLE = ("seed", "block_rows")


def create_head(name: str, embedding_dim: int, num_classes: int, **overrides: Any) -> Head:
    """A head by its name.

    Args:
        name: one of ``HEADS``.
        embedding_dim: d, at least 2.
        num_classes: C, at least 2.
        overrides: the head's own parameters (``HEADS[name]``) and any field of
            :class:`HeadOptions` but ``normalise``. ``storage="sampled"`` takes a tenth of the
            classes unless ``sample_rate`` says otherwise.

    Raises:
        ConfigError: an unknown name or override (the known ones are listed), or a value that
            makes no sense.
    """
    if name not in HEADS:
        raise ConfigError(f"No head {name!r}; there are {', '.join(HEADS)}.")
    if embedding_dim < 2 or num_classes < 2:
        raise ConfigError(
            f"A head of {embedding_dim} dimensions and {num_classes} classes separates nothing; "
            "both must be at least 2."
        )
    known = {**_COMMON, **HEADS[name]}
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(
                f"Head {name!r} has no parameter {key!r}; it has {', '.join(sorted(known))}."
            )
        _check(name, key, value)
    if overrides.get("storage") == "sampled":
        overrides.setdefault("sample_rate", 0.1)
    values = {**known, **overrides}
    if name == "magface" and not (values["l_a"] < values["u_a"] and values["l_m"] <= values["u_m"]):
        raise ConfigError("Head 'magface' needs l_a < u_a and l_m <= u_m.")
    common = {key: values[key] for key in _COMMON}
    if "scale" in values:
        common["scale"] = float(values["scale"])
    else:
        common |= {"scale": 1.0, "normalise": False}
    options = HeadOptions(**common)
    return Head(embedding_dim, num_classes, _policy(name, values), options, name)


def _check(name: str, key: str, value: Any) -> None:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ConfigError(
                f"Head {name!r}: {key} is {value!r}; it can be {' or '.join(_CHOICES[key])}."
            )
        return
    low, high = _RANGES[key]
    if name == "sphereface" and key == "margin":
        low, high = 1.0, 16.0
    number = not isinstance(value, bool) and isinstance(value, int | float)
    whole = isinstance(value, int) or key not in _WHOLE
    if not (number and whole and low <= value <= high):
        kind = "a whole number" if key in _WHOLE else "a number"
        raise ConfigError(f"Head {name!r}: {key} is {value!r}; it is {kind} in [{low}, {high}].")


def _policy(name: str, values: dict[str, Any]) -> MarginPolicy:
    margin = values.get("margin", 0.0)
    if name.startswith("elastic"):
        return ElasticMargin(
            "arc" if "arc" in name else "cos",
            margin,
            values["sigma"],
            plus=name.endswith("+"),
            seed=_margin_seed(values),
        )
    if name == "adaface":
        return AdaMargin(margin, values["h"], values["momentum"])
    if name == "magface":
        keys = ("l_a", "u_a", "l_m", "u_m", "lambda_g")
        return MagMargin(*(values[key] for key in keys))
    triples = {
        "sphereface": (margin, 0.0, 0.0),
        "cosface": (1.0, 0.0, margin),
        "arcface": (1.0, margin, 0.0),
        "combined": (values.get("m1"), values.get("m2"), values.get("m3")),
    }
    return MarginPolicy(*triples.get(name, (1.0, 0.0, 0.0)))


def _margin_seed(values: dict[str, Any]) -> int:
    """Ranks with a dense head see other rows and draw for themselves; shards draw in step."""
    together = values["storage"] == "sharded" or not (dist.is_available() and dist.is_initialized())
    return int(values["seed"]) * 7919 + (0 if together else dist.get_rank())
