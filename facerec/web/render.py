"""HTML of what the pages show. Every text from outside goes through ``html.escape``.

Pictures go into the page as data, so that no copy of a face lies in a folder of its own.
Buttons carry ``data-`` attributes, which ``layout.CLICKS`` hands to the page's handler.
Imports the core and ``views``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from facerec.web.views import (
    About,
    CandidateView,
    Draft,
    Enrolment,
    FaceView,
    GroupsPage,
    GroupView,
    Identification,
    PeoplePage,
    PersonRow,
    PersonView,
    PhotoOutcome,
    TemplateView,
    Verification,
)

_BADGES = {
    "enrolled": ("good", "Enrolled"),
    "duplicate": ("plain", "Already enrolled"),
    "rejected": ("warn", "Refused"),
    "failed": ("bad", "Failed"),
}


def notice(kind: str, text: str) -> str:
    """A sentence in a box. kind: "error", "good" or "plain"."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="fr-notice fr-{escape(kind)}" role="{role}">{escape(text)}</div>'


def head(about: About) -> str:
    """The line at the top: what is at work, and on how many people."""
    facts = (
        ("Model pack", about.pack),
        ("Contract", about.contract_id[:8]),
        ("Device", about.device.upper()),
        ("Gallery", f"{count(about.people, 'person')}, {count(about.templates, 'photo')}"),
    )
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return f'<header class="fr-head"><h1>facerec</h1><dl>{items}</dl></header>'


def foot(about: About) -> str:
    """Where the data is, and what the thresholds rest on."""
    measured = (
        f"<p>Thresholds: {escape(about.measured_on)}</p>"
        if about.measured_on
        else "<p>No thresholds were measured for this pack yet.</p>"
    )
    return (
        '<footer class="fr-foot"><p>Names, face crops and embeddings stay on this machine, in '
        f"<code>{escape(about.folder)}</code>. Uploaded photos are deleted after a few minutes; "
        f"no other computer is contacted.</p>{measured}"
        f"<p>Model pack {escape(about.pack)}: {escape(about.licence)}.</p></footer>"
    )


def count(n: int, noun: str) -> str:
    """ "1 photo", "2 photos", "3 people"."""
    plural = "people" if noun == "person" else noun + "s"
    return f"{n:,} {noun if n == 1 else plural}"


# Identify


def identification(view: Identification) -> str:
    """The result of Identify as escaped HTML: the count, the picture, a card for each face."""
    known = sum(face.name is not None for face in view.faces)
    summary = (
        f"{count(len(view.faces), 'face')}: {known} known, {len(view.faces) - known} unknown "
        f"<small>in {view.elapsed_s:.2f} s</small>"
    )
    faces = "".join(_face(i, face, view) for i, face in enumerate(view.faces, 1))
    return (
        f'<section class="fr-result"><h2>{summary}</h2>'
        f'<img class="fr-picture" src="{_data(view.picture)}" alt="The photo, every face boxed">'
        f'<p class="fr-basis">{escape(_search_basis(view))}</p>'
        f'<ol class="fr-faces">{faces}</ol></section>'
    )


def _search_basis(view: Identification) -> str:
    people = count(view.people, "person")
    if not view.people:
        return "The gallery is empty, so every face is unknown. Enrol somebody first."
    if math.isnan(view.fmr):
        return (
            f"{people} searched. Nothing is known of false matches at threshold "
            f"{view.threshold:.3f}: it was not measured."
        )
    return (
        f"{people} searched. At threshold {view.threshold:.3f}, photos of two different people are "
        f"taken for one person in {_percent(view.fmr)} of comparisons (FMR), and a stranger gets "
        f"somebody's name in about {_percent(view.fpir)} of searches (FPIR)."
    )


def _percent(value: float) -> str:
    """A rate with two significant digits: "0.1 %", "0.0013 %"; NaN: "not measured"."""
    if math.isnan(value):
        return "not measured"
    return f"{float(f'{value * 100:.2g}'):.10f}".rstrip("0").rstrip(".") + " %"


def _face(number: int, face: FaceView, view: Identification) -> str:
    kind = "known" if face.name is not None else "unknown"
    name = escape(face.name) if face.name is not None else "Unknown"
    similarity = "none" if face.similarity is None else f"{face.similarity:.3f}"
    facts = _facts(
        ("Similarity", similarity),
        ("Threshold", f"{view.threshold:.3f}"),
        ("FMR", _percent(view.fmr)),
        ("FPIR", _percent(view.fpir)),
    )
    candidates = "".join(_candidate(candidate) for candidate in face.candidates)
    nearest = (
        f'<h4>Nearest people</h4><ol class="fr-candidates">{candidates}</ol>' if candidates else ""
    )
    return (
        f'<li class="fr-card fr-{kind}" data-name="{name}"><div class="fr-face">'
        f'<img class="fr-crop" src="{_data(face.crop)}" alt="Face {number}">'
        f'<div class="fr-who"><h3><span class="fr-number">{number}</span>{name}</h3>{facts}'
        f"{_meter(face.similarity, view.threshold, kind)}</div></div>{nearest}</li>"
    )


def _candidate(candidate: CandidateView) -> str:
    mark = " fr-match" if candidate.matches else ""
    name = escape(candidate.name)
    return (
        f'<li class="fr-candidate{mark}" title="{name}">{_crop(candidate.crop)}'
        f"<span>{name}</span><b>{candidate.similarity:.3f}</b></li>"
    )


def _meter(similarity: float | None, threshold: float, kind: str) -> str:
    """A bar with a tick at the threshold; the numbers beside it say the same.

    Models differ in where strangers lie (near 0.0 or near 0.8), so the bar begins well below
    the threshold, whatever that is, and ends at 1.
    """
    if similarity is None:
        return ""
    low = max(-0.2, 1 - 2.5 * (1 - threshold))
    span = max(1e-6, 1 - low)
    filled, tick = (
        100 * min(1.0, max(0.0, (value - low) / span)) for value in (similarity, threshold)
    )
    return (
        f'<div class="fr-meter fr-{kind}" aria-hidden="true">'
        f'<i style="width:{filled:.1f}%"></i><b style="left:{tick:.1f}%"></b></div>'
    )


# Verify


def verification(view: Verification) -> str:
    """The result of Verify as escaped HTML: the verdict, its facts, both pictures."""
    verdict = "The same person" if view.same else "Different people"
    kind = "known" if view.same else "unknown"
    side = "at or above" if view.same else "below"
    facts = _facts(
        ("Similarity", f"{view.similarity:.3f}"),
        ("Threshold", f"{view.threshold:.3f}"),
        ("FMR", _percent(view.fmr)),
    )
    figures = "".join(
        f'<figure><img src="{_data(picture)}" alt="Photo {letter} with the face compared boxed">'
        f"<figcaption>{escape(name)}{_several(faces)}</figcaption></figure>"
        for letter, picture, name, faces in zip(
            "AB", view.pictures, view.names, view.faces, strict=True
        )
    )
    return (
        f'<section class="fr-result"><div class="fr-card fr-{kind}"><h2>{verdict}</h2>{facts}'
        f"{_meter(view.similarity, view.threshold, kind)}"
        f"<p>The similarity is {side} the threshold.</p></div>"
        f'<div class="fr-pair">{figures}</div></section>'
    )


def _several(faces: int) -> str:
    return f" ({faces} faces; the largest was compared)" if faces > 1 else ""


# Enrol


def drafts(photos: Sequence[Draft]) -> str:
    """The faces found in the photos; where there are several, buttons to say which one."""
    single = [draft for draft in photos if len(draft.crops) == 1]
    strip = ""
    if single:
        crops = "".join(
            f'<img class="fr-crop" src="{_data(draft.crops[0])}" alt="" '
            f'title="{escape(draft.upload.name)}">'
            for draft in single
        )
        strip = (
            f'<li class="fr-card"><b>{count(len(single), "photo")} with one face</b>'
            f'<div class="fr-strip">{crops}</div></li>'
        )
    several = "".join(_choice(i, draft) for i, draft in enumerate(photos) if len(draft.crops) > 1)
    unusable = "".join(
        f'<li class="fr-card"><div class="fr-file">{escape(draft.upload.name)}</div>'
        f'<p class="fr-bad">{escape(draft.problem)}</p></li>'
        for draft in photos
        if draft.problem is not None
    )
    rows = strip + several + unusable
    return f'<ul class="fr-drafts">{rows}</ul>' if rows else ""


def _choice(photo: int, draft: Draft) -> str:
    buttons = "".join(
        f'<button type="button" class="fr-pick" data-photo="{photo}" data-face="{face}" '
        f'aria-pressed="{"true" if face == draft.choice else "false"}" '
        f'aria-label="Face {face + 1} of {len(draft.crops)}">'
        f'<img src="{_data(crop)}" alt=""></button>'
        for face, crop in enumerate(draft.crops)
    )
    asked = "choose whose to enrol" if draft.choice is None else "the marked one is meant"
    return (
        f'<li class="fr-card"><b>{len(draft.crops)} faces: {asked}</b>'
        f'<div class="fr-file">{escape(draft.upload.name)}</div>'
        f'<div class="fr-strip">{buttons}</div></li>'
    )


def enrolment(view: Enrolment) -> str:
    """The result of Enrol as escaped HTML: the outcome, and what became of each photo."""
    enrolled = sum(photo.status == "enrolled" for photo in view.photos)
    if view.person is None:
        said = notice("error", "Nobody was enrolled; see below why.")
    else:
        said = notice(
            "good" if enrolled else "plain",
            f"{count(enrolled, 'photo')} enrolled. {view.person} now has "
            f"{count(view.templates, 'photo')} in the gallery.",
        )
    hint = (
        '<p class="fr-basis">A poor photo draws later searches towards this person. If you still '
        "want a refused one, tick “Enrol anyway” and enrol again.</p>"
        if view.poor
        else ""
    )
    rows = "".join(_outcome(photo) for photo in view.photos)
    return f'{said}<ul class="fr-outcomes">{rows}</ul>{hint}'


def _outcome(photo: PhotoOutcome) -> str:
    kind, word = _BADGES[photo.status]
    crop = _crop(photo.crop) if photo.crop is not None else ""
    reasons = "".join(f"<p>{escape(reason.reason)}</p>" for reason in photo.reasons)
    return (
        f'<li class="fr-card fr-row">{crop}<div><div class="fr-file">'
        f'<span class="fr-badge fr-{kind}">{word}</span> {escape(photo.name)}</div>'
        f"{reasons}</div></li>"
    )


# People


def people(page: PeoplePage) -> str:
    """A page of people as escaped HTML: a card for each."""
    if not page.total:
        text = (
            f"Nobody's name holds “{page.search}”."
            if page.search
            else "The gallery is empty. Enrol somebody first."
        )
        return notice("plain", text)
    rows = "".join(_person_row(row) for row in page.rows)
    return f'<ul class="fr-people">{rows}</ul>{_pager(page)}'


def _pager(page: PeoplePage | GroupsPage) -> str:
    if page.total <= page.size:
        return ""
    last = page.offset + len(page.rows)
    back = _button("Previous", "offset", page.offset - page.size, off=page.offset == 0)
    on = _button("Next", "offset", page.offset + page.size, off=last >= page.total)
    where = f"{page.offset + 1}–{last} of {page.total:,}"
    return f'<nav class="fr-pager">{back}<span>{where}</span>{on}</nav>'


def _person_row(row: PersonRow) -> str:
    return (
        f'<li><button type="button" class="fr-person" data-person="{row.id}">{_crop(row.crop)}'
        f"<span><b>{escape(row.name)}</b><small>{count(row.templates, 'photo')}</small></span>"
        "</button></li>"
    )


def person(view: PersonView, doubtful: int | None = None) -> str:
    """A person in full. doubtful: the photo whose removal waits for a second yes."""
    metadata = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in view.metadata
    )
    details = f'<dl class="fr-metadata">{metadata}</dl>' if metadata else ""
    photos = "".join(_template(t, t.id == doubtful) for t in view.templates)
    if not photos:
        photos = "<li>No photo is left, so this person is never found.</li>"
    return (
        f'<section><h2 class="fr-name">{escape(view.name)}</h2>'
        f"<p>{count(len(view.templates), 'photo')}, enrolled since {view.created_at:%Y-%m-%d}</p>"
        f'{details}<ul class="fr-templates">{photos}</ul></section>'
    )


def _template(template: TemplateView, doubtful: bool) -> str:
    source = escape(template.source)
    buttons = (
        _button("Yes, remove", "remove", template.id, kind="bad") + _button("Keep", "keep", 1)
        if doubtful
        else _button("Remove photo", "ask", template.id)
    )
    return (
        f'<li class="fr-card">{_crop(template.crop)}<div class="fr-file" title="{source}">{source}'
        f"</div><small>{template.created_at:%Y-%m-%d}</small><div>{buttons}</div></li>"
    )


def groups(page: GroupsPage) -> str:
    """A page of groups as escaped HTML, with some faces of each."""
    single = f"<p>{count(page.single, 'single face')} more.</p>" if page.single else ""
    if not page.rows:
        return notice("plain", "No unknown faces are grouped yet.") + single
    rows = "".join(
        f'<li><button type="button" class="fr-person" data-group="{row.id}">'
        f"{''.join(map(_crop, row.crops))}<span><b>{escape(row.name)}</b><small>"
        f"{count(row.faces, 'face')}{_probably(row.probably)}</small></span></button></li>"
        for row in page.rows
    )
    return f'<ul class="fr-people">{rows}</ul>{_pager(page)}{single}'


def group(view: GroupView) -> str:
    """A group in full, each face with a button to say that it is somebody else."""
    more = view.faces - len(view.templates)
    reason = (
        f"<p>Probably {escape(view.probably)}: {escape(view.reason)}</p>" if view.probably else ""
    )
    faces = "".join(
        f'<li class="fr-card">{_crop(t.crop)}<div class="fr-file" title="{escape(t.source)}">'
        f"{escape(t.source)}</div><div>{_button('Somebody else', 'split', t.id)}</div></li>"
        for t in view.templates
    )
    return (
        f'<section><h2 class="fr-name">{escape(view.name)}</h2><p>{count(view.faces, "face")}'
        f"{f', {more:,} of them not shown' if more else ''}</p>{reason}"
        f'<ul class="fr-templates">{faces}</ul></section>'
    )


def _probably(name: str | None) -> str:
    return f", probably {escape(name)}" if name else ""


# Small parts


def _button(text: str, key: str, value: int, *, off: bool = False, kind: str = "plain") -> str:
    disabled = " disabled" if off else ""
    return (
        f'<button type="button" class="fr-button fr-{kind}" data-{key}="{value}"{disabled}>'
        f"{escape(text)}</button>"
    )


def _facts(*facts: tuple[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return f'<dl class="fr-facts">{items}</dl>'


def _crop(jpeg: bytes | None) -> str:
    if jpeg is None:
        return '<span class="fr-crop fr-none" title="No crop is kept">–</span>'
    return f'<img class="fr-crop" src="{_data(jpeg)}" alt="">'


def _data(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
