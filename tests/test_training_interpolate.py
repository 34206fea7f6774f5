"""Weight interpolation: the ends are exact, between them it is linear, and only alike networks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import ConfigError

torch = pytest.importorskip("torch")

from training.backbones import Backbone, create_backbone  # noqa: E402
from training.interpolate import interpolate  # noqa: E402

SHAPE = {"embedding_dim": 8, "width": 0.25, "input_size": 32}


def network(seed: int, batches: int = 0, **changes: object) -> Backbone:
    """A small network whose BatchNorm has seen ``batches`` batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = create_backbone("mobilefacenet-paper", **{**SHAPE, **changes})
        for _ in range(batches):
            made(torch.randn(4, 3, 32, 32))
    return made.eval()


BASE, RESULT = network(1, batches=3), network(2, batches=5)


@pytest.mark.parametrize(("alpha", "end"), [(0.0, BASE), (1.0, RESULT), (0, BASE), (1, RESULT)])
def test_the_ends_are_exact(alpha: float, end: Backbone) -> None:
    mixed = interpolate(BASE, RESULT, alpha)
    assert mixed.state_dict().keys() == end.state_dict().keys()
    for name, tensor in mixed.state_dict().items():
        assert torch.equal(tensor, end.state_dict()[name]), name
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(mixed(images), end(images))
    assert not mixed.training


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1))
def test_between_the_ends_it_is_the_papers_equation(alpha: float) -> None:
    mixed = interpolate(BASE, RESULT, alpha).state_dict()
    base, result = BASE.state_dict(), RESULT.state_dict()
    kinds = set()
    for name, tensor in mixed.items():
        kinds.add(tensor.is_floating_point())
        assert tensor.dtype == base[name].dtype
        if tensor.is_floating_point():
            expected = (1 - alpha) * base[name].double() + alpha * result[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=2e-7, atol=1e-12)
        else:
            assert tensor.item() in (3, 5)
            assert tensor.item() == (3 if alpha < 0.5 else 5)
    assert kinds == {True, False}


def test_running_statistics_are_interpolated_too() -> None:
    name = next(n for n in BASE.state_dict() if n.endswith("running_var"))
    middle = interpolate(BASE, RESULT, 0.5).state_dict()[name]
    assert torch.allclose(middle, (BASE.state_dict()[name] + RESULT.state_dict()[name]) / 2)
    assert not torch.equal(BASE.state_dict()[name], RESULT.state_dict()[name])


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 1))
def test_between_equal_networks_nothing_changes(alpha: float) -> None:
    for name, tensor in interpolate(BASE, BASE, alpha).state_dict().items():
        assert torch.equal(tensor, BASE.state_dict()[name])


def test_neither_end_is_touched() -> None:
    before = {k: v.clone() for k, v in BASE.state_dict().items()}
    mixed = interpolate(BASE, RESULT, 0.0)
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in BASE.state_dict().items())


def test_only_networks_of_one_architecture() -> None:
    for other, word in (
        (network(1, embedding_dim=16), "embedding_dim is 8 in one, 16 in the other"),
        (create_backbone("iresnet10", 8, width=0.25, input_size=32), "name is"),
    ):
        with pytest.raises(ConfigError, match=word):
            interpolate(BASE, other, 0.5)
    dropped = interpolate(BASE, network(2, dropout=0.5), 0.5)
    assert dropped.arguments["dropout"] == 0.5


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_the_coefficient_lies_between_0_and_1(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        interpolate(BASE, RESULT, alpha)
