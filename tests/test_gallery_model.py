"""A gallery against a dictionary, through random histories, reopenings and a second opening."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from facerec.errors import IdentityExists, IdentityNotFound
from tests.gallery_engines import engine  # noqa: F401
from tests.gallery_samples import open_gallery, template, unit

NAMES = st.sampled_from(["Ann", "Bob", "Čeněk", "Dora", "Eve"])
PHOTOS = st.integers(0, 11)
PROBES = unit(4242, 3)


class Histories(RuleBasedStateMachine):
    """name -> photo -> template id; photo i shows the face unit(i)."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="facerec-test-"))
        self.gallery = open_gallery(self.folder)
        self.other = open_gallery(self.folder)
        self.people: dict[str, dict[int, int]] = {}

    def teardown(self) -> None:
        self.gallery.close()
        self.other.close()
        shutil.rmtree(self.folder)
        shutil.rmtree(f"{self.folder}.milvus.db", ignore_errors=True)

    @rule(name=NAMES, photos=st.lists(PHOTOS, min_size=1, max_size=4))
    def enroll(self, name: str, photos: list[int]) -> None:
        new = [template(unit(photo), f"photo {photo}") for photo in photos]
        _, ids = self.gallery.enroll(name, new)
        mine = self.people.setdefault(name, {})
        fresh = [photo for photo in dict.fromkeys(photos) if photo not in mine]
        assert len(ids) == len(fresh)
        mine.update(zip(fresh, ids, strict=True))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name not in self.people:
            try:
                self.gallery.remove(name)
            except IdentityNotFound:
                return
            raise AssertionError("removed nobody")
        assert self.gallery.remove(name).templates == len(self.people.pop(name))

    @rule(name=NAMES, new=NAMES)
    def rename(self, name: str, new: str) -> None:
        if name not in self.people:
            return
        try:
            self.gallery.rename(name, new)
        except IdentityExists:
            assert new in self.people and new != name
        else:
            assert new not in self.people or new == name
            self.people[new] = self.people.pop(name)

    @rule(into=NAMES, other=NAMES)
    def merge(self, into: str, other: str) -> None:
        if into == other or into not in self.people or other not in self.people:
            return
        self.gallery.merge(into, other)
        gone = self.people.pop(other)
        self.people[into] = {**gone, **self.people[into]}

    @precondition(lambda self: any(self.people.values()))
    @rule(data=st.data())
    def remove_template(self, data: st.DataObject) -> None:
        pairs = [(name, photo) for name, mine in self.people.items() for photo in sorted(mine)]
        name, photo = data.draw(st.sampled_from(pairs))
        self.gallery.remove_template(self.people[name].pop(photo))

    @rule()
    def swap(self) -> None:
        self.gallery, self.other = self.other, self.gallery

    @rule()
    def reopen(self) -> None:
        self.gallery.close()
        self.gallery = open_gallery(self.folder)

    @invariant()
    def everybody_agrees(self) -> None:
        if not hasattr(self, "people"):
            return
        for gallery in (self.gallery, self.other):
            listed = {p.name: p.template_count for p in gallery.people()}
            assert listed == {name: len(mine) for name, mine in self.people.items()}
            for probe, decision in zip(PROBES, gallery.identify(PROBES, k=3), strict=True):
                found = [(c.name, c.template_id) for c in decision.candidates]
                assert found == self.best(probe)

    def best(self, probe: np.ndarray) -> list[tuple[str, int]]:
        scored = sorted(
            (-float((unit(photo).astype(float) * probe).sum()), template_id, name)
            for name, mine in self.people.items()
            for photo, template_id in mine.items()
        )
        result: dict[str, int] = {}
        for _, template_id, name in scored:
            result.setdefault(name, template_id)
        return list(result.items())[:3]


def test_any_history_leaves_what_a_dictionary_would(engine: str) -> None:  # noqa: F811
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=12 if engine == "sqlite" else 4,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
