"""From a network to a model pack: the same numbers, any batch, smaller variants, whole or not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.embedding import Embedder
from facerec.errors import ConfigError, ModelError
from facerec.packs import Pack, PackManifest, TrainingSpec, find_pack
from facerec.runtime import Network, Workers
from tests.export_samples import network, of_torch, unit
from tests.training_runs import blob_chips, blobs, one_thread, tiny
from training.backbones import Backbone
from training.data import ArraySource
from training.export import ExportReport, Provenance, export_pack, load_trained
from training.onnx_graph import to_onnx
from training.trainer import train

KNOWN = {"licence": "of the test", "source": "the test", "provenance": Provenance()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# Packs


def sets(people: int = 24, each: int = 4) -> tuple[ArraySource, ArraySource]:
    """People to calibrate on and other people to measure on."""
    return blobs(people, each, seed=1), others(people, each)


def others(people: int, each: int) -> ArraySource:
    """People whose names are not those of ``blobs``."""
    chips, labels = blob_chips(people, each, seed=2)
    return ArraySource(chips, labels + 1000, "arcface-112", origin="blobs")


@dataclass(frozen=True, eq=False)
class Exported:
    backbone: Backbone
    report: ExportReport
    folder: Path

    def pack(self, form: str = "") -> Pack:
        return Pack.load(self.folder / form)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny network, briefly trained, as a pack with both variants."""
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "run"
    recipe = tiny(run__epochs=6, backbone__name="iresnet10", backbone__width=0.125, optim__ema=0.5)
    train(recipe, blobs(20, 8, seed=1), run)
    backbone, provenance = load_trained(run)
    learnt, strangers = sets()
    report = export_pack(
        backbone,
        folder / "pack",
        detector=find_pack("bundled"),
        name="tiny",
        licence="of the test",
        source="the test",
        provenance=provenance,
        measure_on=strangers,
        calibrate_on=learnt,
    )
    return Exported(backbone, report, folder / "pack")


def test_the_pack_embeds_as_the_network_does(trained: Exported) -> None:
    pack = trained.pack()
    pack.verify()
    _, strangers = sets()
    embedder = Embedder(pack, Network(pack.embedder_path, "cpu", 1), Workers(1))
    got = embedder.embed(strangers.chips)
    wanted = of_torch(trained.backbone, strangers.chips)
    wanted = unit(wanted + of_torch(trained.backbone, strangers.chips[:, :, ::-1]))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert pack.contract.flip
    assert pack.contract.contract_id == trained.report.contract_id


def test_a_pack_without_flip_says_so(tmp_path: Path) -> None:
    report = export_pack(
        network("iresnet10"),
        tmp_path / "plain",
        detector=find_pack("bundled"),
        name="plain",
        flip=False,
        variants=(),
        **KNOWN,
    )
    pack = Pack.load(tmp_path / "plain")
    assert not pack.contract.flip
    assert [p.precision for p in report.packs] == ["float32"]
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        *("backbone.pt", "centerface.onnx", "embedder.onnx", "licences", "pack.toml")
    ]


def test_variants_are_packs_of_their_own_and_close(trained: Exported) -> None:
    report, exact = trained.report, trained.pack()
    assert [p.precision for p in report.packs] == ["float32", "float16", "int8"]
    assert len({p.contract_id for p in report.packs}) == 3
    _, strangers = sets()
    rows = {}
    for found in report.packs:
        pack = Pack.load(found.folder)
        pack.verify()
        assert pack.contract.contract_id == found.contract_id
        assert pack.thresholds == found.thresholds is not None
        assert found.size_bytes == pack.embedder_path.stat().st_size
        network = Network(pack.embedder_path, "cpu", 1)
        rows[found.precision] = Embedder(pack, network, Workers(1)).embed(strangers.chips)
        cosines = (rows[found.precision] * rows["float32"]).sum(1)
        assert found.mean_cosine == pytest.approx(cosines.mean(), abs=1e-3)
        assert found.min_cosine == pytest.approx(cosines.min(), abs=5e-3)
        if found.precision != "float32":
            variant = pack.manifest.training.variant
            assert variant.precision == found.precision
            assert variant.of == exact.contract.contract_id
            assert variant.mean_cosine == pytest.approx(found.mean_cosine, abs=1e-6)
            assert variant.tar.keys() == variant.tar_difference.keys() == {"1e-02"}
            assert pack.name == f"tiny-{found.precision}"
    by_form = {p.precision: p for p in report.packs}
    assert by_form["float16"].min_cosine > 0.9999
    assert by_form["int8"].mean_cosine > 0.98
    assert by_form["float16"].size_bytes < 0.6 * by_form["float32"].size_bytes
    assert by_form["int8"].size_bytes < 0.45 * by_form["float32"].size_bytes
    kinds = {}
    for form, found in by_form.items():
        tensors = onnx.load(str(found.folder / "embedder.onnx")).graph.initializer
        kinds[form] = max(tensors, key=lambda t: int(np.prod(t.dims))).data_type
    assert kinds == {
        "float32": onnx.TensorProto.FLOAT,
        "float16": onnx.TensorProto.FLOAT16,
        "int8": onnx.TensorProto.INT8,
    }


def test_thresholds_are_those_of_every_pair(trained: Exported) -> None:
    """Counted one by one, with torch's embeddings."""
    _, strangers = sets()
    rows = unit(
        of_torch(trained.backbone, strangers.chips)
        + of_torch(trained.backbone, strangers.chips[:, :, ::-1])
    )
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    scores = np.array([rows[i] @ rows[j] for i, j in pairs])
    same = np.array([strangers.labels[i] == strangers.labels[j] for i, j in pairs])
    table = trained.report.thresholds
    assert table is not None
    assert table.fmr == (0.1, 0.01)  # 4,416 impostor pairs: 1e-3 would rest on 4
    for fmr, cosine, fnmr in zip(table.fmr, table.cosine, table.fnmr, strict=True):
        assert (scores[~same] >= cosine + 1e-5).mean() <= fmr
        assert (scores[~same] >= cosine - 1e-5).mean() >= fmr - 2 / (~same).sum()
        assert (scores[same] < cosine).mean() == pytest.approx(fnmr, abs=0.01)
    assert "pass --fmr 0.01." in "\n".join(trained.report.lines())
    for words in ("4,416 impostor", "144 genuine", "24 people", "blobs", "kept aside"):
        assert words in table.measured_on


def test_what_pack_toml_says_of_the_training(trained: Exported) -> None:
    state, pack = trained.report, trained.pack()
    training = pack.manifest.training
    assert training.data.images == 160 and training.data.identities == 20
    assert training.data.origin == "blobs"
    assert training.data.sha256 == blobs(20, 8, seed=1).digest()
    assert training.recipe["backbone"]["name"] == "iresnet10"
    assert training.recipe["optim"]["ema"] == 0.5
    assert training.notes["averaged_weights"] is True
    assert training.torch == torch.__version__
    assert training.parity["batch_1"] == pytest.approx(state.parity[0].embeddings, rel=0.01)
    text = (trained.folder / "pack.toml").read_text()
    assert PackManifest.parse(text, "again") == pack.manifest
    assert PackManifest.parse(pack.manifest.to_toml(), "again") == pack.manifest
    assert "[training.recipe.backbone]\n" in text
    assert "{" not in text  # tables, not inline ones
    for folder in (trained.folder, trained.folder / "int8"):
        copied = folder / "licences" / "bundled"
        theirs = find_pack("bundled").folder / "licences"
        assert {p.name: p.read_bytes() for p in copied.iterdir()} == {
            p.name: p.read_bytes() for p in theirs.iterdir()
        }
    assert pack.manifest.embedder.licence == "of the test"
    assert pack.manifest.detector.licence == "MIT"


def test_no_path_of_the_machine_gets_into_the_manifest(tmp_path: Path) -> None:
    start = tmp_path / "secret" / "runs" / "first" / "checkpoints" / "best.pt"
    recipe = tiny().changed(**{"start.checkpoint": str(start)})
    export_pack(
        network("iresnet10"),
        tmp_path / "pack",
        detector=find_pack("bundled"),
        name="pack",
        variants=(),
        licence="x",
        source="x",
        provenance=Provenance(
            recipe=recipe,
            data={"origin": str(tmp_path / "secret" / "faces"), "images": 3, "identities": "ab"},
            metrics={"tar": 0.5, "eer": float("nan")},
        ),
    )
    text = (tmp_path / "pack" / "pack.toml").read_text()
    assert "secret" not in text and str(tmp_path) not in text
    training = Pack.load(tmp_path / "pack").manifest.training
    assert training.data.origin == "faces" and training.data.identities is None
    assert training.recipe["start"]["checkpoint"] == "first/checkpoints/best.pt"
    assert training.metrics == {"tar": 0.5}


_scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
_names = st.text("abcdefgh_-.0", min_size=1, max_size=6)
_tables = st.recursive(
    st.dictionaries(_names, st.one_of(_scalars, st.lists(_scalars, max_size=3)), max_size=3),
    lambda inner: st.dictionaries(_names, st.one_of(_scalars, inner), max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(recipe=_tables, notes=_tables, metrics=st.dictionaries(_names, st.floats(-1, 1), max_size=3))
def test_any_training_table_reads_back_as_it_was_written(
    recipe: dict[str, Any], notes: dict[str, Any], metrics: dict[str, float]
) -> None:
    spec = TrainingSpec(
        date="2026-01-02", facerec="1", torch="2", recipe=recipe, notes=notes, metrics=metrics
    )
    manifest = find_pack("bundled").manifest.model_copy(update={"training": spec})
    assert PackManifest.parse(manifest.to_toml(), "text") == manifest


def test_a_wrong_training_table_is_refused() -> None:
    text = find_pack("bundled").manifest.to_toml()
    head = '\n[training]\ndate = "d"\nfacerec = "1"\ntorch = "2"\n'
    PackManifest.parse(text + head, "pack.toml")
    for wrong, key in (
        ("colour = 1\n", "training.colour"),
        ("[training.data]\norigin = '/home/me/faces'\n", "training.data.origin"),
        ("[training.variant]\nprecision = 'int4'\nof = 'x'\n", "training.variant.precision"),
        ("[training.notes]\nday = 2020-01-01\n", "training.notes"),
    ):
        with pytest.raises(ModelError, match=key):
            PackManifest.parse(text + head + wrong, "pack.toml")
    with pytest.raises(ValueError, match="NoneType"):
        TrainingSpec(date="d", facerec="1", torch="2", notes={"a": [None]})


# What is refused, and that nothing is left


def test_an_activation_that_overflows_float16_writes_no_pack(tmp_path: Path) -> None:
    backbone = network("iresnet10")
    with torch.no_grad():
        norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms[:4]:
            norm.weight.mul_(30)  # each weight is small, what they do together is not
    with pytest.raises(ModelError, match="an activation reaches"):
        export_pack(
            backbone,
            tmp_path / "pack",
            detector=find_pack("bundled"),
            name="pack",
            variants=("float16",),
            **KNOWN,
        )
    assert list(tmp_path.iterdir()) == []


def attempt(target: Path, **changes: Any) -> ExportReport:
    learnt, strangers = sets(4, 3)
    given = {
        "detector": find_pack("bundled"),
        "name": "pack",
        "variants": (),
        "measure_on": strangers,
        "calibrate_on": learnt,
        **KNOWN,
        **changes,
    }
    return export_pack(network("iresnet10"), target, **given)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "a/b"}, "no name for a pack"),
        ({"name": "a" * 60}, "56 characters"),
        ({"variants": ("int4",)}, "float16, int8"),
        ({"variants": ("int8",), "calibrate_on": None}, "--variants float16"),
        ({"measure_on": blobs(4, 3, 1), "calibrate_on": blobs(4, 3, 1)}, "both measured and"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        attempt(tmp_path / "pack", **changes)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    for target in (tmp_path / "file", tmp_path / "folder"):
        target.touch() if target.name == "file" else target.mkdir()
        with pytest.raises(ConfigError, match="exists"):
            attempt(target)
    with pytest.raises(ConfigError, match="make it first"):
        attempt(tmp_path / "none" / "pack")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failure_or_interruption_at_any_point_leaves_nothing(tmp_path: Path) -> None:
    """Stopped at the first thing it says, the second, ..."""
    said: list[str] = []
    attempt(tmp_path / "whole", progress=said.append)
    assert len(said) >= 4
    shutil.rmtree(tmp_path / "whole")
    for step in range(len(said)):
        count = iter(range(len(said)))
        error = (KeyboardInterrupt, OSError(28, "No space left on device"))[step % 2]

        def stop(_: str, count: Any = count, step: int = step, error: Any = error) -> None:
            if next(count) == step:
                raise error

        with pytest.raises((KeyboardInterrupt, ModelError)) as caught:
            attempt(tmp_path / "pack", progress=stop)
        if step % 2:
            assert "No space left" in str(caught.value) and "Nothing of it is left" in str(
                caught.value
            )
        assert list(tmp_path.iterdir()) == []


def test_a_network_whose_weights_are_another_s_is_refused(tmp_path: Path) -> None:
    backbone = network("iresnet10")
    backbone.arguments["width"] = 0.5
    with pytest.raises(ModelError, match="weights"):
        to_onnx(backbone)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_disk_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "facerec-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(ModelError, match=r"disk/pack: .*[Rr]ead-only"):
            attempt(disk / "pack")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_without_faces_to_measure_there_are_no_thresholds_and_it_says_so(tmp_path: Path) -> None:
    for measure_on, words in ((None, "no faces to measure on"), (others(3, 2), "too few faces")):
        target = tmp_path / words.replace(" ", "-")
        report = attempt(target, measure_on=measure_on)
        assert Pack.load(target).thresholds is report.thresholds is None
        text = "\n".join(report.lines())
        assert words in text
        assert f"facerec evaluate lfw DIR --pack {target} --write" in text
