"""Train a pack further on people of one's own, without forgetting the others, and judge it.

Split, train, interpolate (WiSE-FT), evaluate base and result on the same held-out people,
export. What is checked and opened first is in :mod:`training.job`, whom it keeps aside and how
it scales the recipe in :mod:`training.plan`, what it says in :mod:`training.verdict`.
Imports torch and the core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from facerec.errors import ModelError
from facerec.files import write_atomically
from facerec.intervals import paired_tar_difference
from facerec.metrics import tar_at_far
from facerec.pairs import pair_scores
from training.backbones import Backbone
from training.checkpoint import backbone_from_checkpoint, load_network
from training.data import FaceSource
from training.export import Provenance, default_licence, export_pack
from training.guard import measurable_far
from training.interpolate import interpolate
from training.job import UNGUARDED, Job, Options, announce, prepare
from training.logs import Display, read_json
from training.plan import FEWEST_FOR_INTERVAL, FEWEST_FOR_SELECTION, FEWEST_FOR_TEST
from training.trainer import START, train
from training.verdict import (
    Candidate,
    GuardOutcome,
    Judgement,
    Part,
    RetrainReport,
    Verdict,
    verdict_of,
)

__all__ = ["Options", "retrain"]

_SEED = 2022
"""Of the bootstrap: the same embeddings give the same interval."""
_REPLICATES = 2000


def retrain(
    data: str | Path | FaceSource,
    target: Path,
    options: Options | None = None,
    *,
    show: bool = False,
) -> RetrainReport:
    """Train further on ``data`` and write the pack ``target`` unless it is worse than its base.

    data: what :func:`training.data.open_source` opens, or a source. show: plan and progress on
    standard error. report.json and report.txt lie in the run's folder and in the pack.
    Interrupted in whatever way, the same call goes on: training from its newest checkpoint,
    what comes after it anew.

    Raises ConfigError for data, options or a recipe that do not work, ImageError where too many
    photos cannot be read, ModelError for a starting point that is none. KeyboardInterrupt and
    exit code 143 as :func:`training.trainer.train`.
    """
    began = time.monotonic()
    options = options or Options()
    job = prepare(data, Path(target), options, Display(1, 0, show=show).say)
    if show:
        announce(job)
    outcome = train(job.recipe, job.split.train, job.run_dir, show=show)
    base = load_network(job.run_dir / START)
    result = backbone_from_checkpoint(outcome.checkpoint)
    choice = _choose(job, base, result)
    job.say(f"coefficient {choice.alpha:g}: {choice.reason}")
    chosen = interpolate(base, result, choice.alpha)
    judgement, cosine = _judge(job, base, chosen)
    verdict = verdict_of(choice.alpha, judgement)
    report = RetrainReport(
        verdict=verdict,
        pack=str(job.target) if _is_written(verdict, choice.alpha, options) else None,
        run=str(job.run_dir),
        base=job.start.label,
        recipe=job.recipe.name,
        train=_part(job.split.train),
        selection=_part(job.split.val) if job.split.val else None,
        test=_part(job.split.test) if job.split.test else None,
        steps=outcome.step,
        seconds=0.0,
        alpha=choice.alpha,
        reason=choice.reason,
        selection_far=choice.far,
        candidates=choice.candidates,
        judgement=judgement,
        cosine_to_base=cosine,
        guard=choice.guard,
        notes=_notes(job, judgement),
    )
    if report.pack is not None:
        _export(job, chosen, report)
    report = replace(report, seconds=round(time.monotonic() - began, 1))
    _write_reports(report)
    return report


@dataclass(frozen=True)
class _Choice:
    alpha: float
    reason: str
    far: float | None
    candidates: tuple[Candidate, ...]
    guard: GuardOutcome | None


def _choose(job: Job, base: Backbone, result: Backbone) -> _Choice:
    """The coefficient with the best TAR on the selection people that the guard set allows.

    Of equally good ones the smallest. The guard set is looked at in the order of preference,
    and a coefficient above one that it has ruled out is not asked for again: the further from
    the base, the more is forgotten.
    """
    far, selected = _on_selection(job, base, result)
    # Where nothing was measured, the more of the training the better, as far as is allowed.
    order = sorted(job.candidates, key=lambda a: (-selected[a] if selected else -a, a))
    if selected and job.options.alpha is None:
        order = [a for a in order if selected[a] > selected[0.0]]
    guarded = _walk_guard(job, base, result, order)
    passing = [a for a in order if _is_allowed(job, guarded, a)]
    chosen = job.options.alpha if job.options.alpha is not None else (*passing, 0.0)[0]
    outcome = None
    if job.guard is not None:
        outcome = GuardOutcome(
            job.guard.origin,
            job.guard.measure,
            guarded[0.0],
            guarded[chosen],
            job.guard.tolerance,
        )
    candidates = tuple(
        Candidate(a, selected.get(a), guarded.get(a)) for a in (0.0, *job.candidates)
    )
    return _Choice(chosen, _reason(job, chosen, order, selected), far, candidates, outcome)


def _walk_guard(
    job: Job, base: Backbone, result: Backbone, order: Sequence[float]
) -> dict[float, float]:
    """The guard set's figure of the base (0) and of the candidates up to the first it allows."""
    guard = job.guard
    if guard is None:
        return {}
    found = {0.0: guard.figure(*job.embed(base, guard.source))}
    ruled_out = 2.0
    for alpha in order:
        if alpha >= ruled_out:
            continue
        mixed = interpolate(base, result, alpha)
        found[alpha] = guard.figure(*job.embed(mixed, guard.source))
        job.say(f"coefficient {alpha:g}: guard set {100 * found[alpha]:.2f} %")
        if _is_allowed(job, found, alpha):
            break
        ruled_out = alpha
    return found


def _is_allowed(job: Job, guarded: Mapping[float, float], alpha: float) -> bool:
    """Whether the guard set's figure was measured and has not fallen too far."""
    if job.guard is None:
        return True
    return alpha in guarded and guarded[0.0] - guarded[alpha] <= job.guard.tolerance


def _on_selection(
    job: Job, base: Backbone, result: Backbone
) -> tuple[float | None, dict[float, float]]:
    """TAR of the base (0) and each candidate, and the FAR; empty where nobody is kept for it."""
    source = job.split.val
    far = measurable_far(source.labels) if source else None
    if source is None or far is None:
        return None, {}
    found = {}
    for alpha in (0.0, *job.candidates):
        embeddings, rows = job.embed(interpolate(base, result, alpha), source)
        found[alpha] = tar_at_far(*pair_scores(embeddings, source.labels[rows]), far)
        job.say(f"coefficient {alpha:g}: TAR {100 * found[alpha]:.2f} % at FAR {far:g}, selection")
    return far, found


def _reason(
    job: Job, chosen: float, order: Sequence[float], selected: Mapping[float, float]
) -> str:
    if job.options.alpha is not None:
        return "as asked"
    if not order:
        return "no other helps the people kept for choosing it"
    if chosen == 0:
        return "every other costs the guard set more than it may"
    if not selected:
        best = f"{UNGUARDED:g} is the usual one, and nobody is kept aside to choose by"
    else:
        best = "the best for the people kept for choosing it"
    if job.guard is None:
        return f"{best}; {UNGUARDED:g} at most without a guard set" if selected else best
    return best if chosen == order[0] else f"{best}, among those that the guard set allows"


def _judge(job: Job, base: Backbone, chosen: Backbone) -> tuple[Judgement | None, float | None]:
    """On the test people, who have decided nothing; and the mean cosine to the base."""
    source = job.split.test
    if source is None:
        return None, None
    (first, rows), (second, _) = job.embed(base, source), job.embed(chosen, source)
    cosine = float(np.einsum("ij,ij->i", first, second).mean())
    labels = source.labels[rows]
    far = measurable_far(labels)
    if far is None:
        return None, cosine
    if source.num_classes < FEWEST_FOR_INTERVAL:
        tars = [tar_at_far(*pair_scores(e, labels), far) for e in (first, second)]
        return Judgement(far, tars[0], tars[1], None, None), cosine
    found = paired_tar_difference(first, second, labels, far, seed=_SEED, replicates=_REPLICATES)
    return (
        Judgement(far, found.first, found.second, found.interval, found.share_better),
        cosine,
    )


def _is_written(verdict: Verdict, alpha: float, options: Options) -> bool:
    """With a coefficient of 0 there is nothing but the base to write."""
    wanted = verdict != "worse" or options.keep_anyway
    return alpha > 0 and wanted and not options.report_only


def _notes(job: Job, judgement: Judgement | None) -> tuple[str, ...]:
    notes = []
    people = job.split.train.num_classes
    if job.split.test is None:
        notes.append(
            f"all {people} people were learnt from and nothing could be measured; from "
            f"{FEWEST_FOR_TEST} people on, some are kept aside, from about 40 on there is an "
            "interval"
        )
    elif judgement is None or judgement.interval is None:
        notes.append(
            f"{job.split.test.num_classes} people to judge by are too few for an interval; it "
            f"needs {FEWEST_FOR_INTERVAL}, which about 40 people in all give"
        )
    if job.split.test is not None and job.split.val is None:
        notes.append(
            f"nobody is kept to choose the coefficient on: that takes {FEWEST_FOR_SELECTION} "
            "people, with several photos each"
        )
    if job.guard is None:
        notes.append(
            "whether other people are recognised worse than before was not measured: give a "
            "guard set of people who are not in the data (--guard: a .bin of pairs, LFW, or a "
            "folder of people)"
        )
    return (*notes, *job.left_out)


def _part(source: FaceSource) -> Part:
    return Part(source.num_classes, len(source))


def _export(job: Job, chosen: Backbone, report: RetrainReport) -> None:
    found = report.judgement
    metrics = {}
    if found is not None:
        metrics = {f"tar_at_far_{found.far:g}": found.result, "base": found.base}
    provenance = Provenance(
        recipe=job.recipe,
        data=read_json(job.run_dir / "data.json", {}),
        metrics=metrics,
        base=job.start.provenance,
        notes={"interpolation": report.alpha, "verdict": report.verdict},
    )
    job.target.parent.mkdir(parents=True, exist_ok=True)
    export_pack(
        chosen,
        job.target,
        detector=job.detector,
        name=job.name,
        licence=job.options.licence or default_licence(provenance),
        source=f"facerec retrain, from {job.start.label}",
        description=f"Retrained from {job.start.label} on {report.train.people:,} people",
        flip=job.flip,
        provenance=provenance,
        measure_on=job.split.test,
        calibrate_on=job.split.train,
        variants=job.options.variants,
        progress=job.say,
    )


def _write_reports(report: RetrainReport) -> None:
    """report.json and report.txt, in the run's folder and in the pack."""
    for folder in filter(None, (report.run, report.pack)):
        try:
            for name, text in (("json", report.to_json()), ("txt", report.to_text())):
                write_atomically(Path(folder) / f"report.{name}", f"{text}\n".encode())
        except OSError as exc:
            raise ModelError(f"{folder}: the report cannot be written: {exc.strerror}") from exc
