"""Gallery: people and their templates, and who a probe is.

The store is the truth; the live index answers. A call that changes something returns
once the change is committed and the index answers with it, and every answer counts
what other processes have written. Imports the core and this package.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from facerec.errors import GalleryError, StoreCorrupt
from facerec.types import (
    Candidate,
    Decision,
    EmbeddingContract,
    Identity,
    Template,
    ThresholdTable,
)
from gallery import indexfile
from gallery.apart import inherit
from gallery.folder import permit_creation
from gallery.ledger import forget_person
from gallery.live import IndexFactory, IndexOptions, LiveIndex
from gallery.location import Location
from gallery.people import Hit
from gallery.policy import OperatingPoint, operating_point
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import NAMED
from gallery.store import Store, thresholds_json
from gallery.values import (
    NameOrId,
    NewTemplate,
    Removal,
    check_contract,
    check_dim,
    metadata_json,
    unit_rows,
)

if TYPE_CHECKING:
    from gallery.follower import MilvusIndex
    from gallery.transfer import Conflict, ImportResult


_log = logging.getLogger(__name__)


class Gallery:
    """One folder of people. Threads may share a Gallery; each process opens its own.

    ::

        with Gallery.open("people", contract=pipeline.contract,
                          thresholds=pipeline.thresholds, pack_name="bundled") as gallery:
            decision = gallery.identify(face.embedding[None])[0]
            print(decision.match, decision.threshold, decision.fmr)

    Every method raises GalleryError (see :mod:`facerec.errors`) where the store cannot
    be read or written; what it had not acknowledged has then not happened.
    """

    def __init__(self, store: Store, options: IndexOptions) -> None:
        """Use :meth:`open`."""
        meta = store.meta()
        self.location = store.location
        self._store = store
        self._contract = meta.contract
        self._pack_name = meta.pack_name
        self._thresholds = meta.thresholds
        if options.kind is None:
            options = replace(options, kind=meta.index_kind)
        self._options = options
        self._milvus: MilvusIndex | None = None
        self._live = self._new_live()
        self._unnamed: LiveIndex | None = None
        self._opening = threading.Lock()
        self._closed = False

    def _new_live(self) -> LiveIndex | MilvusIndex:
        if self.location.milvus is None:
            return LiveIndex(self._store, self._contract, self._options, named=True)
        from gallery.follower import MilvusIndex

        self._milvus = MilvusIndex(self._store, self._options.kind or "auto")
        return self._milvus

    @staticmethod
    def open(
        path: str | Path | Location,
        *,
        contract: EmbeddingContract | None = None,
        thresholds: ThresholdTable | None = None,
        pack_name: str | None = None,
        create: bool = True,
        index: str | None = None,
        device: str = "cpu",
        index_factory: IndexFactory | None = None,
    ) -> Gallery:
        """The gallery in folder ``path``, made there if there is none and ``create``.

        path: or a URL, ``postgresql://USER:PASSWORD@HOST/DATABASE``, whose database is there:
        see :class:`gallery.location.Location`.
        contract: of the embeddings it shall hold; needed to make one, and checked
        against an existing one (None: take it as it is). thresholds, pack_name: of the
        pack in use; an existing gallery of the same contract takes them over. index: type of
        the vector index, "auto" or one of :data:`gallery.engines.KINDS`, for as long as it is
        open (None: see :meth:`rebuild_index`); device: "cpu", or "cuda" to search on a
        GPU. index_factory: an index of one's own, in memory.

        Raises ConfigError for an index type that is not known; ContractMismatch for a gallery of
        another contract; StoreCorrupt for a damaged database, with nothing written; GalleryError
        for a folder that holds other files, no gallery where none may be made, or no CUDA where
        it is asked for.
        """
        options = IndexOptions(index, device, index_factory)
        options.check()
        location = Location.of(path)
        if not Store.exists(location):
            new_contract = permit_creation(location, contract, create)
            Store.create(location, new_contract, pack_name or "unnamed", thresholds)
        store = Store.open(location)
        try:
            if contract is not None:
                meta = store.meta()
                check_contract(
                    meta.contract, contract, str(location), meta.pack_name, pack_name or "unnamed"
                )
            gallery = Gallery(store, options)
            gallery._take_over(thresholds, pack_name)
        except BaseException:
            store.close()
            raise
        return gallery

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Renew the index file if it is worth it, and let go of the database."""
        if not self._closed:
            self._closed = True
            try:
                for live in self._lives():
                    live.close()
            finally:
                self._store.close()

    @property
    def where(self) -> str:
        """What messages call it: its folder, or its URL without the password."""
        return self._store.gallery

    @property
    def folder(self) -> Path:
        """Raises GalleryError for a gallery on a server."""
        return self._store.db.parent

    @property
    def read_only(self) -> bool:
        """Whether this process may only look."""
        return self._store.read_only

    @property
    def contract(self) -> EmbeddingContract:
        """What the vectors of this gallery mean."""
        return self._contract

    @property
    def pack_name(self) -> str:
        """Of the pack that was last used with this gallery."""
        return self._pack_name

    @property
    def thresholds(self) -> ThresholdTable | None:
        """The pack's table as of when this gallery was opened; None if none was measured."""
        return self._thresholds

    @property
    def revision(self) -> int:
        """Counts the writes of all processes."""
        self._require_open()
        return self._store.revision()

    def __len__(self) -> int:
        """Templates. An empty gallery is false, as an empty list is."""
        return self.count()[1]

    def count(self) -> tuple[int, int]:
        """(people, templates)."""
        with self.reading() as view:
            return view.count_identities(), view.count_templates()

    # Who is it?

    def identify(
        self,
        probes: ArrayLike,
        k: int = 5,
        *,
        fmr: float | None = None,
        fpir: float | None = None,
        threshold: float | None = None,
    ) -> list[Decision]:
        """For each of (N, d) unit-length probes the k most similar people, and whether it is one.

        At most one of: fmr, false-match rate of one comparison (default 1e-3); fpir,
        false-positive rate of a search among the people of this gallery; threshold, a
        cosine. Each person counts by their most similar template. Exact.

        Raises ContractMismatch for probes of another dimension, GalleryError for ones that
        are not (N, d) finite unit vectors or k < 1, ConfigError for a rate that was not
        measured.
        """
        self._require_open()
        vectors = unit_rows(probes, "probes", 2)
        if k < 1:
            raise GalleryError(f"k counts people and is at least 1, got {k}")
        if len(vectors):
            check_dim(vectors.shape[1], self._contract, self._pack_name, "the probe")
        while True:
            with self._live.searching() as state:
                found = state.people.nearest(vectors, k)
                people, names, revision = state.people.people, state.names, state.revision
            point = self._operating_point(people, fmr=fmr, fpir=fpir, threshold=threshold)
            self._fill_names(names, found)
            if all(hit.identity_id in names for hits in found for hit in hits):
                return [_decision(hits, names, point, people) for hits in found]
            # Someone was removed between search and look-up, so the revision has moved: again.
            if self._store.revision() == revision:
                raise StoreCorrupt(
                    f"{self.where}: the database is damaged: it holds templates of nobody. "
                    "Restore the folder from a backup, or import an export into a new one."
                )

    def verify(
        self,
        name_or_id: NameOrId,
        probe: ArrayLike,
        *,
        fmr: float | None = None,
        threshold: float | None = None,
    ) -> Decision:
        """Whether a (d,) unit-length probe is this person, at an FMR (default 1e-3) or a cosine.

        The decision's only candidate is that person, with the most similar template; none
        if they have no template. Its fpir is the fmr: one person was compared.
        Raises IdentityNotFound, and what :meth:`identify` does.
        """
        vector = unit_rows(probe, "the probe", 1)
        check_dim(len(vector), self._contract, self._pack_name, "the probe")
        point = self._operating_point(1, fmr=fmr, threshold=threshold)
        person = self.person(name_or_id)
        with self._live.searching() as state:
            hit = state.people.best_of(person.id, vector)
        return _decision([hit] if hit else [], {person.id: person.name}, point, 1)

    # Who is there?

    def people(
        self, search: str | None = None, offset: int = 0, limit: int | None = None
    ) -> list[Identity]:
        """People by name; those whose name holds ``search``, without regard to case."""
        if offset < 0 or (limit is not None and limit < 0):
            raise GalleryError(f"offset and limit are not negative, got {offset} and {limit}")
        with self.reading() as view:
            return view.identities(search, offset, limit)

    def count_people(self, search: str | None = None) -> int:
        """How many people :meth:`people` would list without a limit."""
        with self.reading() as view:
            return view.count_identities(search)

    def person(self, name_or_id: NameOrId) -> Identity:
        """By name (str) or id (int). Raises IdentityNotFound."""
        with self.reading() as view:
            return view.identity(name_or_id)

    def templates(self, name_or_id: NameOrId, limit: int | None = None) -> list[Template]:
        """A person's templates, or the first of them, oldest first. Raises IdentityNotFound."""
        if limit is not None and limit < 0:
            raise GalleryError(f"limit is not negative, got {limit}")
        with self.reading() as view:
            return view.templates(view.identity(name_or_id).id, limit)

    def template(self, template_id: int) -> Template:
        """Raises IdentityNotFound."""
        with self.reading() as view:
            return view.template(template_id)

    def crop(self, template_id: int) -> bytes | None:
        """The template's loose crop, a JPEG; None if none was kept. Raises IdentityNotFound."""
        with self.reading() as view:
            return view.crop(view.template(template_id).id)

    # Changes

    def enroll(
        self,
        name: str,
        templates: Sequence[NewTemplate],
        *,
        metadata: Mapping[str, Any] | None = None,
        must_be_new: bool = False,
    ) -> tuple[Identity, list[int]]:
        """Add templates to the person of that name, who is made if there is none.

        Names are compared without regard to case. metadata is laid over what the person
        has. A photo gives a person at most one template: one whose content_sha256 they
        have already, or that comes twice, is left out, so that fewer ids may come back
        than templates went in. Another person may have the same photo.

        Raises IdentityExists if ``must_be_new`` and the name is taken; ContractMismatch
        for vectors of another dimension; GalleryError for a bad name or no template.
        """
        if not templates:
            raise GalleryError(f"nothing to enrol for {name!r}: no template was given")
        for new in templates:
            check_dim(len(new.embedding), self._contract, self._pack_name, new.source)
        with self.writing() as change:
            taken = None if must_be_new else change.find(name)
            if taken is None:
                person_id = change.add_identity(name, metadata_json(metadata or {}))
            else:
                person_id = taken.id
                if metadata:
                    change.set_details(person_id, metadata_json({**taken.metadata, **metadata}))
            ids = change.add_templates([(person_id, new) for new in templates])
            person = change.identity(person_id)
        return person, [template_id for template_id in ids if template_id is not None]

    def rename(self, name_or_id: NameOrId, new: str) -> Identity:
        """Whoever had no name is a person from then on.

        Raises IdentityNotFound, IdentityExists, GalleryError for a bad name.
        """
        with self.writing() as change:
            person = change.identity(name_or_id)
            if person.state == NAMED:
                change.rename(person.id, new)
            else:
                change.set_state(person.id, NAMED, new)
            return change.identity(person.id)

    def set_metadata(self, name_or_id: NameOrId, metadata: Mapping[str, Any]) -> Identity:
        """Replace a person's metadata. Raises IdentityNotFound, GalleryError if not JSON."""
        with self.writing() as change:
            person_id = change.identity(name_or_id).id
            change.set_details(person_id, metadata_json(metadata))
            return change.identity(person_id)

    def merge(self, into: NameOrId, other: NameOrId) -> Identity:
        """Give all of ``other``'s templates to ``into``, and remove the person ``other``.

        Of a face of a photo that both have, ``into``'s template stays. Metadata of ``other`` fills
        in what ``into`` has no key for. Raises IdentityNotFound; GalleryError for one person, or
        an ``into`` without a name.
        """
        with self.writing() as change:
            keep, gone = change.identity(into), change.identity(other)
            if keep.id == gone.id:
                raise GalleryError(f"{keep.name!r} cannot be merged with itself")
            if keep.state != NAMED:
                raise GalleryError(
                    f"nobody is merged into {keep.name}, who has no name: merge them into a "
                    f"person, or say who they are: facerec cluster name {keep.id} NAME"
                )
            self.mark_removal(change)
            change.move_templates(gone.id, keep.id)
            inherit(change, gone.id, keep.id)
            change.remove_identity(gone.id)
            change.set_details(keep.id, metadata_json({**gone.metadata, **keep.metadata}))
            person = change.identity(keep.id)
        if problem := self._compacted():
            _log.warning("%s: removed rows are not compacted yet: %s", self.where, problem)
        return person

    def remove(self, name_or_id: NameOrId) -> Removal:
        """Remove a person: no vector, crop, name or index entry of theirs is left.

        The file is compacted before this returns; should that have to wait, the result
        says so. Raises IdentityNotFound.
        """
        with self.writing() as change:
            person = change.identity(name_or_id)
            self.mark_removal(change)
            forget_person(change, person.id, person.name)
            n = change.remove_identity(person.id)
        problem = self._compacted()
        return Removal(person, n, problem is None, problem)

    def remove_template(self, template_id: int) -> Removal:
        """Remove one template, as :meth:`remove`; the person stays, even without any.

        Raises IdentityNotFound.
        """
        with self.writing() as change:
            template = change.template(template_id)
            person = change.identity(template.identity_id)
            self.mark_removal(change)
            change.remove_templates([template.id])
        problem = self._compacted()
        return Removal(person, 1, problem is None, problem)

    def _compacted(self) -> str | None:
        return self._store.compact() or self.residue

    @property
    def residue(self) -> str | None:
        """A sentence on what a removal leaves outside of the database; None: nothing."""
        return None if self._milvus is None else self._milvus.residue

    def compact(self, *, now: bool = False) -> str | None:
        """Try again what a removal had to put off. Returns a sentence if it still has to wait.

        now: though the database is large, and rewriting it takes minutes.
        """
        self._require_open()
        return self._store.compact(now=now)

    @property
    def compaction_due(self) -> bool:
        """Whether bytes of removed rows may be left in the database."""
        return self._store.meta().vacuum_due

    def check(self) -> None:
        """Walk the whole database, and compare the index with it.

        Raises StoreCorrupt for damage; an index that differs is rebuilt.
        """
        self._require_open()
        self._store.check()
        for live in self._lives():
            live.check()

    def rebuild_index(self, kind: str | None = None) -> None:
        """Write the index on disk anew; of ``kind`` from now on, whoever opens the gallery.

        kind: "auto", or one of :data:`gallery.engines.KINDS`; None leaves it as it is. Raises
        ConfigError for another, GalleryError where it cannot be written.
        """
        self._require_open()
        if kind is not None:
            options = replace(self._options, kind=kind)
            options.check()
            with self.writing() as change:
                change.set_meta(index_kind=kind)
            self._options = options
            for live in self._lives():
                if isinstance(live, LiveIndex):
                    live.options = options
                else:
                    live.want(kind)
        for live in self._lives():
            live.rebuild()

    # Another gallery

    def export(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write all of it to one file: see :mod:`gallery.transfer`."""
        from gallery.transfer import export_gallery

        return export_gallery(self, Path(path), overwrite=overwrite)

    def import_(self, path: str | Path, *, on_conflict: Conflict = "error") -> ImportResult:
        """Add everybody from an exported file: see :mod:`gallery.transfer`."""
        from gallery.transfer import import_into

        return import_into(self, Path(path), on_conflict=on_conflict)

    # For the modules of this package

    @contextmanager
    def reading(self) -> Iterator[ReadTransaction]:
        """One consistent view of the store."""
        self._require_open()
        with self._store.reading() as view:
            yield view

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        """A change that is committed, and answered with, when this ends; or that left no trace."""
        self._require_open()
        if self._milvus is not None:
            self._milvus.require()
        with self._store.writing() as change:
            yield change
        for live in self._lives():
            live.refresh()
            live.save_if_due()

    @property
    def live(self) -> LiveIndex | MilvusIndex:
        """The index of people."""
        self._require_open()
        return self._live

    @property
    def unnamed(self) -> LiveIndex:
        """The index of those without a name; made when it is first asked for."""
        self._require_open()
        with self._opening:
            if self._unnamed is None:
                self._unnamed = LiveIndex(self._store, self._contract, self._options, named=False)
            return self._unnamed

    def _lives(self) -> list[LiveIndex | MilvusIndex]:
        """The indexes that are open."""
        return [self._live] if self._unnamed is None else [self._live, self._unnamed]

    def _require_open(self) -> None:
        if self._closed:
            raise GalleryError(f"{self.where}: the gallery is closed")

    def _operating_point(self, people: int, **asked: float | None) -> OperatingPoint:
        return operating_point(self._thresholds, people, pack_name=self._pack_name, **asked)

    def _fill_names(self, names: dict[int, str], found: list[list[Hit]]) -> None:
        missing = {
            hit.identity_id for hits in found for hit in hits if hit.identity_id not in names
        }
        if missing:
            names.update(self._store.names(sorted(missing)))

    def mark_removal(self, change: WriteTransaction) -> None:
        """Before rows go: no copy of them may outlive the commit, nor their bytes the next open."""
        self._live.erase_copy()
        if self._unnamed is not None:
            self._unnamed.erase_copy()
        elif (folder := self.location.folder) is not None:
            indexfile.erase(folder / indexfile.UNNAMED_INDEX_NAME)
        change.set_meta(vacuum_due=True)

    def _take_over(self, thresholds: ThresholdTable | None, pack_name: str | None) -> None:
        """Let the gallery remember the table and name of the pack that it is used with."""
        stale = {
            "thresholds": (thresholds, self._thresholds),
            "pack_name": (pack_name, self._pack_name),
        }
        changed = {key: new for key, (new, old) in stale.items() if new is not None and new != old}
        if not changed:
            return
        self._thresholds = thresholds or self._thresholds
        self._pack_name = pack_name or self._pack_name
        if not self._store.read_only:
            with self._store.writing() as change:
                change.set_generation(
                    thresholds=thresholds_json(self._thresholds), pack_name=self._pack_name
                )


def _decision(
    hits: Sequence[Hit], names: Mapping[int, str], point: OperatingPoint, people: int
) -> Decision:
    candidates = tuple(
        Candidate(hit.identity_id, names[hit.identity_id], hit.similarity, hit.template_id)
        for hit in hits
    )
    return Decision(candidates, point.threshold, point.fmr, point.fpir(people), people)
