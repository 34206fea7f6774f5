"""The learning rate as a pure function of the step. Imports the standard library only.

There is no scheduler object and so no scheduler state: a resumed run asks for the rate of the
step that it is at and gets what an uninterrupted one would have got.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "polynomial", "cosine", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Factor on the base learning rate at each step.

    kind:
        ``"step"``: times ``gamma`` at each milestone. ``"polynomial"``:
        ``final + (1 - final) (1 - t)^power``. ``"cosine"`` (Loshchilov 2017, arXiv 1608.03983,
        equation 5, one cycle): ``final + (1 - final) (1 + cos(pi t)) / 2``. ``"constant"``: 1.
        t runs from 0 at the first step after the warm-up to 1 at ``total_steps``.
    milestones: epochs counted from 1, at whose first step the rate falls. 8 of 26: seven epochs
        run at the first rate.
    warmup_steps: the factor rises linearly to 1 over them (Goyal 2017, arXiv 1706.02677,
        section 2.2): the first step gets 1/warmup_steps, so that no step is without effect.
        Milestones that fall inside still count.
    """

    kind: Kind
    total_steps: int
    steps_per_epoch: float
    warmup_steps: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 2.0
    final: float = 0.0

    def factor(self, step: int) -> float:
        """The factor of ``step``, counted from 0; in (0, 1] for the steps of the run."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * self._after_warmup(step)

    def _after_warmup(self, step: int) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            epoch = 1 + step / self.steps_per_epoch
            passed = sum(epoch >= milestone for milestone in self.milestones)
            return float(self.gamma**passed)
        t = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        t = min(1.0, max(0.0, t))
        falling = (
            (1 - t) ** self.power if self.kind == "polynomial" else (1 + math.cos(math.pi * t)) / 2
        )
        return float(self.final + (1 - self.final) * falling)
