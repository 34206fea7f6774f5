"""Typed settings: flags over environment over a file of settings over defaults.

Every setting can be given as ``FACEREC_<NAME>`` in the environment, or as a key
of the TOML file that ``FACEREC_CONFIG`` names. An unknown key, in either place,
is an error. Imports the core and pydantic only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from facerec.errors import ConfigError

ENV_PREFIX = "FACEREC_"
_CONFIG_FILE = "FACEREC_CONFIG"

Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseSettings):
    """What the composition roots (command line, web UI) start from."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    gallery: str = Field(default_factory=lambda: str(user_data_path("facerec") / "gallery"))
    """Folder of the gallery, or postgresql://... where a database server holds it."""
    pack: str | None = None
    """Name of a model pack, or path of its folder; None: the gallery's own, else "bundled"."""
    packs: Path | None = None
    """A folder of packs, searched before the user's cache."""
    cache: Path = Field(default_factory=lambda: user_cache_path("facerec"))
    """Where fetched packs go."""
    device: Device = "auto"
    threads: int | None = Field(default=None, ge=1)
    """Threads of onnxruntime; None: as many as this process may use cores."""
    fmr: float = Field(default=1e-3, gt=0, lt=1)
    """Target false-match rate of one comparison."""
    keep_crops: bool = True
    """Keep a loose crop per template, so that a later model can re-embed it."""
    max_pixels: int = Field(default=120_000_000, ge=1)
    """Larger images are refused before they are decoded."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, env_settings]
        if path := os.environ.get(_CONFIG_FILE):
            sources.append(TomlConfigSettingsSource(settings_cls, Path(path)))
        return tuple(sources)


def is_url(gallery: str) -> bool:
    """Whether the gallery is on a server, and not in a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", gallery) is not None


def load_settings(**flags: Any) -> Settings:
    """The settings in force; ``flags`` that are not None win.

    Raises ConfigError for an unknown key, a value out of range, or a settings
    file that is missing or does not parse; the message names the key.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {_CONFIG_FILE}
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"unknown setting {variable} in the environment; known are {names}")
    path = os.environ.get(_CONFIG_FILE)
    if path and not Path(path).is_file():
        raise ConfigError(f"{_CONFIG_FILE}: no such file: {path}")
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in exc.errors()
        )
        raise ConfigError(f"settings: {problems}") from exc
    except ValueError as exc:  # TOML that does not parse
        raise ConfigError(f"{path}: {exc}") from exc
