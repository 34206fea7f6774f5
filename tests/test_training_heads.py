"""Every head against its paper in scalar float64, and the traps of margins."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from facerec.errors import ConfigError, ModelError
from tests.training_oracles import dense_logits, dense_loss, one_thread, relative, scalar_loss  # noqa: F401
from training.heads import HEADS, ElasticMargin, MarginPolicy, create_head, fused

ELASTIC = [name for name in HEADS if name.startswith("elastic")]
ANGULAR = [name for name in HEADS if name != "softmax"]


def problem(
    n: int, d: int, c: int, *, seed: int = 0, length: float = 20.0, dtype=torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (n, d) of about ``length``, requiring a gradient, and labels (n,)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x *= length * (0.7 + 0.6 * torch.rand(n, 1, generator=g, dtype=torch.float64)) / d**0.5
    return x.to(dtype).requires_grad_(), torch.randint(c, (n,), generator=g)


def drawn_margins(head, x, labels) -> torch.Tensor:
    """The margins that the head's next call will draw, without drawing them."""
    policy = copy.deepcopy(head.margin)
    cosine = F.cosine_similarity(x.double(), head.weight.double()[labels]).detach()
    margins = policy.margins(cosine, x.double().norm(dim=1).detach())
    return margins.m2 if policy.kind == "arc" else margins.m3


@pytest.mark.parametrize("name", HEADS)
def test_values_and_gradients_are_the_papers(name: str) -> None:
    n, d, c = 4, 3, 5
    head = create_head(name, d, c, seed=3, init_std=1.0).double()
    x, labels = problem(n, d, c, seed=5)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(1))
    p = dict(HEADS[name])
    margins = [p.get("margin", 0.0)] * n
    if name in ELASTIC:
        margins = drawn_margins(head, x, labels).tolist()
        assert len(set(margins)) == n
    if name == "adaface":
        norms = x.detach().norm(dim=1)
        p |= {"mean": float(norms.mean()), "std": float(norms.std())}
    bias = [0.0] * c if head.bias is None else head.bias.tolist()

    def paper(rows: list[list[float]], weight: list[list[float]], b: list[float]) -> float:
        return scalar_loss(name, rows, weight, b, labels.tolist(), margins, p)

    rows, weight = x.tolist(), head.weight.tolist()
    loss = head(x, labels)
    assert loss.item() == pytest.approx(paper(rows, weight, bias), rel=1e-12)
    loss.backward()
    step = 1e-6
    for values, grad in ((rows, x.grad), (weight, head.weight.grad)):
        if name == "adaface" and values is rows:
            continue  # the norm carries no gradient: the next test
        for i, row in enumerate(values):
            for j, here in enumerate(row):
                row[j] = here + step
                up = paper(rows, weight, bias)
                row[j] = here - step
                down = paper(rows, weight, bias)
                row[j] = here
                assert grad[i, j].item() == pytest.approx((up - down) / (2 * step), abs=2e-7)
    for j in range(c if head.bias is not None else 0):
        moved = [b + step * (i == j) for i, b in enumerate(bias)]
        slope = (paper(rows, weight, moved) - paper(rows, weight, bias)) / step
        assert head.bias.grad[j].item() == pytest.approx(slope, abs=1e-5)


def test_adaface_takes_the_norm_as_a_constant() -> None:
    head = create_head("adaface", 4, 6, init_std=1.0).double()
    x, labels = problem(5, 4, 6)
    norm = x.detach().norm(dim=1)
    quality = (0.333 * (norm - norm.mean()) / norm.std()).clamp(-1, 1)
    expected = dense_loss(x, head.weight, labels, m2=-0.4 * quality, m3=0.4 * quality + 0.4)
    (slope,) = torch.autograd.grad(expected, x)
    loss = head(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative(x.grad, slope) < 1e-10
    radial = (x.grad * x).sum(1).abs().max()
    assert radial < 1e-10, "cosines do not change with the length"


def test_adaface_statistics_are_moving_averages_of_training_batches() -> None:
    head = create_head("adaface", 4, 6)
    lengths = [torch.tensor([10.0, 14.0, 21.0]), torch.tensor([5.0, 6.0, 8.0])]
    labels = torch.tensor([0, 1, 2])
    for length in lengths:
        head(F.normalize(torch.randn(3, 4), dim=1) * length[:, None], labels)
    first, second = lengths
    policy = head.margin
    assert float(policy.mean) == pytest.approx(float(0.99 * first.mean() + 0.01 * second.mean()))
    assert float(policy.std) == pytest.approx(float(0.99 * first.std() + 0.01 * second.std()))
    before = copy.deepcopy(head.state_dict())
    head.eval()(torch.randn(3, 4), labels)
    head.train()(torch.randn(1, 4) * 50, labels[:1])  # one row has no spread
    assert torch.equal(policy.std, before["margin.std"])
    assert float(policy.mean) != pytest.approx(float(before["margin.mean"]))
    head.load_state_dict(before)
    assert torch.equal(policy.mean, before["margin.mean"])


def test_magface_margin_and_regulariser_follow_the_norm() -> None:
    head = create_head("magface", 4, 6, init_std=1.0).double()
    norms = torch.tensor([5.0, 10.0, 60.0, 110.0, 200.0], dtype=torch.float64)
    margins = head.margin.margins(torch.zeros_like(norms), norms)
    assert margins.m2.tolist() == pytest.approx([0.45, 0.45, 0.625, 0.8, 0.8])
    assert margins.m2_slope.tolist() == pytest.approx([0, 0.0035, 0.0035, 0.0035, 0])
    norms.requires_grad_()
    penalty = head.margin.penalty(norms)
    (slope,) = torch.autograd.grad(penalty.sum(), norms)
    inside = norms.detach()[1:]
    assert penalty[1:].tolist() == pytest.approx((35 * (1 / inside + inside / 110**2)).tolist())
    assert slope[1:].tolist() == pytest.approx((35 * (1 / 110**2 - 1 / inside**2)).tolist())
    assert slope[0].item() == pytest.approx(35 * (1 / 110**2 - 1 / 10**2)), "tangent below l_a"
    x, labels = problem(5, 4, 6, length=60.0)
    head(x, labels).backward()
    assert (x.grad * x).sum(1).abs().min() > 1e-6, "the norm learns"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["normface", "sphereface", "cosface", "arcface", "combined"]),
    n=st.integers(1, 9),
    d=st.integers(2, 12),
    c=st.integers(2, 40),
    scale=st.sampled_from([1.0, 16.0, 64.0, 300.0]),
    block=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_any_batch_matches_dense_autograd(name, n, d, c, scale, block, dtype, seed) -> None:
    head = create_head(name, d, c, scale=scale, block_rows=block, seed=seed).to(dtype)
    x, labels = problem(n, d, c, seed=seed + 10**6 + 1, dtype=dtype)  # never along a class's weight
    p = HEADS[name]
    triple = {
        "normface": {},
        "sphereface": {"m1": p.get("margin")},
        "cosface": {"m3": p.get("margin")},
        "arcface": {"m2": p.get("margin")},
        "combined": {k: p.get(k) for k in ("m1", "m2", "m3")},
    }[name]
    rows, weight = (v.detach().double().requires_grad_() for v in (x, head.weight))
    expected = dense_loss(rows, weight, labels, scale=scale, **triple)
    expected.backward()
    loss = head(x, labels)
    loss.backward()
    assert loss.dtype == dtype
    near = 1e-4 if dtype == torch.float32 else 1e-6  # acos near 0 and pi limits the oracle
    assert loss.item() == pytest.approx(expected.item(), rel=near, abs=near)
    for found, slope in ((x.grad, rows.grad), (head.weight.grad, weight.grad)):
        if slope.abs().max() > 1e-12:
            assert relative(found, slope) < near * max(1, scale / 16)


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_the_cross_entropy_of_the_logits(name: str) -> None:
    head = create_head(name, 8, 700)
    x, labels = problem(6, 8, 700, dtype=torch.float32)
    state = copy.deepcopy(head.state_dict())
    loss = head(x, labels)
    slopes = torch.autograd.grad(loss, [x, head.weight])
    head.load_state_dict(state)
    logits = head.logits(x, labels)
    assert logits.shape == (6, 700) and logits.dtype == torch.float32
    plain = F.cross_entropy(logits, labels)
    if name == "magface":
        plain = plain + head.margin.penalty(x.norm(dim=1)).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for found, slope in zip(slopes, torch.autograd.grad(plain, [x, head.weight]), strict=True):
        assert relative(found, slope) < 1e-5


def test_defaults_are_the_papers() -> None:
    assert set(HEADS) == {
        "softmax", "normface", "sphereface", "cosface", "arcface", "combined", "elastic-arc",
        "elastic-cos", "elastic-arc+", "elastic-cos+", "adaface", "magface",
    }  # fmt: skip
    sigmas = {name: (HEADS[name]["margin"], HEADS[name]["sigma"]) for name in ELASTIC}
    assert sigmas == {
        "elastic-arc": (0.5, 0.05),
        "elastic-cos": (0.35, 0.05),
        "elastic-arc+": (0.5, 0.0175),
        "elastic-cos+": (0.35, 0.025),
    }
    assert all(HEADS[name]["scale"] == 64 for name in ANGULAR)
    assert create_head("softmax", 4, 3).options.scale == 1


# Margins


@pytest.mark.parametrize("name", ELASTIC)
def test_elastic_margins_are_normal_and_drawn_for_each_row_and_step(name: str) -> None:
    policy = create_head(name, 4, 6).margin
    p = HEADS[name]
    cosine = torch.rand(20_000, dtype=torch.float64)
    margins = [policy.margins(cosine, cosine) for _ in range(2)]
    first, second = (m.m2 if policy.kind == "arc" else m.m3 for m in margins)
    assert not torch.equal(first, second)
    for drawn in (first, second):
        assert drawn.mean().item() == pytest.approx(p["margin"], abs=4 * p["sigma"] / 20_000**0.5)
        assert drawn.std().item() == pytest.approx(p["sigma"], rel=0.03)
        inside = ((drawn - p["margin"]).abs() < p["sigma"]).double().mean().item()
        assert inside == pytest.approx(0.6827, abs=0.02)


@pytest.mark.parametrize("name", ["elastic-arc+", "elastic-cos+"])
def test_plus_gives_the_farthest_sample_the_largest_margin(name: str) -> None:
    head = create_head(name, 32, 50, sigma=0.05)
    x, labels = problem(64, 32, 50, dtype=torch.float32)
    cosine = F.cosine_similarity(x, head.weight[labels]).double().detach()
    handed = drawn_margins(head, x, labels)
    assert torch.corrcoef(torch.stack([cosine, handed]))[0, 1] < -0.95
    assert torch.equal(cosine.argsort(), handed.argsort(descending=True))
    plain = ElasticMargin("arc", 0.5, 0.05, plus=False, seed=head.options.seed * 7919)
    same_draw = plain.margins(cosine, cosine).m2 - 0.5
    assert torch.allclose(handed.sort().values - head.margin.margin, same_draw.sort().values)
    assert abs(torch.corrcoef(torch.stack([cosine, same_draw]))[0, 1]) < 0.4


@pytest.mark.parametrize("name", ELASTIC)
def test_the_next_margins_survive_a_checkpoint(name: str) -> None:
    head = create_head(name, 8, 20, seed=1)
    x, labels = problem(6, 8, 20, dtype=torch.float32)
    for _ in range(3):
        head(x, labels)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    expected = [head(x, labels).item() for _ in range(3)]
    assert len(set(expected)) == 3
    other = create_head(name, 8, 20, seed=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [other(x, labels).item() for _ in range(3)] == expected


def test_elastic_draws_leave_torchs_generator_alone_and_rest_in_evaluation() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    head = create_head("elastic-arc", 8, 20, init_std=1.0)
    x, labels = problem(6, 8, 20, dtype=torch.float32)
    head(x, labels)
    assert torch.equal(torch.rand(3), expected)
    state = head.margin.generator.get_state()
    head.eval()
    arcface = create_head("arcface", 8, 20, init_std=1.0)
    assert head(x, labels).item() == arcface(x, labels).item()
    assert torch.equal(state, head.margin.generator.get_state())


@settings(max_examples=50, deadline=None)
@given(m1=st.floats(0.2, 4), m2=st.floats(-0.5, 3.1), m3=st.floats(0, 1))
def test_the_target_falls_with_the_angle_over_all_of_it(m1: float, m2: float, m3: float) -> None:
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    psi, slope = MarginPolicy(m1, m2, m3).margins(theta, theta).psi(theta)
    assert (psi.diff() < 1e-12).all()
    assert (slope <= 0).all()
    step = theta[1] - theta[0]
    assert psi.diff().abs().max() <= m1 * step + 1e-9, "no jump where the formula changes"
    middle = (slope[1:] + slope[:-1]) / 2 * m1
    assert (psi.diff() / step - middle).abs().max() < 2 * m1 * step, "the slope is psi's"


@pytest.mark.parametrize("name", ["arcface", "sphereface", "combined", "adaface"])
def test_logits_fall_as_an_embedding_turns_away_even_beyond_pi(name: str) -> None:
    head = create_head(name, 2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    head.eval()
    theta = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    x = torch.stack([theta.cos(), theta.sin()], dim=1)
    logits = head.double().logits(x, torch.zeros(400, dtype=torch.int64))[:, 0]
    assert (logits.diff() < 0).all()


# Gradients where cosines are at their ends


@pytest.mark.parametrize("name", ANGULAR)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_and_right_at_cosines_of_one(name: str, sign: float) -> None:
    head = create_head(name, 16, 9, init_std=1.0)
    labels = torch.arange(6) % 9
    off = torch.tensor([0.0, 1e-7, 1e-5, 1e-3, 1e-2, 0.1])
    side = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    x = sign * 20 * F.normalize(head.weight.detach()[labels] + off[:, None] * side, dim=1)
    x.requires_grad_()
    exact = copy.deepcopy(head).double()
    exact.train(name not in ELASTIC)
    head.train(name not in ELASTIC)
    rows = x.detach().double().requires_grad_()
    head(x, labels).backward()
    exact(rows, labels).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(head.weight.grad).all()
    assert relative(x.grad, rows.grad) < 1e-4
    assert relative(head.weight.grad, exact.weight.grad) < 1e-4


def test_close_to_the_ends_the_gradient_is_that_of_the_angle() -> None:
    """In the plane d psi / d theta = -sin(theta + m), however small the angle is."""
    head = create_head("arcface", 2, 2, scale=1.0).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    for theta in (1e-9, 1e-6, 1e-3, 1.0, math.pi - 0.6, math.pi - 1e-6):
        x = torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=torch.float64)
        x.requires_grad_()
        target = head.logits(x, torch.tensor([0]))[0, 0]
        (slope,) = torch.autograd.grad(target, x)
        around = slope[0, 1] * math.cos(theta) - slope[0, 0] * math.sin(theta)
        assert around.item() == pytest.approx(-abs(math.sin(theta + 0.5)), rel=1e-6)


# Cost


class Allocations(TorchDispatchMode):
    """Names of the operations, and each new storage with its number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.storages[storage.data_ptr()] = storage  # kept alive: no address twice
        return out

    def larger_than(self, elements: int) -> list[int]:
        return sorted(s.nbytes() // 4 for s in self.storages.values() if s.nbytes() // 4 > elements)


@pytest.mark.parametrize("name", HEADS)
def test_no_matrix_over_all_classes_but_one_block_of_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 1 << 14)
    n, d, c, block = 64, 24, 20_000, 16
    head = create_head(name, d, c, block_rows=block)
    x, labels = problem(n, d, c, dtype=torch.float32)
    with Allocations() as seen:
        head(x, labels).backward()
    once = {block * c: 1, c * d: 2}  # one block of logits; the weights and their gradient
    large = seen.larger_than(2 * c)
    assert {size: large.count(size) for size in large} == once
    assert seen.names.isdisjoint({"acos", "one_hot", "scatter"})


@pytest.mark.parametrize("name", ["arcface", "cosface", "elastic-cos+", "adaface"])
def test_only_the_targets_logits_change(name: str) -> None:
    plain, head = (create_head(n, 8, 50) for n in ("normface", name))
    x, labels = problem(6, 8, 50, dtype=torch.float32)
    changed = plain.logits(x, labels) != head.logits(x, labels)
    assert torch.equal(changed, F.one_hot(labels, 50).bool())
    with Allocations() as seen:
        head.logits(x, labels)
    assert seen.names.isdisjoint({"acos", "one_hot", "scatter"})


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_logits(name: str, dtype: torch.dtype) -> None:
    x, labels = problem(6, 8, 50, dtype=torch.float32)
    expected = create_head(name, 8, 50).logits(x, labels)
    loss = create_head(name, 8, 50)(x, labels)
    with torch.autocast("cpu", dtype=dtype):
        logits = create_head(name, 8, 50).logits(x, labels)
        inside = create_head(name, 8, 50)(x, labels)
    assert logits.dtype == inside.dtype == torch.float32
    assert torch.equal(logits, expected) and torch.equal(inside, loss)


# Straight-through


def test_straight_through_has_the_value_and_not_the_slope() -> None:
    exact = create_head("arcface", 8, 20, init_std=1.0).double()
    loose = create_head("arcface", 8, 20, init_std=1.0, gradient="straight-through").double()
    x, labels = problem(5, 8, 20)
    losses, slopes = [], []
    for head in (exact, loose):
        loss = head(x, labels)
        losses.append(loss.item())
        slopes.append(torch.autograd.grad(loss, [x, head.weight]))
    assert losses[0] == losses[1]
    assert relative(slopes[1][0], slopes[0][0]) > 0.05

    rows, weight = (v.detach().clone().requires_grad_() for v in (x, exact.weight))
    with torch.no_grad():
        logits = dense_logits(rows, weight, labels, m2=0.5)
    cosines = 64 * F.normalize(rows, dim=1) @ F.normalize(weight, dim=1).t()
    F.cross_entropy(cosines + (logits - cosines).detach(), labels).backward()
    assert relative(slopes[1][0], rows.grad) < 1e-9
    assert relative(slopes[1][1], weight.grad) < 1e-9

    # Their targets differ by sin(theta + m) / sin(theta), row by row.
    target = [head.logits(x, labels)[range(5), labels].sum() for head in (exact, loose)]
    turned = [torch.autograd.grad(t, x)[0].norm(dim=1) for t in target]
    theta = torch.acos(F.cosine_similarity(x, exact.weight[labels])).detach()
    assert torch.allclose(turned[0] / turned[1], (torch.sin(theta + 0.5) / theta.sin()).abs())


# Bad input


def test_unknown_names_and_parameters_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match="No head 'arc'; there are softmax, normface"):
        create_head("arc", 8, 10)
    with pytest.raises(ConfigError, match=r"'arcface' has no parameter 'sigma'; it has .*margin"):
        create_head("arcface", 8, 10, sigma=0.1)
    with pytest.raises(ConfigError, match="has no parameter 'normalise'"):
        create_head("arcface", 8, 10, normalise=False)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("arcface", {"margin": -0.1}),
        ("arcface", {"margin": 28.6}),  # degrees
        ("arcface", {"margin": "0.5"}),
        ("arcface", {"scale": 0}),
        ("arcface", {"scale": float("nan")}),
        ("arcface", {"gradient": "approximate"}),
        ("arcface", {"storage": "sparse"}),
        ("arcface", {"sample_rate": 0.0}),
        ("arcface", {"block_rows": 2.5}),
        ("sphereface", {"margin": 0.5}),
        ("elastic-arc", {"sigma": -1}),
        ("magface", {"l_a": 110, "u_a": 10}),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, values: dict) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        create_head(name, 8, 10, **values)


def test_too_few_dimensions_or_classes_are_refused() -> None:
    for d, c in ((1, 10), (8, 1)):
        with pytest.raises(ConfigError, match="at least 2"):
            create_head("arcface", d, c)


def test_bad_batches_name_the_row() -> None:
    head = create_head("elastic-arc", 8, 10)
    x, _ = problem(3, 8, 10, dtype=torch.float32)
    state = head.margin.generator.get_state()
    for labels, row in (([0, 10, 1], "Row 1.*label 10"), ([0, 1, -1], "Row 2.*label -1")):
        with pytest.raises(ConfigError, match=row):
            head(x, torch.tensor(labels))
        with pytest.raises(ConfigError, match=row):
            head.logits(x, torch.tensor(labels))
    for value in (math.nan, math.inf):
        broken = x.detach().clone()
        broken[2, 5] = value
        with pytest.raises(ModelError, match=r"row 2 of the batch \(label 7\) is not finite"):
            head(broken, torch.tensor([0, 1, 7]))
    with pytest.raises(ConfigError, match="empty"):
        head(x[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"\(3, 7\).*\(N, 8\)"):
        head(x[:, :7], torch.tensor([0, 1, 2]))
    with pytest.raises(ConfigError, match="one integer a row"):
        head(x, torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="one integer a row"):
        head(x, torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(ConfigError, match="float32"):
        create_head("arcface", 8, 10).bfloat16()(x, torch.tensor([0, 1, 2]))
    assert torch.equal(state, head.margin.generator.get_state()), "a refused batch draws nothing"
