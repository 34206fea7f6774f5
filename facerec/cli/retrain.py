"""The ``facerec retrain`` command. It needs torch, and loads it only when it runs."""

from __future__ import annotations

import typer

from facerec.cli.common import DeviceOption, GalleryOption, JsonOption, PackOption, settings_for
from facerec.cli.train import require_training
from facerec.training_options import (
    AlphaOption,
    DataOption,
    DistilOption,
    Fp32Option,
    FromOption,
    GuardOption,
    KeepOption,
    LicenceOption,
    NameOption,
    OutputOption,
    QuietOption,
    RecipeOption,
    ReportOnlyOption,
    RunDirOption,
    SetOption,
    SizeOption,
    TemplateOption,
    ToleranceOption,
)


def retrain(
    data: DataOption,
    output: OutputOption,
    start: FromOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    guard: GuardOption = None,
    tolerance: ToleranceOption = None,
    alpha: AlphaOption = None,
    distil: DistilOption = None,
    run_dir: RunDirOption = None,
    name: NameOption = None,
    licence: LicenceOption = None,
    template: TemplateOption = None,
    size: SizeOption = None,
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    keep_anyway: KeepOption = False,
    report_only: ReportOnlyOption = False,
    fp32_only: Fp32Option = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a pack further on your people, and say whether the new one is better.

    Some people are kept aside, and base and result are compared on every pair of their photos.
    --pack: whose detector finds the faces; default: that of --from. Exit code 0: better; 1: not
    better, or that cannot be told; the pack is written unless it is worse. The same command goes
    on with what was interrupted.

    Example: facerec retrain --data photos --guard lfw -o packs/mine
    """
    require_training()
    from training.recipe import parse_overrides
    from training.retrain import Options
    from training.retrain import retrain as run_retraining

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    overrides = {"run.device": settings.device, **parse_overrides(set_ or [])}
    options = Options(
        start=start,
        recipe=recipe,
        overrides=overrides,
        guard=guard,
        tolerance=None if tolerance is None else tolerance / 100,
        alpha=alpha,
        distil=distil,
        pack=settings.pack,
        template=template,
        size=size,
        run_dir=run_dir,
        name=name,
        licence=licence,
        keep_anyway=keep_anyway,
        report_only=report_only,
        variants=() if fp32_only else ("float16", "int8"),
    )
    report = run_retraining(data, output, options, show=not quiet)
    print(report.to_json() if json else report.to_text())
    raise typer.Exit(0 if report.verdict == "better" else 1)
