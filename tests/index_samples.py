"""Collections of photos for the tests of indexing: variations of real faces, made with OpenCV."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from sqlalchemy import select

from facerec.image import load_image, to_jpeg
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import RGBImage
from gallery import Gallery
from gallery.crew import Threads
from gallery.index_report import IndexReport
from gallery.indexer import Indexer
from gallery.items import displayable
from gallery.naming import ANONYMOUS, Naming
from gallery.photo_work import LookOptions, PhotoWork
from gallery.schema import IdentityRow, TemplateRow
from gallery.sources import Sources
from tests.gallery_engines import place

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eva", "Flo")
BY_FOLDER = Naming(by_folder=True)
Row = tuple[str | None, str, str, int]


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python allocates at most while ``work`` runs: the least of three times, because
    threads that an earlier test left behind allocate too."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


def faces_of(group: RGBImage, pipeline: Pipeline) -> list[RGBImage]:
    """A photo of each person of a group photo, 200 pixels high, left to right."""
    [found] = pipeline.detector.detect([group])
    photos = []
    for box in found.boxes_xyxy[np.argsort(found.boxes_xyxy[:, 0])]:
        centre, half = (box[:2] + box[2:]) / 2, 0.8 * float(max(box[2:] - box[:2]))
        x0, y0 = np.maximum(0, centre - half).astype(int)
        x1, y1 = (centre + half).astype(int)
        photos.append(cv2.resize(group[y0:y1, x0:x1], (200, 200), interpolation=cv2.INTER_CUBIC))
    return photos


def portraits(astronaut: Path, group: Path, pipeline: Pipeline) -> dict[str, RGBImage]:
    """NAMES -> a photo of somebody, each somebody else."""
    first = cv2.resize(load_image(astronaut)[:320, 60:380], (200, 200))
    photos = [first, *faces_of(load_image(group), pipeline)]
    found = pipeline.extract(photos)
    good = [p for p, faces in zip(photos, found, strict=True) if not Gate().check(p, faces[0])]
    return dict(zip(NAMES, good, strict=True))


def variation(photo: RGBImage, i: int) -> bytes:
    """The ``i``-th other photo of the same person, as JPEG."""
    turned = cv2.getRotationMatrix2D((100, 100), 3 * ((i % 5) - 2), 1.0)
    other = cv2.warpAffine(photo, turned, (200, 200), borderMode=cv2.BORDER_REPLICATE)
    other = cv2.convertScaleAbs(other, alpha=1.0, beta=4 * (i % 7) - 12)
    return to_jpeg(np.ascontiguousarray(other[:, ::-1] if i % 2 else other), 80 + i % 15)


def make_collection(folder: Path, people: dict[str, RGBImage], each: int) -> list[Path]:
    """folder/NAME/0.jpg and so on."""
    paths = []
    for name, photo in people.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            paths.append(folder / name / f"{i}.jpg")
            paths[-1].write_bytes(variation(photo, i))
    return paths


def open_for(folder: Path, pipeline: Pipeline) -> Gallery:
    return Gallery.open(
        place(folder),
        contract=pipeline.contract,
        thresholds=pipeline.thresholds,
        pack_name=pipeline.pack.name,
    )


def index(
    gallery: Gallery,
    pipeline: Pipeline,
    *roots: Path,
    naming: Naming = ANONYMOUS,
    manifests: tuple[Path, ...] = (),
    prune: bool = False,
    retry: bool = False,
    force: bool = False,
    options: LookOptions | None = None,
) -> IndexReport:
    """One run of the indexer on two threads."""
    named = bool(manifests) or naming != ANONYMOUS
    options = options or LookOptions(one_person=named, **({"gate": None} if force else {}))
    crew = Threads(lambda: PhotoWork(pipeline, options), 2)
    try:
        indexer = Indexer(gallery, crew, force=force, retry=retry)
        sources = Sources(roots, naming=naming, manifests=manifests, known=indexer.ledger())
        return indexer.run(sources, prune_gone=prune)
    finally:
        crew.close()


def rows(gallery: Gallery, below: Path | None = None) -> list[Row]:
    """(name, source, content, face) of every template, named or not; sources below a folder."""
    query = select(
        IdentityRow.name, TemplateRow.source, TemplateRow.content_sha256, TemplateRow.face
    ).join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
    with gallery.reading() as view:
        found = [tuple(row) for row in view.connection.execute(query)]
    prefix = "" if below is None else displayable(below) + "/"
    short = [(n, s.removeprefix(prefix), c, f) for n, s, c, f in found]
    return sorted(short, key=lambda row: (row[0] or "", row[1:]))


def codes(report: IndexReport) -> list[str]:
    """Of the failures."""
    return [failure["code"] for failure in report.failed]
