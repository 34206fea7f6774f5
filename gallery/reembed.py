"""Move a gallery to another model, and back, without losing a name.

Every template gets a vector of the new model beside its old one, in a generation of its own,
while the old one goes on answering to every process. Then one transaction lets the new one answer.
Killed at any point, the same call goes on where it was. Imports the core and this package.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facerec.errors import ContractMismatch, FacerecError, GalleryError
from facerec.image import DEFAULT_MAX_PIXELS
from facerec.pipeline import Pipeline
from gallery import generations, indexfile
from gallery.gallery import Gallery
from gallery.generations import BATCH, Generation, StoredFace, Unembedded
from gallery.location import Location
from gallery.records import WriteTransaction
from gallery.schema import RETIRED, STAGING
from gallery.store import Store
from gallery.stored_faces import Embedded, Reembedder

_log = logging.getLogger(__name__)

_SAMPLE = 64
"""Templates that are embedded once more before the switch."""
_SAME = 0.999
"""Cosine of one face embedded twice by one model, from the same pixels."""
_INSIDE = 16
"""Templates that may still be embedded while nobody else can write."""

Progress = Callable[[int, int], None]
"""Told (templates done, templates in all); may raise to stop."""


@dataclass(frozen=True)
class Status:
    """Where a gallery stands.

    other: the staging or retired generation, if there is one. templates: of everybody, named or
    not. missing: those of which it is open whether they can have a vector in ``other``.
    unembedded: those that do not answer, in the active generation; unembedded_there: in ``other``.
    """

    active: Generation
    other: Generation | None
    templates: int
    missing: int
    unembedded: tuple[Unembedded, ...]
    unembedded_there: tuple[Unembedded, ...]


@dataclass(frozen=True)
class Moved:
    """What a move has done. active: the generation that answers now. embedded: vectors made in
    this run. switched: whether another generation answered before. seconds: of the whole."""

    active: Generation
    embedded: int
    unembedded: tuple[Unembedded, ...]
    switched: bool
    seconds: float


def status(place: str | Path | Location) -> Status:
    """Where the gallery stands. Raises GalleryError where there is none."""
    with _opened(place) as store, store.reading() as view:
        active, other = generations.generations(view)
        return Status(
            active=active,
            other=other,
            templates=view.count_templates() + view.count_templates(named=False),
            missing=generations.count_missing(view, other.id) if other else 0,
            unembedded=tuple(generations.unembedded(view, active.id)),
            unembedded_there=tuple(generations.unembedded(view, other.id)) if other else (),
        )


def move(
    place: str | Path | Location,
    pipeline: Pipeline,
    *,
    detect: bool = False,
    photos: Sequence[Path] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    anyway: bool = False,
    progress: Progress | None = None,
) -> Moved:
    """Let the gallery hold and answer with embeddings of ``pipeline``.

    detect, photos: see :class:`gallery.stored_faces.Reembedder`. anyway: switch even where most
    templates cannot be embedded. Where the gallery is of that model already, only templates
    that had no vector are tried once more.

    Raises GalleryError while the gallery keeps a generation of a third model, or where the
    vectors do not prove right; the old generation then goes on answering.
    """
    began = time.perf_counter()
    work = Reembedder(pipeline, detect=detect, photos=photos, max_pixels=max_pixels)
    made, switched = 0, True
    with _opened(place) as store:
        try:
            target = _stage(store, pipeline)
            switched = target != store.generation
            made = _embed_missing(store, target, work, progress)
            if switched:
                _prove(store, target, work, anyway)
                made += _switch(store, target, work)
        except ContractMismatch:  # another process switched; if to this model, all is well
            if status(place).active.contract != pipeline.contract:
                raise
    return _finished(place, made, switched, began)


def roll_back(
    place: str | Path | Location,
    pipeline: Pipeline | None,
    *,
    detect: bool = False,
    photos: Sequence[Path] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    anyway: bool = False,
    progress: Progress | None = None,
) -> Moved:
    """Let the generation answer again that did before.

    pipeline: of its pack, which embeds the templates that came since; None where that pack is
    not here: these are then listed, and do not answer. Raises GalleryError where nothing is
    kept to go back to; ContractMismatch for a pipeline of another contract.
    """
    began = time.perf_counter()
    with _opened(place) as store:
        with store.reading() as view:
            _, other = generations.generations(view)
        if other is None or other.state != RETIRED:
            raise GalleryError(f"{store.gallery}: no earlier generation is kept to go back to.")
        if pipeline is not None and pipeline.contract != other.contract:
            raise ContractMismatch(
                f"{store.gallery}: the earlier generation is of pack {other.pack_name!r} (contract "
                f"{other.contract.contract_id}), and pack {pipeline.pack.name!r} makes others. "
                "Name that pack, or none."
            )
        work = Reembedder(
            pipeline,
            detect=detect,
            photos=photos,
            max_pixels=max_pixels,
            without=f"it came after the move from pack {other.pack_name!r}, which is not here",
        )
        made = _embed_missing(store, other.id, work, progress)
        _require_most(store, other.id, anyway)
        made += _switch(store, other.id, work)
    return _finished(place, made, True, began)


def discard(place: str | Path | Location, progress: Progress | None = None) -> Generation:
    """Remove the staging or retired generation, and make the file smaller.

    Raises GalleryError where there is neither. Interrupted, the next call goes on.
    """
    with _opened(place) as store:
        with store.reading() as view:
            _, other = generations.generations(view)
        if other is None:
            raise GalleryError(f"{store.gallery}: there is no other generation to discard.")
        after: int | None = 0
        done = 0
        while after is not None:
            with store.writing() as change:
                if not after:
                    change.set_meta(vacuum_due=True)
                after = generations.erase_some(change, other.id, after)
                if after is None:
                    generations.erase_generation(change, other.id)
            done = min(done + generations.ERASED_AT_ONCE, other.embedded)
            if progress is not None:
                progress(done, other.embedded)
        if problem := store.compact():
            _log.warning("%s: removed vectors are not compacted yet: %s", store.gallery, problem)
    return other


@contextmanager
def _opened(place: str | Path | Location) -> Iterator[Store]:
    location = Location.of(place)
    if not Store.exists(location):
        raise GalleryError(f"{location}: there is no gallery here. Name the folder of another.")
    store = Store.open(location)
    try:
        yield store
    finally:
        store.close()


def _stage(store: Store, pipeline: Pipeline) -> int:
    """The generation to fill: the active one if it is of this model, a staged, or a new one."""
    pack = pipeline.pack
    with store.writing() as change:
        active, other = generations.generations(change)
        if active.contract == pipeline.contract:
            return active.id
        if other is None:
            generations.add_staging(change, pipeline.contract, pack.name, pack.thresholds)
            _, other = generations.generations(change)
            assert other is not None
        elif other.contract != pipeline.contract:
            raise GalleryError(_in_the_way(store.gallery, other, pack.name))
        else:
            generations.stage_again(change, other.id, pack.name, pack.thresholds)
        return other.id


def _in_the_way(gallery: str, other: Generation, pack_name: str) -> str:
    if other.state == STAGING:
        return (
            f"{gallery}: a move to pack {other.pack_name!r} is under way. Finish it with 'facerec "
            f"reembed --pack {other.pack_name}', or drop it with 'facerec reembed --discard'; then "
            f"move to {pack_name!r}."
        )
    return (
        f"{gallery}: the vectors of pack {other.pack_name!r} are still kept to go back to. Remove "
        f"them with 'facerec reembed --discard'; then move to {pack_name!r}."
    )


def _embed_missing(store: Store, target: int, work: Reembedder, progress: Progress | None) -> int:
    """Embed what has no vector in ``target``, a transaction a batch; returns how many have now."""
    with store.reading() as view:
        everything = view.count_templates() + view.count_templates(named=False)
        active, other = generations.generations(view)
    done = active.embedded if active.id == target or other is None else other.embedded
    made = 0
    if progress is not None:
        progress(min(done, everything), everything)
    for result in work.embed_batches(_batches(store, target)):
        with store.writing() as change:
            made += _put(change, target, result)
        done += len(result.vectors) + len(result.reasons)
        if progress is not None:
            progress(min(done, everything), everything)
    return made


def _batches(store: Store, target: int) -> Iterator[list[StoredFace]]:
    """Templates without a vector, also those that had none when last tried."""
    after = 0
    while True:
        with store.reading() as view:
            some = generations.missing(view, target, after, BATCH, retry=True)
        if not some:
            return
        after = some[-1].id
        yield some


def _prove(store: Store, target: int, work: Reembedder, anyway: bool) -> None:
    """Embed a random sample once more, and compare. Raises GalleryError."""
    _require_most(store, target, anyway)
    with store.reading() as view:
        sample = generations.draw(view, target, _SAMPLE, np.random.default_rng())
    again = dict(work.embed([face for face, _ in sample]).vectors) if sample else {}
    wrong = [
        face.id
        for face, vector in sample
        if face.id in again
        and not (len(vector) == len(again[face.id]) and float(vector @ again[face.id]) > _SAME)
    ]
    if wrong:
        raise GalleryError(
            f"{store.gallery}: {len(wrong)} of {len(sample)} templates, first #{wrong[0]}, were "
            "embedded differently a second time; the gallery goes on answering as before. Start "
            "afresh with 'facerec reembed --discard', and check the pack with 'facerec packs "
            "verify'."
        )


def _require_most(store: Store, target: int, anyway: bool) -> None:
    """Raises GalleryError where a switch would silence more than half of the gallery."""
    with store.reading() as view:
        without = generations.unembedded(view, target)
        everything = view.count_templates() + view.count_templates(named=False)
    if len(without) * 2 > everything and not anyway:
        raise GalleryError(
            f"{store.gallery}: {len(without):,} of {everything:,} templates cannot be embedded, so "
            f"the gallery goes on answering as before; first {without[0].name!r}: "
            f"{without[0].reason}. Name folders of the photos with --photos, or switch all the "
            "same with --anyway."
        )


def _switch(store: Store, target: int, work: Reembedder) -> int:
    """Let ``target`` answer once it holds every template; returns how many vectors that took.

    Whatever was enrolled meanwhile is caught up, the last few while nobody else can write.
    """
    made = 0
    while True:
        with store.writing() as change:
            left = generations.missing(change, target, limit=_INSIDE + 1)
            if len(left) <= _INSIDE:
                made += _put(change, target, work.embed(left) if left else Embedded())
                if missing := generations.count_missing(change, target):
                    raise GalleryError(f"{store.gallery}: {missing} templates have no vector yet")
                _erase_indexes(store)
                generations.activate(change, target)
                return made
        with store.reading() as view:
            some = generations.missing(view, target, limit=BATCH)
        result = work.embed(some)
        with store.writing() as change:
            made += _put(change, target, result)


def _put(change: WriteTransaction, target: int, result: Embedded) -> int:
    return generations.put_results(change, target, result.vectors, result.reasons)


def _erase_indexes(store: Store) -> None:
    """Under the write lock: no index of the old vectors may be taken for one of the new."""
    folder = store.location.folder
    if folder is None:
        return
    for named in (True, False):
        path = folder / indexfile.name_of(named)
        try:
            indexfile.erase(path)
        except OSError as exc:
            raise GalleryError(
                f"{path}: cannot be removed ({exc.strerror or exc}). "
                "The gallery goes on answering as before."
            ) from exc


def _finished(place: str | Path | Location, made: int, switched: bool, began: float) -> Moved:
    """What came of it; and an index of the new vectors, so that the next one need not wait."""
    if switched:
        try:
            Gallery.open(place, create=False).close()
        except FacerecError as exc:
            _log.warning("%s: no index was made yet: %s", Location.of(place), exc)
    now = status(place)
    return Moved(now.active, made, now.unembedded, switched, time.perf_counter() - began)
