"""BroadFace: where each gradient goes, what the queue holds, and how it moves."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import ConfigError, ModelError
from tests.training_oracles import dense_loss, one_thread, relative  # noqa: F401
from training.broadface import BroadFace, drift
from training.heads import HEADS, create_head, fused

D, C = 8, 30


def batch(n: int, seed: int, *, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=g, dtype=torch.float64).mul(5).to(dtype)
    return x.requires_grad_(), torch.randint(C, (n,), generator=g)


def make(queue: int, name: str = "arcface", **options) -> BroadFace:
    broad = {k: options.pop(k) for k in ("compensate", "drift", "warmup_steps") if k in options}
    options = {"block_rows": 5, "init_std": 1.0} | options
    return BroadFace(create_head(name, D, C, **options), queue, **broad).double()


class PaperQueue:
    """The queue as the paper says it, one Python tuple an entry; weights move by SGD."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def replay(self, weight: torch.Tensor, compensate: bool, kind: str) -> torch.Tensor:
        rows = []
        for e, w_then, y in self.entries:
            move = torch.zeros_like(e)
            if compensate and kind == "raw":
                move = e.norm() / w_then.norm() * (weight[y] - w_then)
            elif compensate:
                move = e.norm() * (weight[y] / weight[y].norm() - w_then / w_then.norm())
            rows.append(e + move)
        return torch.stack(rows) if rows else torch.zeros(0, D, dtype=torch.float64)

    def push(self, x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> None:
        for e, y in zip(x.detach(), labels.tolist(), strict=True):
            self.entries.append((e.clone(), weight.detach()[y].clone(), y))
        self.entries = self.entries[max(0, len(self.entries) - self.size) :]


@settings(max_examples=25, deadline=None)
@given(
    queue=st.integers(0, 23),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    compensate=st.booleans(),
    kind=st.sampled_from(["raw", "normalised"]),
    warmup=st.integers(0, 3),
    block=st.integers(1, 12),
    tile=st.sampled_from([1, 1 << 21]),
)
def test_every_step_is_the_papers(queue, sizes, compensate, kind, warmup, block, tile) -> None:
    """Losses, routing and queue over several steps with weights that move, against dense autograd.

    Queue sizes that are no multiple of the batch, smaller than it, and zero; changing batches.
    """
    options = {"compensate": compensate, "drift": kind, "warmup_steps": warmup}
    broad = make(queue, block_rows=block, **options)
    paper = PaperQueue(queue)
    default, fused.TILE_ELEMENTS = fused.TILE_ELEMENTS, tile
    try:
        for step, n in enumerate(sizes):
            x, labels = batch(n, seed=step)
            x64, w64 = (v.detach().clone().requires_grad_() for v in (x, broad.weight))
            replayed = paper.replay(w64.detach(), compensate, kind) if step >= warmup else x64[:0]
            encoder = dense_loss(x64, w64.detach(), labels, m2=0.5)
            encoder.backward()
            taken = [entry[2] for entry in paper.entries][: len(replayed)]
            every = torch.cat([x64.detach(), replayed.detach()])
            classes = torch.cat([labels, torch.tensor(taken, dtype=torch.int64)])
            classifier = dense_loss(every, w64, classes, m2=0.5)
            classifier.backward()

            broad.zero_grad()
            loss = broad(x, labels)
            loss.backward()
            assert loss.item() == pytest.approx(encoder.item(), rel=1e-9)
            assert broad.classifier_loss.item() == pytest.approx(classifier.item(), rel=1e-9)
            assert broad.replayed == len(replayed)
            assert relative(x.grad, x64.grad) < 1e-6
            assert relative(broad.weight.grad, w64.grad) < 1e-6

            paper.push(x, broad.weight, labels)
            held = list(zip(*[t.tolist() for t in broad.queue()], strict=True))
            assert held == [(e.tolist(), w.tolist(), y) for e, w, y in paper.entries]
            with torch.no_grad():
                broad.weight.sub_(0.5 * broad.weight.grad)
    finally:
        fused.TILE_ELEMENTS = default


@pytest.mark.parametrize("name", HEADS)
def test_an_empty_queue_is_the_plain_head_bit_for_bit(name: str) -> None:
    for queue, warmup in ((0, 0), (50, 3)):
        broad = BroadFace(create_head(name, D, C), queue, warmup_steps=warmup)
        plain = create_head(name, D, C)
        for seed in range(3):
            x, labels = batch(6, seed, dtype=torch.float32)
            y = x.detach().clone().requires_grad_()
            loss, expected = broad(x, labels), plain(y, labels)
            loss.backward()
            expected.backward()
            assert torch.equal(loss, expected)
            assert torch.equal(x.grad, y.grad)
            assert torch.equal(broad.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("name", HEADS)
def test_the_encoder_learns_from_the_batch_alone_with_any_head(name: str) -> None:
    broad, plain = make(12, name), make(0, name)
    for seed in range(3):
        x, labels = batch(6, seed)
        y = x.detach().clone().requires_grad_()
        broad.zero_grad()
        plain.zero_grad()
        if name.startswith("elastic"):  # a replay draws too
            plain.head.margin.load_state_dict(broad.head.margin.state_dict())
        loss, expected = broad(x, labels), plain(y, labels)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        assert relative(x.grad, y.grad) < 1e-9
        if seed:
            assert relative(broad.weight.grad, plain.weight.grad) > 1e-3
    if name == "adaface":
        assert torch.equal(broad.head.margin.mean, plain.head.margin.mean), "replays do not count"


def test_weights_that_have_not_moved_leave_the_queue_where_it_was() -> None:
    """Then the classifier's gradient is that of one large batch."""
    broad, plain = make(12), make(0)
    first, second = batch(12, 0), batch(6, 1)
    broad(*first)
    broad(*second).backward()
    every = torch.cat([second[0], first[0]]).detach()
    plain(every, torch.cat([second[1], first[1]])).backward()
    assert relative(broad.weight.grad, plain.weight.grad) < 1e-9


def test_compensation_moves_embeddings_with_their_class() -> None:
    """A classifier that turned as a whole replays its queue turned, as if freshly embedded."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    broad, loose = make(6), make(6, compensate=False)
    labels = torch.arange(6)
    x = 3 * broad.weight.detach()[:6]
    later, later_labels = batch(4, 5)
    replayed = []
    for head in (broad, loose):
        head(x, labels)
        with torch.no_grad():
            head.weight.copy_(head.weight @ turn)
        head(later, later_labels)
        replayed.append(head.classifier_loss.item())
    fresh = make(0)
    fresh.head.load_full_weight(broad.weight.detach())
    fresh.double()
    together = fresh(
        torch.cat([later, x @ turn]).detach(), torch.cat([later_labels, labels])
    ).item()
    assert replayed[0] == pytest.approx(together, rel=1e-9)
    assert replayed[1] > replayed[0] + 1, "stale embeddings are far from their classes"


def test_normalised_drift_ignores_a_rescaling_of_the_weights() -> None:
    losses = {}
    for kind in ("raw", "normalised"):
        for factor in (1.0, 3.0):
            broad = make(12, drift=kind)
            broad(*batch(12, 0))
            with torch.no_grad():
                broad.weight.mul_(factor)
            broad(*batch(6, 1)).backward()
            losses[kind, factor] = (broad.classifier_loss.item(), broad.weight.grad * factor)
    same, scaled = losses["normalised", 1.0], losses["normalised", 3.0]
    assert same[0] == pytest.approx(scaled[0], rel=1e-12)
    assert relative(scaled[1], same[1]) < 1e-9
    assert losses["raw", 3.0][0] != pytest.approx(losses["raw", 1.0][0], rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3))
def test_drift_as_formulas(seed: int, factor: float) -> None:
    g = torch.Generator().manual_seed(seed)
    e, then, now = torch.randn(3, 5, D, generator=g, dtype=torch.float64)
    moved = drift(e, then, now, "raw")
    for i in range(5):
        expected = e[i].norm() / then[i].norm() * (now[i] - then[i])
        assert torch.allclose(moved[i], expected)
    assert torch.allclose(drift(e, then, factor * then, "normalised"), torch.zeros(5, D).double())
    assert torch.allclose(
        drift(e, then, factor * now, "normalised"), drift(e, factor * then, now, "normalised")
    )
    unit = F.normalize(then, dim=1)
    assert torch.allclose(
        drift(e, unit, F.normalize(now, dim=1), "raw"), drift(e, then, now, "normalised")
    )


def test_replays_draw_margins_of_their_own_each_time() -> None:
    broad = make(12, "elastic-arc", sigma=0.3)
    broad(*batch(12, 0))
    x, labels = batch(6, 1)
    drawn = []
    policy = broad.head.margin
    margins = type(policy).margins

    class Recorded(type(policy)):
        def margins(self, cosine, norm, *, replay=False):
            found = margins(self, cosine, norm, replay=replay)
            drawn.append((replay, found.m2))
            return found

    policy.__class__ = Recorded
    for _ in range(2):
        broad(x, labels)
    assert [(replay, len(m)) for replay, m in drawn] == [(False, 6), (True, 12)] * 2
    assert not torch.equal(drawn[1][1], drawn[3][1])


def test_plus_sorts_the_batch_and_the_replays_each_for_themselves() -> None:
    broad, plain = make(12, "elastic-cos+", sigma=0.2), make(0, "elastic-cos+", sigma=0.2)
    broad(*batch(12, 0))
    plain.head.margin.load_state_dict(broad.head.margin.state_dict())
    x, labels = batch(6, 1)
    assert broad(x, labels).item() == pytest.approx(plain(x, labels).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["arcface", "elastic-arc+", "adaface", "softmax"])
def test_a_resumed_run_takes_the_same_steps(name: str) -> None:
    def run(broad: BroadFace, seeds: range) -> list[float]:
        found = []
        for seed in seeds:
            x, labels = batch(6, seed, dtype=torch.float32)
            broad.zero_grad()
            broad(x, labels).backward()
            found += [broad.classifier_loss.item(), x.grad.sum().item()]
            with torch.no_grad():
                broad.weight.sub_(0.1 * broad.weight.grad)
        return found

    broad = BroadFace(create_head(name, D, C), 20, warmup_steps=2)
    run(broad, range(5))
    file = io.BytesIO()
    torch.save(broad.state_dict(), file)
    file.seek(0)
    expected = run(broad, range(5, 10))
    other = BroadFace(create_head(name, D, C, seed=9), 20, warmup_steps=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert run(other, range(5, 10)) == expected


def test_resuming_with_another_queue_is_refused_or_asked_for() -> None:
    broad = make(7)
    for seed in range(3):
        broad(*batch(4, seed))
    smaller = make(5)
    with pytest.raises(ConfigError, match=r"queue is \(7, 8\), this one is \(5, 8\)"):
        smaller.load_state_dict(copy.deepcopy(broad.state_dict()))
    smaller.fill(*broad.queue())
    assert torch.equal(smaller.queue()[0], broad.queue()[0][-5:])
    assert torch.equal(smaller.queue()[2], broad.queue()[2][-5:])
    larger = make(9)
    larger.fill(*broad.queue())
    assert larger.count == 7
    assert torch.equal(larger.queue()[1], broad.queue()[1])
    larger.clear()
    assert larger.count == 0 and len(larger.queue()[0]) == 0


def test_warm_up_fills_the_queue_and_takes_nothing_from_it() -> None:
    broad = make(12, warmup_steps=2)
    replayed = []
    for seed in range(4):
        broad(*batch(5, seed))
        replayed.append((broad.replayed, broad.count))
    assert replayed == [(0, 5), (0, 10), (10, 12), (12, 12)]


def test_evaluation_leaves_the_queue_alone() -> None:
    broad = make(12)
    broad(*batch(6, 0))
    broad.eval()
    x, labels = batch(6, 1)
    loss = broad(x, labels)
    assert broad.count == 6
    assert loss.item() == broad.head(x, labels).item()
    assert torch.equal(broad.logits(x, labels), broad.head.logits(x, labels))


def test_the_queue_is_detached_float32_and_moves_with_the_head() -> None:
    broad = BroadFace(create_head("arcface", D, C), 12)
    x, labels = batch(6, 0)
    low = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        broad(low, labels).backward()
        broad(low, labels).backward()
    embeddings, weights, kept = broad.queue()
    assert embeddings.dtype == weights.dtype == torch.float32 and kept.dtype == torch.int64
    assert not (embeddings.requires_grad or weights.requires_grad)
    assert torch.equal(embeddings[:6], low.detach().float())
    assert torch.equal(weights[:6], broad.weight.detach()[labels])
    elements = sum(t.numel() for t in (broad.embeddings, broad.weights))
    assert elements == 2 * 12 * D
    broad.to("meta")
    assert broad.embeddings.device.type == broad.labels.device.type == "meta"


def test_a_bad_batch_does_not_enter_the_queue() -> None:
    broad = make(12)
    x, labels = batch(6, 0)
    broken = x.detach().clone()
    broken[3, 1] = torch.nan
    with pytest.raises(ModelError, match="row 3"):
        broad(broken, labels)
    with pytest.raises(ConfigError, match=r"Row 0.*label 30"):
        broad(x, labels * 0 + C)
    assert broad.count == 0 and broad.steps == 0


def test_a_step_cannot_be_walked_back_twice_once_the_queue_moved() -> None:
    broad = make(12)
    broad(*batch(6, 0))
    loss = broad(*batch(6, 1))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="queue has moved on"):
        loss.backward()


def test_settings_that_make_no_sense_are_refused() -> None:
    for queue, options in ((-1, {}), (5, {"warmup_steps": -1}), (5, {"drift": "cosine"})):
        with pytest.raises(ConfigError, match="BroadFace"):
            BroadFace(create_head("arcface", D, C), queue, **options)


def test_sampled_classes_hold_those_of_the_queue() -> None:
    broad = BroadFace(
        create_head("arcface", D, C, storage="sampled", sample_rate=0.1, init_std=1.0), 20
    )
    x, _ = batch(10, 0, dtype=torch.float32)
    broad(x, torch.arange(10))
    broad(x[:4].detach(), torch.arange(20, 24)).backward()
    taken = broad.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert taken == [*range(10), *range(20, 24)]
    dense = BroadFace(create_head("arcface", D, 14, init_std=1.0), 20)
    dense.head.load_full_weight(broad.weight.detach()[taken])
    dense(x, torch.arange(10))
    dense(x[:4].detach(), torch.arange(10, 14))
    assert broad.classifier_loss.item() == pytest.approx(dense.classifier_loss.item(), rel=1e-6)


def test_memory_does_not_grow_with_the_queue_times_the_classes() -> None:
    """No storage of a step is larger than a block of logits or the weights' gradient."""
    c, queue = 5000, 1000
    broad = BroadFace(create_head("elastic-arc", D, c, block_rows=50), queue)
    x = torch.randn(queue, D)
    broad(x, torch.randint(c, (queue,)))
    x = torch.randn(16, D, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        broad(x, torch.randint(c, (16,))).backward()
    assert broad.replayed == queue
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 46 * c * 4 <= largest <= 50 * c * 4 + (1 << 20)
