"""The closed-form loss where it could go wrong: odd shapes, scales, dtypes, gradients asked for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from facerec.errors import ConfigError
from tests.training_oracles import dense_loss, one_thread, relative  # noqa: F401
from training.heads import create_head, fused


def rows(n: int, d: int, c: int, *, seed: int = 0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64).mul(4).to(dtype)
    return x.requires_grad_(), torch.randint(c, (n,), generator=g)


def check_arcface(head, x, labels, *, near: float, scale: float = 64.0) -> None:
    """Loss and both gradients of an arcface head against dense float64 autograd."""
    x64, w64 = (v.detach().double().requires_grad_() for v in (x, head.weight))
    expected = dense_loss(x64, w64, labels, scale=scale, m2=0.5)
    expected.backward()
    x.grad = head.weight.grad = None
    loss = head(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=near, abs=near)
    assert relative(x.grad, x64.grad) < near
    assert relative(head.weight.grad, w64.grad) < near


@pytest.mark.parametrize(("n", "c"), [(1, 2), (1, 700), (2, 2), (9, 3), (33, 1001)])
@pytest.mark.parametrize("tile", [1 << 21, 1])  # one tile, and tiles of 256 columns
def test_small_and_uneven_shapes(n: int, c: int, tile: int, monkeypatch) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", tile)
    head = create_head("arcface", 16, c, block_rows=10)
    x, labels = rows(n, 16, c)
    check_arcface(head, x, labels, near=1e-4)


def test_a_class_many_times_and_a_batch_of_one_class() -> None:
    head = create_head("arcface", 16, 300, block_rows=4)
    x, _ = rows(12, 16, 300)
    for labels in ([7] * 12, [0, 299, 0, 299, 5, 5, 5, 0, 1, 2, 299, 7]):
        check_arcface(head, x, torch.tensor(labels), near=1e-5)


@pytest.mark.parametrize("scale", [0.1, 79.0, 81.0, 200.0, 1000.0, 1e4])
def test_scales_beyond_what_exp_holds(scale: float, monkeypatch) -> None:
    """The largest logits are in the last tile, so that a shift from the first is not enough."""
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 1)
    head = create_head("arcface", 16, 900, scale=scale, block_rows=5)
    x, labels = rows(8, 16, 600)
    with torch.no_grad():
        head.weight[:600] = head.weight[:600] - 0.02 * F.normalize(x, dim=1).mean(0)
        head.weight[890:898] = F.normalize(x, dim=1) + 0.01 * torch.randn(8, 16)
    check_arcface(head, x, labels, near=max(2e-5, 4e-7 * scale), scale=scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_plain_softmax_with_logits_far_from_zero(sign: int, monkeypatch) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 1)
    head = create_head("softmax", 16, 600, block_rows=5)
    x, labels = rows(8, 16, 600)
    with torch.no_grad():
        head.bias[:] = sign * torch.linspace(0, 500, 600)
    loss = head(x, labels)
    grads = torch.autograd.grad(loss, [x, head.weight, head.bias])
    wanted = [v.detach().double().requires_grad_() for v in (x, head.weight, head.bias)]
    exact = F.cross_entropy(wanted[0] @ wanted[1].t() + wanted[2], labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    for found, slope in zip(grads, torch.autograd.grad(exact, wanted), strict=True):
        assert relative(found, slope) < 1e-4


def test_weights_of_very_different_lengths() -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(8, 16, 40)
    lengths = 10.0 ** torch.arange(-10, 10).repeat(2)[:, None].float()
    with torch.no_grad():
        head.weight.copy_(F.normalize(head.weight, dim=1) * lengths)
    head(x, labels).backward()
    w64 = head.weight.detach().double().requires_grad_()
    dense_loss(x.detach().double(), w64, labels, m2=0.5).backward()
    scaled = [g * lengths for g in (head.weight.grad, w64.grad)]
    assert relative(*scaled) < 1e-4


def test_what_has_no_direction_has_cosine_zero_and_no_gradient() -> None:
    head = create_head("arcface", 16, 40)
    x, _ = rows(4, 16, 40)
    labels = torch.tensor([3, 1, 2, 3])
    with torch.no_grad():
        head.weight[3], head.weight[7], x[1] = 0, 1e-20, 0
    loss = head(x, labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert torch.isfinite(head.weight.grad).all()
    assert head.weight.grad[[3, 7]].abs().max() == 0 and x.grad[1].abs().max() == 0
    logits = head.logits(x, labels)
    assert torch.allclose(logits[1].detach()[[0, 7]], torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_get_a_gradient_of_their_dtype(dtype: torch.dtype) -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(8, 16, 40)
    low = x.detach().to(dtype).requires_grad_()
    loss = head(low, labels)
    loss.backward()
    exact = low.detach().float().requires_grad_()
    full = copy.deepcopy(head)
    full.zero_grad()
    full(exact, labels).backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == dtype
    assert torch.equal(low.grad, exact.grad.to(dtype))
    assert torch.equal(head.weight.grad, full.weight.grad)


def test_gradients_accumulate_and_scale() -> None:
    head = create_head("arcface", 16, 40)
    batches = [rows(8, 16, 40, seed=seed) for seed in range(2)]
    single = []
    for x, labels in batches:
        single.append(torch.autograd.grad(head(x, labels), [x, head.weight]))
    for (x, labels), factor in zip(batches, (0.5, 1024.0), strict=True):
        (head(x, labels) * factor).backward()
    expected = 0.5 * single[0][1] + 1024 * single[1][1]
    assert relative(head.weight.grad, expected) < 1e-6
    assert relative(batches[1][0].grad, 1024 * single[1][0]) < 1e-6


def test_only_what_is_asked_for_is_computed() -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(8, 16, 40)
    both = torch.autograd.grad(head(x, labels), [x, head.weight])
    (only_weight,) = torch.autograd.grad(head(x.detach(), labels), [head.weight])
    head.weight.requires_grad_(False)
    loss = head(x, labels)
    (only_rows,) = torch.autograd.grad(loss, [x])
    assert torch.equal(only_weight, both[1]) and torch.equal(only_rows, both[0])
    assert not head(x.detach(), labels).requires_grad
    head.weight.requires_grad_(True)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            quiet = head(x, labels)
        assert not quiet.requires_grad
        assert quiet.item() == pytest.approx(loss.item(), rel=1e-6)


def test_frozen_weights_need_no_gradient_of_their_size(monkeypatch) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 1)
    head = create_head("arcface", 16, 5000, block_rows=4)
    x, labels = rows(8, 16, 5000)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        head(x, labels)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 5000 * 16 * 4, "no gradient, and not even a block of logits"


@pytest.mark.parametrize("name", ["softmax", "arcface", "sphereface", "cosface", "magface"])
def test_gradcheck(name: str) -> None:
    head = create_head(name, 5, 7, init_std=1.0, block_rows=2).double()
    x, labels = rows(4, 5, 7, dtype=torch.float64)

    def loss(embeddings, weight):
        return torch.func.functional_call(head, {"weight": weight}, (embeddings, labels))

    assert torch.autograd.gradcheck(loss, (x * 5, head.weight), eps=1e-6, atol=1e-6)


def test_gradcheck_of_the_logits() -> None:
    head = create_head("combined", 4, 5, init_std=1.0, m1=1.3, scale=4.0).double()
    x, labels = rows(3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda e: head.logits(e, labels), (x,), atol=1e-6)


def test_walking_back_twice_gives_the_same_and_once_costs_no_copy() -> None:
    head = create_head("elastic-arc+", 16, 40)
    x, labels = rows(8, 16, 40)
    loss = head(x, labels)
    first = torch.autograd.grad(loss, [x, head.weight], retain_graph=True)
    again = torch.autograd.grad(3 * loss, [x, head.weight])
    for a, b in zip(first, again, strict=True):
        assert relative(b, 3 * a) < 1e-6
    reports = []
    batch = head.gathered(x, labels)
    solve = fused.solve
    try:
        fused.solve = lambda *a, **k: reports.append(solve(*a, **k)) or reports[0]
        loss = head.step(x, batch)
    finally:
        fused.solve = solve
    address = reports[0].weight.data_ptr()
    reports.clear()
    loss.backward()
    assert head.weight.grad.data_ptr() == address


def test_no_second_derivative_is_pretended() -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(8, 16, 40)
    for value in (head(x, labels), head.logits(x, labels).sum()):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(value, x, create_graph=True)


def test_weights_changed_before_a_second_walk_back_are_noticed() -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(8, 16, 40)
    loss = head(x, labels)
    loss.backward(retain_graph=True)
    with torch.no_grad():
        head.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_strided_input() -> None:
    head = create_head("arcface", 16, 40)
    x, labels = rows(16, 32, 40)
    view, every = x[::2, ::2], labels[::2]
    (slope,) = torch.autograd.grad(head(view, every), x)
    dense = view.detach().clone().requires_grad_()
    head(dense, every).backward()
    assert torch.equal(slope[::2, ::2], dense.grad)
    assert torch.isfinite(head.logits(view, every.int())).all()


def test_it_learns() -> None:
    """A few steps separate made-up people; the loss falls far below chance."""
    torch.manual_seed(0)
    centres = torch.randn(10, 16)
    for name in ("softmax", "arcface", "elastic-cos+", "adaface", "magface"):
        head = create_head(name, 16, 10)
        encoder = torch.nn.Linear(16, 16)
        optimiser = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.05, 0.9)
        losses = []
        for _ in range(60):
            labels = torch.randint(10, (64,))
            x = encoder(centres[labels] + 0.3 * torch.randn(64, 16)) * 20
            loss = head(x, labels)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*encoder.parameters(), *head.parameters()], 5)
            optimiser.step()
        assert losses[-1] < 0.3 * losses[0], name


# Sampled classes (PartialFC)


@pytest.mark.parametrize("name", ["arcface", "softmax"])
def test_sampled_is_the_loss_over_the_sampled_classes(name: str) -> None:
    head = create_head(name, 16, 200, storage="sampled", sample_rate=0.25)
    x, labels = rows(8, 16, 200)
    before = head.sampler.get_state()
    loss = head(x, labels)
    loss.backward()
    taken = head.weight.grad.abs().sum(1).nonzero()[:, 0]
    assert len(taken) == 50
    assert set(labels.tolist()) <= set(taken.tolist())
    place = torch.searchsorted(taken, labels)
    part = create_head(name, 16, 50)
    part.load_full_weight(head.weight[taken])
    y = x.detach().clone().requires_grad_()
    expected = part(y, place)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative(head.weight.grad[taken], part.weight.grad) < 1e-6
    assert relative(x.grad, y.grad) < 1e-6
    after = head(x, labels).item()
    assert after != loss.item(), "other negatives each step"
    head.sampler.set_state(before)
    assert head(x, labels).item() == loss.item()


def test_sampling_takes_all_positives_and_resumes() -> None:
    head = create_head("arcface", 16, 200, storage="sampled", sample_rate=0.01)
    x, _ = rows(30, 16, 200)
    labels = torch.arange(30)
    loss = head(x, labels)
    loss.backward()
    assert head.weight.grad.abs().sum(1).nonzero()[:, 0].tolist() == list(range(30))
    assert create_head("arcface", 16, 200, storage="sampled").options.sample_rate == 0.1
    head = create_head("arcface", 16, 200, storage="sampled")
    other = create_head("arcface", 16, 200, storage="sampled", seed=4)
    head(x, labels)
    other.load_state_dict(head.state_dict())
    assert other(x, labels).item() == head(x, labels).item()
    full = create_head("arcface", 16, 200)
    assert head.eval()(x, labels).item() == full.eval()(x, labels).item(), "all of them"


def test_weights_move_between_heads_whole() -> None:
    head, other = create_head("arcface", 16, 40), create_head("arcface", 16, 40, seed=1)
    assert not torch.equal(head.weight, other.weight)
    other.load_full_weight(head.full_weight())
    assert torch.equal(head.weight, other.weight)
    with pytest.raises(ConfigError, match=r"\(41, 16\).*\(40, 16\)"):
        head.load_full_weight(torch.zeros(41, 16))


def test_sharding_needs_ranks() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        create_head("arcface", 16, 40, storage="sharded")
