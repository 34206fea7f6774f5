"""Results as lines for a terminal and as dictionaries for JSON. Imports the core only."""

from __future__ import annotations

import math
from typing import Any

from facerec.types import Candidate, Comparison, Decision, EnrolResult, Face


def number(value: float) -> float | None:
    """A float as JSON can hold it: NaN and infinity become null."""
    return value if math.isfinite(value) else None


def rate(value: float) -> str:
    """A rate for people: "0.1 %", "1e-05", or "unmeasured"."""
    if not math.isfinite(value):
        return "unmeasured"
    return f"{value:.2g}" if value < 1e-4 else f"{100 * value:.3g} %"


def face_to_dict(face: Face) -> dict[str, Any]:
    """Where a face is, without its embedding. Boxes and landmarks in pixels."""
    return {
        "box_xyxy": [round(float(v), 1) for v in face.box_xyxy],
        "landmarks": [[round(float(v), 1) for v in p] for p in face.landmarks],
        "det_score": round(face.det_score, 4),
    }


def candidate_to_dict(candidate: Candidate) -> dict[str, Any]:
    """A person and their similarity, as JSON says it."""
    return {
        "name": candidate.name,
        "id": candidate.identity_id,
        "similarity": round(candidate.similarity, 4),
    }


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    """Who, with the score, the threshold and the rates that it stands on."""
    return {
        "name": decision.match.name if decision.match else None,
        "candidates": [candidate_to_dict(c) for c in decision.candidates],
        "threshold": round(decision.threshold, 4),
        "fmr": number(decision.fmr),
        "fpir": number(decision.fpir),
    }


def identification_lines(
    photo: str, faces: tuple[Face, ...], decisions: list[Decision]
) -> list[str]:
    """One line for the photo and one for each face, left to right."""
    if not faces:
        return [f"{photo}: no face found"]
    lines = [f"{photo}: {len(faces)} {'face' if len(faces) == 1 else 'faces'}"]
    order = sorted(range(len(faces)), key=lambda i: float(faces[i].box_xyxy[0]))
    for i in order:
        lines.append(f"  {_place(faces[i])}  {decision_sentence(decisions[i])}")
    return lines


def decision_sentence(decision: Decision) -> str:
    """The answer with its score, its threshold and the false-match rate at it."""
    at = f"threshold {decision.threshold:.3f} at FMR {rate(decision.fmr)}"
    if not decision.candidates:
        return f"unknown (the gallery is empty; {at})"
    best = decision.candidates[0]
    if decision.match:
        return f"{best.name} (similarity {best.similarity:.3f}, {at})"
    return f"unknown (nearest {best.name}, similarity {best.similarity:.3f}, {at})"


def enrolment_to_dict(result: EnrolResult) -> dict[str, Any]:
    """What became of every photo, as JSON says it."""
    return {
        "identity": None
        if result.identity is None
        else {
            "id": result.identity.id,
            "name": result.identity.name,
            "templates": result.identity.template_count,
        },
        "enrolled": [{"photo": s, "template": t} for s, t in result.enrolled],
        "duplicates": list(result.duplicates),
        "rejected": {
            source: [{"code": r.code, "reason": r.reason} for r in reasons]
            for source, reasons in result.rejected.items()
        },
        "failed": [{"photo": f.source, "code": f.code, "reason": f.reason} for f in result.failed],
    }


def enrolment_lines(result: EnrolResult) -> list[str]:
    """One line for each photo, then the outcome."""
    lines = [f"  enrolled   {source}" for source, _ in result.enrolled]
    lines += [f"  duplicate  {source}: enrolled before" for source in result.duplicates]
    for source, reasons in result.rejected.items():
        said = " ".join(f"{r.reason} [{r.code}]" for r in reasons)
        lines.append(f"  refused    {source}: {said}")
    for f in result.failed:
        reason = f.reason.removeprefix("the image: ").removeprefix(f"{f.source}: ")
        lines.append(f"  failed     {f.source}: {reason}")
    if result.identity is None:
        lines.append("Nobody was enrolled.")
    else:
        person = result.identity
        views = "view" if person.template_count == 1 else "views"
        lines.append(f"{person.name} has {person.template_count} {views} in the gallery.")
    if result.rejected:
        lines.append("Photos that the quality gate refused can be enrolled with --force.")
    return lines


def comparison_to_dict(result: Comparison) -> dict[str, Any]:
    """Whether two faces are one person's, as JSON says it."""
    return {
        "same": result.same,
        "similarity": number(round(result.similarity, 4)),
        "threshold": round(result.threshold, 4),
        "fmr": number(result.fmr),
        "faces_a": result.faces_a,
        "faces_b": result.faces_b,
    }


def comparison_lines(result: Comparison) -> list[str]:
    """The same for a terminal."""
    answer = "the same person" if result.same else "different people"
    at = f"threshold {result.threshold:.3f} at FMR {rate(result.fmr)}"
    lines = [f"{answer} (similarity {result.similarity:.3f}, {at})"]
    for name, count in ((result.a, result.faces_a), (result.b, result.faces_b)):
        if count is not None and count > 1:
            lines.append(f"  {name} shows {count} faces; the largest was compared")
    return lines


def _place(face: Face) -> str:
    x0, y0, x1, y1 = (round(float(v)) for v in face.box_xyxy)
    return f"[{x0:>5} {y0:>5} {x1:>5} {y1:>5}]"
