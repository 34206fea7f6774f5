"""Backbones: sizes, precision, memory format, and the bundled pack's own network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import ConfigError, ModelError
from facerec.packs.manifest import EmbedderSpec, Pack, sha256_file
from facerec.pipeline import Pipeline

torch = pytest.importorskip("torch")

from training import backbones  # noqa: E402
from training.backbones import (  # noqa: E402
    BACKBONES,
    STARTING_POINT,
    Backbone,
    Preprocessing,
    backbone_from_pack,
    count_macs,
    count_parameters,
    create_backbone,
    save_starting_point,
)
from training.backbones.prelu import PReLU  # noqa: E402

SMALL = {"width": 0.25, "input_size": 32}
"""Overrides that make iresnet10 and mobilefacenet quick."""
TRAINABLE_SMALL = ("iresnet10", "mobilefacenet", "mobilefacenet-paper")


def on_meta(name: str, dim: int | None = None) -> Backbone:
    """The network without its weights: shapes alone."""
    with torch.device("meta"):
        return create_backbone(name, dim, pretrained=False)


def chips(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), np.uint8)
    )


# --- cost ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dim", "parameters", "macs"),
    [
        # insightface's model zoo prints the same four parameter counts (24.03, 34.14, 43.59,
        # 65.16 M), the MobileFaceNet paper "0.99M" for its layout with another last layer.
        ("iresnet18", 512, 24_025_600, 2.61e9),
        ("iresnet34", 512, 34_139_328, 4.46e9),
        ("iresnet50", 512, 43_590_848, 6.31e9),
        ("iresnet100", 512, 65_156_160, 12.09e9),
        ("mobilefacenet", 512, 2_058_368, 0.434e9),
        ("mobilefacenet", 128, 1_860_992, 0.434e9),
        ("mobilefacenet-paper", 128, 1_003_136, 0.221e9),
        ("dlib_resnet29", 128, 5_607_488, 0.271e9),
    ],
)
def test_networks_have_the_size_that_the_field_knows(
    name: str, dim: int, parameters: int, macs: float
) -> None:
    backbone = on_meta(name, dim)
    assert count_parameters(backbone) == parameters
    assert count_macs(backbone) == pytest.approx(macs, rel=0.005)


def test_docstrings_state_the_true_sizes() -> None:
    """Every row of the three tables, against the network."""
    rows = []
    for module in ("iresnet", "mobilefacenet", "dlib"):
        text = (Path(backbones.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        rows += re.findall(r"^\| (\S+) \| ([\d.M/ ]+) \| ([\d.]+) G \|$", text, re.M)
    assert {name for name, _, _ in rows} == set(BACKBONES)
    for name, sizes, macs in rows:
        dims = [128, 512] if "/" in sizes else [None]
        for dim, size in zip(dims, sizes.split("/"), strict=True):
            backbone = on_meta(name, dim)
            digits = len(size.split()[0].split(".")[1])
            assert f"{count_parameters(backbone) / 1e6:.{digits}f} M" == size.strip()
        assert f"{count_macs(backbone) / 1e9:.2f}" == macs


def test_macs_by_formula() -> None:
    """The hooks against the sum written out, for the smallest network."""
    backbone = on_meta("iresnet10")
    total, inputs, side = 3 * 64 * 9 * 112**2, 64, 112
    for outputs in (64, 128, 256, 512):
        total += side**2 * inputs * outputs * 9  # first convolution, before the stride
        side //= 2
        total += side**2 * outputs * (outputs * 9 + inputs)  # second, and the shortcut
        inputs = outputs
    assert count_macs(backbone) == total + 512 * 49 * 512


def test_width_and_input_size_scale_the_cost() -> None:
    small = create_backbone("mobilefacenet-paper", 128, width=0.5, input_size=64)
    assert count_parameters(small) < 0.4 * 1_003_136
    assert count_macs(small) < 0.11 * 0.221e9
    assert small.input_size == 64 and small.template == "arcface-112"


# --- what every backbone does -----------------------------------------------------------


@pytest.mark.parametrize("name", [*TRAINABLE_SMALL, "dlib_resnet29"])
def test_preprocessing_speaks_the_language_of_packs(name: str) -> None:
    backbone = create_backbone(name)
    spec = EmbedderSpec(
        file="e.onnx", dim=backbone.embedding_dim, **backbone.preprocessing.to_dict()
    )
    assert spec.input_size == backbone.input_size
    assert (spec.mean, spec.scale) == (backbone.mean, backbone.scale)


def test_preprocessing_is_pixel_less_mean_times_scale() -> None:
    """Per channel, in the order of ``colour``; memory format kept."""
    images = chips(3, 32).contiguous(memory_format=torch.channels_last)
    mean, scale = (1.0, 2.0, 3.0), (0.5, 0.25, 2.0)
    for colour, order in (("RGB", (0, 1, 2)), ("BGR", (2, 1, 0))):
        got = Preprocessing("arcface-112", 32, colour, mean, scale).apply(images)
        for channel in range(3):
            expected = (images[:, order[channel]].double() - mean[channel]) * scale[channel]
            torch.testing.assert_close(got[:, channel].double(), expected, rtol=1e-6, atol=1e-5)
    rgb = Preprocessing("arcface-112", 32, "RGB", mean, scale).apply(images)
    assert rgb.dtype == torch.float32
    assert rgb.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match=r"\(N, 3, 150, 150\) uint8, got \(3, 3, 112, 112\)"):
        create_backbone("dlib_resnet29").preprocessing.apply(chips(3, 112))


@pytest.mark.parametrize("name", TRAINABLE_SMALL)
@pytest.mark.parametrize("dim", [2, 128])
def test_gradients_reach_every_parameter(name: str, dim: int) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, dim, **SMALL)
    out = backbone(backbone.preprocessing.apply(chips(4, 32)))
    assert out.shape == (4, dim) and out.dtype == torch.float32
    (out * torch.randn(4, dim)).sum().backward()
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"embedding.norm.weight"}
    # Batch normalisation takes the mean away, so a bias just before it has no gradient but rounding
    # (seen: exactly zero, or 1e-8).
    undone = {"embedding.fc.bias"}
    for name_, parameter in backbone.named_parameters():
        if name_ not in frozen:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name_
            if name_ in undone:
                assert parameter.grad.abs().max() < 1e-5, name_
            else:
                assert parameter.grad.abs().max() > 0, name_


@pytest.mark.parametrize("name", [*TRAINABLE_SMALL, "dlib_resnet29"])
def test_channels_last_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, **({} if name == "dlib_resnet29" else SMALL))
    x = backbone.preprocessing.apply(chips(4, backbone.input_size))
    expected = backbone(x).detach()
    turned = backbone.to(memory_format=torch.channels_last)
    got = turned(x.contiguous(memory_format=torch.channels_last)).detach()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*TRAINABLE_SMALL, "dlib_resnet29"])
def test_bfloat16_autocast_gives_float32_and_finite_gradients(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, **({} if name == "dlib_resnet29" else SMALL))
    backbone = backbone.to(memory_format=torch.channels_last)
    x = backbone.preprocessing.apply(chips(8, backbone.input_size))
    expected = backbone(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = backbone(x.contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.float32
    assert torch.cosine_similarity(out, expected).min() > 0.99
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


def test_iresnet_starts_from_the_published_spread() -> None:
    torch.manual_seed(0)
    stds = [
        m.weight.std().item()
        for m in create_backbone("iresnet18").modules()
        if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 10_000
    ]
    assert max(abs(s - 0.1) for s in stds) < 0.002


def test_depthwise_filters_start_by_their_own_fan_in() -> None:
    torch.manual_seed(0)
    for module in create_backbone("mobilefacenet").modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)


def test_dropout_works_in_training_only() -> None:
    backbone = create_backbone("mobilefacenet", 64, dropout=0.5, **SMALL).eval()
    x = backbone.preprocessing.apply(chips(2, 32))
    torch.testing.assert_close(backbone(x), backbone(x))
    backbone.embedding.dropout.train()
    assert not torch.allclose(backbone(x), backbone(x))


def test_arguments_rebuild_the_network() -> None:
    first = create_backbone("iresnet10", 64, dropout=0.1, **SMALL)
    again = create_backbone(**first.arguments)
    again.load_state_dict(first.state_dict())
    x = first.preprocessing.apply(chips(2, 32))
    torch.testing.assert_close(again.eval()(x), first.eval()(x), rtol=0, atol=0)
    assert again.preprocessing == first.preprocessing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_backbone("resnet50"), "no backbone 'resnet50'; known are iresnet10"),
        (lambda: create_backbone("iresnet18", depth=3), "no setting 'depth'; known are embed"),
        (lambda: create_backbone("dlib_resnet29", width=2.0), "no setting 'width'"),
        (lambda: create_backbone("dlib_resnet29", 512), "embedding_dim is 128"),
        (lambda: create_backbone("iresnet18", 1), "embedding_dim is at least 2"),
        (lambda: create_backbone("iresnet18", dropout=1.0), "dropout lies in"),
        (lambda: create_backbone("dlib_resnet29", dropout=-0.1), "dropout lies in"),
        (lambda: create_backbone("mobilefacenet", width=0.0), "width lies in"),
        (lambda: create_backbone("mobilefacenet", input_size=100), "multiple of 16"),
    ],
)
def test_what_cannot_be_built_is_said(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # all of torch.compile but the code generator, which takes 40 s here
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
            ],
        ),
    ],
)
def test_compiles(backend: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("iresnet10", 16, width=0.125, input_size=32).eval()
    x = backbone.preprocessing.apply(chips(2, 32))
    compiled = torch.compile(backbone, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), backbone(x), rtol=1e-4, atol=1e-4)


# --- the bundled pack's network ---------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
def test_bundled_network_computes_what_its_file_does(bundled_pack: Pack, batch: int) -> None:
    import onnxruntime

    backbone = backbone_from_pack(bundled_pack).eval()
    x = backbone.preprocessing.apply(chips(batch, 150))
    session = onnxruntime.InferenceSession(bundled_pack.embedder_path)
    [expected] = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(backbone(x).numpy(), expected, rtol=0, atol=1e-4)


def test_bundled_network_embeds_faces_as_the_pipeline(
    pipeline: Pipeline, group_photo: np.ndarray
) -> None:
    [detections] = pipeline.detector.detect([group_photo])
    aligned = pipeline.align(group_photo, detections)
    expected = pipeline.embedder.embed(aligned)
    backbone = create_backbone("dlib_resnet29").eval()
    x = backbone.preprocessing.apply(torch.from_numpy(aligned.transpose(0, 3, 1, 2).copy()))
    with torch.no_grad():
        sums = backbone(x) + backbone(x.flip(3))  # the pack averages the mirror image in
    got = torch.nn.functional.normalize(sums).numpy()
    np.testing.assert_allclose((got * expected).sum(1), 1, atol=1e-5)


def test_bundled_network_can_be_trained() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("dlib_resnet29").train()
    x = backbone.preprocessing.apply(chips(4, 150))
    target = torch.nn.functional.normalize(torch.randn(4, 128))
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        cosine = torch.cosine_similarity(backbone(x), target)
        losses.append(1 - cosine.mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert all(p.grad is not None for p in backbone.parameters())
    assert losses[-1] < losses[0] - 0.01


def packed(folder: Path, backbone: Backbone, bundled: Pack) -> Pack:
    """A pack as ``facerec export`` would write it, with a file in the place of the ONNX file."""
    import onnx
    from onnx import helper

    graph = helper.make_graph([], "main_graph", [], [])
    onnx.save(helper.make_model(graph), folder / "embedder.onnx")
    spec = EmbedderSpec(
        file="embedder.onnx",
        dim=backbone.embedding_dim,
        sha256=sha256_file(folder / "embedder.onnx"),
        **backbone.preprocessing.to_dict(),
    )
    return Pack(folder, bundled.manifest.model_copy(update={"name": "mine", "embedder": spec}))


def test_a_pack_of_ours_is_a_starting_point(tmp_path: Path, bundled_pack: Pack) -> None:
    backbone = create_backbone("mobilefacenet", 32, dropout=0.4, **SMALL).eval()
    pack = packed(tmp_path, backbone, bundled_pack)
    save_starting_point(backbone, tmp_path, pack.contract.embedder_sha256)
    again = backbone_from_pack(pack, dropout=0.1)
    assert again.arguments == {**backbone.arguments, "dropout": 0.1}
    x = backbone.preprocessing.apply(chips(2, 32))
    torch.testing.assert_close(again.eval()(x), backbone(x), rtol=0, atol=0)


def test_a_pack_that_cannot_be_a_starting_point(tmp_path: Path, bundled_pack: Pack) -> None:
    backbone = create_backbone("mobilefacenet", 32, **SMALL)
    pack = packed(tmp_path, backbone, bundled_pack)
    with pytest.raises(ModelError, match=r"'mine' cannot be a starting point.*'bundled'"):
        backbone_from_pack(pack)

    save_starting_point(backbone, tmp_path, "0" * 64)
    with pytest.raises(ModelError, match="belongs to another ONNX file"):
        backbone_from_pack(pack)

    (tmp_path / STARTING_POINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="damaged, or not a backbone file"):
        backbone_from_pack(pack)

    other = create_backbone("mobilefacenet", 32, width=0.25, input_size=48)
    save_starting_point(other, tmp_path, pack.contract.embedder_sha256)
    with pytest.raises(ModelError, match=r"input_size is 32 in pack\.toml, 48 in the network"):
        backbone_from_pack(pack)


def test_a_starting_point_runs_no_code(tmp_path: Path, bundled_pack: Pack) -> None:
    """backbone.pt comes with packs from anywhere: torch.load must not unpickle objects."""
    pack = packed(tmp_path, create_backbone("mobilefacenet", 32, **SMALL), bundled_pack)
    torch.save({"format": 1, "arguments": Path}, tmp_path / STARTING_POINT)
    with pytest.raises(ModelError, match="damaged, or not a backbone file"):
        backbone_from_pack(pack)


def test_a_file_that_is_another_network(tmp_path: Path, bundled_pack: Pack) -> None:
    import onnx

    model = onnx.load(str(bundled_pack.embedder_path))
    kept = [t for t in model.graph.initializer if not t.name.startswith("conv256_1.conv1.bias")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    (tmp_path / "dlib_resnet29.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"expected a tensor conv256_1.conv1.bias of shape \(256"):
        backbone_from_pack(Pack(tmp_path, bundled_pack.manifest))

    (tmp_path / "dlib_resnet29.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelError, match="not an ONNX model"):
        backbone_from_pack(Pack(tmp_path, bundled_pack.manifest))


# --- export -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iresnet10", "mobilefacenet", "dlib_resnet29"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    """The graph depends on no value and not on the batch; ONNX itself is training.export's."""
    backbone = create_backbone(name, **({} if name == "dlib_resnet29" else SMALL)).eval()
    x = backbone.preprocessing.apply(chips(2, backbone.input_size))
    batch = torch.export.Dim("batch")
    program = torch.export.export(backbone, (x,), dynamic_shapes={"images": {0: batch}})
    seven = backbone.preprocessing.apply(chips(7, backbone.input_size))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(seven), backbone(seven))


# --- PReLU ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_prelu_in_bfloat16_has_the_gradient_of_the_definition(
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    layer = PReLU(5)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.3, 0.9, 5))
    x = torch.randn(3, 5, 4, 4).bfloat16().contiguous(memory_format=memory_format)
    x[0, :, 0, 0] = 0  # the negative side's slope there, as torch has it
    x.requires_grad_()
    out = layer(x)
    assert type(out.grad_fn).__name__ == "_PReLUFunctionBackward"
    grad = torch.randn_like(out)
    out.backward(grad)

    exact, slope = x.detach().double().requires_grad_(), layer.weight.detach().double()
    slope.requires_grad_()
    expected = torch.where(exact > 0, exact, slope.view(1, -1, 1, 1) * exact)
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0.01, atol=0.01)
    torch.testing.assert_close(layer.weight.grad.double(), slope.grad, rtol=0.02, atol=0.05)


def test_prelu_is_torchs_own_elsewhere() -> None:
    layer, reference = PReLU(5), torch.nn.PReLU(5)
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(layer(x), reference(x), rtol=0, atol=0)
    assert type(layer(x).grad_fn).__name__ == type(reference(x).grad_fn).__name__
