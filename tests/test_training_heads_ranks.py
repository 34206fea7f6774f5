"""Two gloo processes against one on the same data: dense under DDP, sharded, sampled."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from facerec.errors import FacerecError
from tests.training_oracles import one_thread, relative  # noqa: F401
from training.broadface import BroadFace
from training.heads import HEADS, create_head

SPAWN = multiprocessing.get_context("spawn")
WORLD, N, D, C, STEPS = 2, 4, 6, 31, 7
QUEUE = 3 * N  # of each rank; the one process keeps WORLD times as many
CASES = {
    **{f"dense {name}": (name, "dense", QUEUE, {}) for name in ("arcface", "cosface", "magface")},
    **{f"sharded {name}": (name, "sharded", 0, {}) for name in HEADS},
    **{f"sharded {name} queue": (name, "sharded", QUEUE, {}) for name in ("arcface", "softmax")},
    "sharded arcface normalised": ("arcface", "sharded", QUEUE, {"drift": "normalised"}),
}


def data(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of all ranks at a step."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(WORLD * N, D, generator=g, dtype=torch.float64) * 5
    return x, torch.randint(C, (WORLD * N,), generator=g)


class Model(nn.Module):
    def __init__(self, encoder: nn.Module, broad: BroadFace) -> None:
        super().__init__()
        self.encoder, self.broad = encoder, broad

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.broad(self.encoder(x), labels)


def train(case: str, rank: int | None) -> dict[str, Any]:
    """STEPS of SGD on this rank's share of the data; everything, without ranks."""
    name, storage, queue, options = CASES[case]
    torch.manual_seed(0)
    encoder = nn.Linear(D, D).double()
    if rank is None:
        storage, queue = "dense", WORLD * queue
    head = create_head(name, D, C, storage=storage, init_std=1.0, block_rows=5)
    model = Model(encoder, BroadFace(head, queue, **options).double())
    wrapped: nn.Module = model
    if rank is not None and storage == "dense":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif rank is not None:
        model.encoder = nn.parallel.DistributedDataParallel(encoder)
    optimiser = torch.optim.SGD(model.parameters(), 0.02)
    losses, classifier = [], []
    for step in range(STEPS):
        x, labels = data(step)
        if rank is not None:
            x, labels = (v[rank * N : (rank + 1) * N] for v in (x, labels))
        loss = wrapped(x, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        classifier.append(model.broad.classifier_loss.item())
    embeddings, _, kept = model.broad.queue()
    return {
        "loss": losses,
        "classifier": classifier,
        "replayed": model.broad.replayed,
        "encoder": encoder.weight.detach(),
        "weight": head.full_weight(),
        "bias": head.bias.detach() if head.bias is not None else torch.zeros(0),
        "queue": embeddings,
        "kept": kept,
    }


def refusals(rank: int) -> dict[str, str]:
    """What a rank reads when only rank 1's batch is wrong."""
    head = create_head("elastic-arc", D, C, storage="sharded").double()
    x, labels = data(0)
    x, labels = x[:N], labels[:N]
    broken, wrong = x.clone(), labels.clone()
    if rank == 1:
        broken[2, 0], wrong[3] = torch.nan, C
    bad = {"nan": (broken, labels), "label": (x, wrong), "size": (x[rank:], labels[rank:])}
    found = {}
    for key, batch in bad.items():
        try:
            head(*batch)
        except FacerecError as error:
            found[key] = str(error)
    return found


def others(rank: int) -> dict[str, Any]:
    """Logits, initial weights and sampling with shards."""
    head = create_head("combined", D, C, storage="sharded", init_std=1.0).double()
    x, labels = (v[rank * N : (rank + 1) * N] for v in data(0))
    sampled = create_head("arcface", D, C, storage="sharded", sample_rate=0.3)
    sampled(x.float(), labels).backward()
    whole = create_head("combined", D, C).full_weight()
    head.load_full_weight(head.full_weight().flip(0))
    return {
        "logits": head.logits(x, labels),
        "rows": len(head.weight),
        "initial": create_head("combined", D, C, storage="sharded", init_std=1.0).full_weight(),
        "taken": sampled.weight.grad.abs().sum(1).nonzero()[:, 0] + sampled.shard.low,
        "dense": whole,
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results: dict[str, Any] = {case: train(case, rank) for case in CASES}
    results["refusals"] = refusals(rank)
    results["others"] = others(rank)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [SPAWN.Process(target=work, args=(rank, str(folder))) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, ranks: list[dict[str, Any]]) -> None:
    one = train(case, None)
    both = [found[case] for found in ranks]
    sharded = CASES[case][1] == "sharded"
    for key in ("loss", "classifier"):
        values = torch.tensor([found[key] for found in both], dtype=torch.float64)
        if sharded:
            assert relative(values[1], values[0]) < 1e-12, "the loss is that of all ranks"
        assert relative(values.mean(0), torch.tensor(one[key], dtype=torch.float64)) < 1e-9
    for key in ("encoder", "weight"):
        assert torch.equal(both[0][key], both[1][key])
        assert relative(both[0][key], one[key]) < 1e-9
    if sharded:
        assert torch.allclose(torch.cat([found["bias"] for found in both]), one["bias"])
        assert both[0]["replayed"] == one["replayed"] == WORLD * CASES[case][2]


def test_each_rank_keeps_its_own_share_of_the_queue(ranks: list[dict[str, Any]]) -> None:
    for case, (_, _, queue, _) in CASES.items():
        both = [found[case] for found in ranks]
        for rank, found in enumerate(both):
            expected = [data(step)[1][rank * N : (rank + 1) * N] for step in range(STEPS)]
            assert found["kept"].tolist() == torch.cat(expected)[STEPS * N - queue :].tolist()
        if queue:
            assert not torch.equal(both[0]["queue"], both[1]["queue"])


def test_a_bad_batch_on_one_rank_stops_all_of_them(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        refused = found["refusals"]
        assert f"row {N + 2}" in refused["nan"] and "not finite" in refused["nan"]
        assert f"Row {N + 3}" in refused["label"] and f"label {C}" in refused["label"]
        assert f"[{N}, {N - 1}]" in refused["size"]


def test_shards_are_even_and_start_as_the_dense_weights(ranks: list[dict[str, Any]]) -> None:
    assert [found["others"]["rows"] for found in ranks] == [16, 15]
    dense = create_head("combined", D, C, init_std=1.0)
    for found in ranks:
        assert torch.equal(found["others"]["initial"], dense.weight.detach())


def test_logits_of_shards_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    head = create_head("combined", D, C, init_std=1.0).double()
    head.load_full_weight(head.full_weight().flip(0))
    expected = head.logits(*data(0))
    together = torch.cat([found["others"]["logits"] for found in ranks])
    assert relative(together, expected.detach()) < 1e-9


def test_shards_sample_their_own_classes(ranks: list[dict[str, Any]]) -> None:
    labels = set(data(0)[1].tolist())
    taken = [set(found["others"]["taken"].tolist()) for found in ranks]
    assert labels <= taken[0] | taken[1]
    for rank, (low, high) in enumerate(((0, 16), (16, 31))):
        positive = sum(low <= label < high for label in labels)
        assert all(low <= column < high for column in taken[rank])
        assert len(taken[rank]) == max(positive, round(0.3 * (high - low)))


def test_ranks_with_dense_weights_draw_margins_of_their_own(tmp_path: Path) -> None:
    """Ranks see other rows; the same margins on all of them would be fewer draws."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        mine = create_head("elastic-arc", D, C)
        monkey, dist.get_rank = dist.get_rank, lambda *_: 1
        try:
            other = create_head("elastic-arc", D, C)
        finally:
            dist.get_rank = monkey
    finally:
        dist.destroy_process_group()
    assert torch.equal(mine.weight, other.weight)
    states = [head.margin.generator.get_state() for head in (mine, other)]
    assert not torch.equal(*states)
