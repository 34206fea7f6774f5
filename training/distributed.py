"""The processes of one run: who they are, and what they tell each other. Imports torch only.

Started by torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK and the address. Everything beside
gradients and class weights goes through a gloo group of its own, so that a checkpoint is
gathered in ordinary memory, whatever the gradients travel on, and waiting for rank 0 to
evaluate has no short time limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from facerec.errors import ConfigError, ModelError

_PATIENCE = timedelta(hours=12)
"""How long ranks wait for one another: the data's digest or an evaluation may take long."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``. With one process every method is the identity."""

    device: torch.device
    rank: int = 0
    world: int = 1
    control: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over the ranks, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(value) for value in total]

    def gather(self, item: Any) -> list[Any] | None:
        """Every rank's ``item`` on rank 0, None elsewhere. Tensors must be on the CPU."""
        if self.world == 1:
            return [item]
        parts: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(item, parts, dst=0, group=self.control)
        return parts

    def from_main(self, item: Any) -> Any:
        """Rank 0's ``item`` on every rank."""
        if self.world == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Return once every rank is here."""
        if self.world > 1:
            dist.barrier(group=self.control)


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """This process's place, joined to the others as long as the context lasts.

    device: ``"auto"``, ``"cpu"`` or ``"cuda"``; on CUDA each local rank has the device of its
    number. A process group that is there already is used and left alone.

    Raises ModelError where ``"cuda"`` is asked for and absent, ConfigError for a torchrun
    environment that is incomplete.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    already = dist.is_available() and dist.is_initialized()
    if world == 1 and not already:
        yield Ranks(here)
        return
    if not already:
        missing = [v for v in ("RANK", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set: start several "
                "processes with torchrun --nproc-per-node N -m training train ..."
            )
        backend = "nccl" if here.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(here, dist.get_rank(), dist.get_world_size(), control)
    finally:
        if not already:
            dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``"auto"``, ``"cpu"`` or ``"cuda"`` as a device; ModelError where CUDA is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise ModelError(
            f"device cuda: this process needs CUDA device {local_rank}, torch {torch.__version__} "
            f"sees {count}. Start fewer processes, install a torch built for CUDA, or choose "
            "run.device = 'cpu'."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
