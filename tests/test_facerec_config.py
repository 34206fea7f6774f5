"""Settings: precedence, and that nothing unknown or out of range passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from facerec.config import ENV_PREFIX, Settings, load_settings
from facerec.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "facerec.toml"
    path.write_text("")
    monkeypatch.setenv("FACEREC_CONFIG", str(path))
    return path


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACEREC_GALLERY")
    monkeypatch.delenv("FACEREC_CACHE")
    settings = load_settings()
    assert settings.pack is None  # the gallery's own, or the bundled one
    assert settings.device == "auto"
    assert settings.threads is None
    assert settings.packs is None
    assert settings.keep_crops is True
    assert 0 < settings.fmr < 1
    assert "facerec" in settings.gallery
    assert "facerec" in str(settings.cache)


def test_flags_over_environment_over_file_over_defaults(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().fmr == 1e-3
    config_file.write_text('fmr = 0.5\npack = "from-file"\nthreads = 3\n')
    assert load_settings().fmr == 0.5
    monkeypatch.setenv("FACEREC_FMR", "0.25")
    monkeypatch.setenv("FACEREC_PACK", "from-environment")
    settings = load_settings(fmr=0.125)
    assert settings.fmr == 0.125
    assert settings.pack == "from-environment"
    assert settings.threads == 3
    assert load_settings().fmr == 0.25


def test_a_flag_that_is_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREC_PACK", "from-environment")
    assert load_settings(pack=None, threads=None).pack == "from-environment"


def test_a_flag_that_is_false_is_given(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text("keep_crops = true\n")
    monkeypatch.setenv("FACEREC_KEEP_CROPS", "true")
    assert load_settings(keep_crops=False).keep_crops is False


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "gallery": "/g",
        "pack": "p",
        "packs": "/ps",
        "cache": "/c",
        "device": "cpu",
        "threads": "7",
        "fmr": "0.01",
        "keep_crops": "0",
        "max_pixels": "1000",
    }
    assert set(values) == set(Settings.model_fields)
    for name, value in values.items():
        monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
    settings = load_settings()
    assert (settings.gallery, settings.pack, settings.device) == ("/g", "p", "cpu")
    assert (settings.packs, settings.cache) == (Path("/ps"), Path("/c"))
    assert (settings.threads, settings.fmr, settings.max_pixels) == (7, 0.01, 1000)
    assert settings.keep_crops is False


@pytest.mark.parametrize("name", ["FACEREC_TRESHOLD", "FACEREC_", "facerec_fmrr"])
def test_an_unknown_variable_is_an_error_that_lists_the_known(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"unknown setting {name} .*FACEREC_FMR"):
        load_settings()


def test_variables_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACERECOGNITION", "1")
    monkeypatch.setenv("MY_FACEREC_FMR", "2")
    assert load_settings().fmr == 1e-3


def test_an_unknown_key_of_the_file_is_an_error(config_file: Path) -> None:
    config_file.write_text("fmrr = 0.1\n")
    with pytest.raises(ConfigError, match="fmrr"):
        load_settings()
    config_file.write_text("[facerec]\nfmr = 0.1\n")
    with pytest.raises(ConfigError, match="facerec"):
        load_settings()


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(ConfigError, match="treshold"):
        load_settings(treshold=0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fmr", "0"),
        ("fmr", "1"),
        ("fmr", "-0.1"),
        ("fmr", "nan"),
        ("fmr", "often"),
        ("threads", "0"),
        ("threads", "2.5"),
        ("threads", ""),
        ("device", "gpu"),
        ("device", "CUDA"),
        ("keep_crops", "maybe"),
        ("max_pixels", "0"),
        ("max_pixels", "many"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
    with pytest.raises(ConfigError, match=rf"settings: {name}: ") as caught:
        load_settings()
    assert repr(value) in str(caught.value)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"device.*threads.*fmr"):
        load_settings(device="tpu", threads=-1, fmr=7)


def test_a_value_of_the_wrong_kind_in_the_file(config_file: Path) -> None:
    config_file.write_text("fmr = [0.1]\n")
    with pytest.raises(ConfigError, match="settings: fmr"):
        load_settings()


@pytest.mark.parametrize("text", ["fmr = ", "= 3", '"unclosed', "fmr = 0.1\nfmr = 0.2"])
def test_a_file_that_does_not_parse_is_named(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(config_file) in str(caught.value)


def test_a_file_that_is_not_text_is_named(config_file: Path) -> None:
    config_file.write_bytes(b"fmr = \xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(config_file) in str(caught.value)


def test_a_missing_file_is_an_error_and_a_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        monkeypatch.setenv("FACEREC_CONFIG", str(path))
        with pytest.raises(ConfigError, match="no such file"):
            load_settings()


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.fmr = 0.5  # type: ignore[misc]
