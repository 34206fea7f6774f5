"""What the pages show: plain frozen values, without markup. Imports the core's types only.

Pictures are JPEG bytes, small enough to go into a page; see :mod:`facerec.web.render`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from facerec.types import Rejection


@dataclass(frozen=True)
class Upload:
    """A photo as the browser sent it. name: as on the visitor's disk. path: here, for a while."""

    name: str
    path: str


@dataclass(frozen=True)
class Limit:
    """Where a match begins: a target false-match rate, or else a cosine."""

    fmr: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class About:
    """What the page's head and foot say. device: "cpu" or "cuda". folder: of the gallery."""

    pack: str
    licence: str
    contract_id: str
    device: str
    people: int
    templates: int
    folder: str
    measured_on: str | None


@dataclass(frozen=True)
class Draft:
    """A photo about to be enrolled: its faces from left to right, and the one that is meant.

    faces: their indices in the order of the detector. crops: a JPEG of each. choice: which
    of them; None where several were found and nobody has said which one. problem: why the
    photo cannot be used, a sentence.
    """

    upload: Upload
    faces: tuple[int, ...] = ()
    crops: tuple[bytes, ...] = ()
    choice: int | None = None
    problem: str | None = None

    def choose(self, face: int) -> Draft:
        """The same with another choice; unchanged where there is no such face."""
        return replace(self, choice=face) if 0 <= face < len(self.crops) else self


@dataclass(frozen=True)
class PhotoOutcome:
    """What became of one photo. crop: a JPEG of the enrolled face."""

    name: str
    status: Literal["enrolled", "duplicate", "rejected", "failed"]
    reasons: tuple[Rejection, ...] = ()
    crop: bytes | None = None


@dataclass(frozen=True)
class Enrolment:
    """What became of every photo. person: the name as stored; None if nobody was enrolled.

    templates: how many that person has now.
    """

    person: str | None
    templates: int
    photos: tuple[PhotoOutcome, ...]

    @property
    def poor(self) -> bool:
        """Whether a photo was refused for its quality alone, so that enrolling anyway may help."""
        return any(
            photo.status == "rejected"
            and not {"several_faces", "enrolled_as_another"} & {r.code for r in photo.reasons}
            for photo in self.photos
        )


@dataclass(frozen=True)
class CandidateView:
    """A person near a probe. crop: a JPEG of the template that scored; None if none is kept."""

    name: str
    similarity: float
    matches: bool
    crop: bytes | None


@dataclass(frozen=True)
class FaceView:
    """A face of a searched photo. name: None for unknown. crop: a JPEG of it.

    similarity: to the nearest person; None for an empty gallery.
    """

    name: str | None
    similarity: float | None
    crop: bytes
    candidates: tuple[CandidateView, ...]


@dataclass(frozen=True)
class Identification:
    """A searched photo. picture: JPEG with every face boxed. faces: left to right.

    threshold: cosine; fmr: of one comparison; fpir: of the search of ``people`` people
    (NaN: not measured). elapsed_s: from the photo's bytes to this.
    """

    picture: bytes
    faces: tuple[FaceView, ...]
    threshold: float
    fmr: float
    fpir: float
    people: int
    elapsed_s: float


@dataclass(frozen=True)
class Verification:
    """Two photos compared by their largest faces. pictures: JPEGs, with that face boxed.

    faces: how many each photo shows. fmr: NaN where it was not measured.
    """

    same: bool
    similarity: float
    threshold: float
    fmr: float
    pictures: tuple[bytes, bytes]
    names: tuple[str, str]
    faces: tuple[int, int]


@dataclass(frozen=True)
class PersonRow:
    """A person in the list. crop: a JPEG; None if none is kept."""

    id: int
    name: str
    templates: int
    crop: bytes | None


@dataclass(frozen=True)
class PeoplePage:
    """One page of the list. total: people that the search found; offset: of the first row."""

    rows: tuple[PersonRow, ...]
    total: int
    offset: int
    search: str
    size: int


@dataclass(frozen=True)
class TemplateView:
    """One enrolled photo of a person."""

    id: int
    source: str
    created_at: datetime
    crop: bytes | None


@dataclass(frozen=True)
class PersonView:
    """A person in full. metadata: (key, value) as text."""

    id: int
    name: str
    created_at: datetime
    metadata: tuple[tuple[str, str], ...]
    templates: tuple[TemplateView, ...]


@dataclass(frozen=True)
class GroupRow:
    """A group of unknown faces in the list. crops: JPEGs of some. probably: whom it resembles."""

    id: int
    name: str
    faces: int
    crops: tuple[bytes | None, ...]
    probably: str | None


@dataclass(frozen=True)
class GroupsPage:
    """One page of the list. total: groups; single: faces that belong to none."""

    rows: tuple[GroupRow, ...]
    total: int
    single: int
    offset: int
    size: int


@dataclass(frozen=True)
class GroupView:
    """A group in full: the first of its faces. probably: whom it resembles, their id, and why."""

    id: int
    name: str
    faces: int
    probably: str | None
    probably_id: int | None
    reason: str
    templates: tuple[TemplateView, ...]
