"""Experiments about transfer itself: `study …` and `unfreeze-study`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .console import figure, print_json, print_table, progress_bars
from .options import AsJson, Images, Seed, ZooName, location

group = typer.Typer(help="Experiments about transfer itself.", no_args_is_help=True)


@group.command("data")
def study_data(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder of the study. The same command resumes it.")] = Path("runs/study"),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with its own choice of images.")] = 3,
    strategy: Annotated[str | None, typer.Option(help="Strategy to study; by default the one recommended first.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Network to study; by default the one recommended first.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train every run for this many epochs.")] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """The score at 5, 10, 25, 50 and 100 % of the data, with transfer and from scratch; how much data transfer saves."""
    from automl_tl import study

    with progress_bars(json) as progress:
        found = study.study_data(
            location(images),
            out=out,
            seeds=seeds,
            strategy=strategy,
            backbone=backbone,
            epochs=epochs,
            seed=seed,
            progress=progress,
        )
    if json:
        print_json(study.facts_of(found))
        return
    rows = [(f"{share:.0%}", str(count), *(figure(score) for score in means)) for share, count, means in study.means_of(found)]
    print_table("Test accuracy, mean of the seeds", ("data", "training images", "transferred", "from scratch"), rows)
    print(study.saving_in_words(found))
    print(f"Page: {out / 'study.html'}")


def unfreeze_study(
    images: Images,
    backbone: Annotated[str | None, typer.Option(help="Network to study; by default the one recommended first.")] = None,
    zoo: ZooName = None,
    source: Annotated[
        str | None,
        typer.Option(help="Images that the backbone was pretrained on (such as formula:fractals), to see what it forgets."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of training for each depth.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the page, the picture (SVG) and the figures (JSON).")] = Path(
        "runs/unfreezing"
    ),
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """How many layers to unfreeze: plots accuracy, forgetting and cost of every depth."""
    from automl_tl import api
    from automl_tl.data import check_outside
    from automl_tl.report.unfreezing import check_free, conclusion, report_study

    api.check_writable(out)
    with progress_bars(json) as progress:
        task = api.read_task(location(images), seed=seed, progress=progress)
        shown = None if source is None else api.read_task(location(source), seed=seed, progress=progress)
        check_outside(out, task, ("", images))
        if shown is not None:
            check_outside(out, shown, ("--source", source))
        check_free(out, task)
        study = api.study_unfreezing(task, backbone=backbone, zoo=zoo, source=shown, epochs=epochs, seed=seed, progress=progress)
    page = report_study(study, out)
    if json:
        print_json({**asdict(study), "enough": study.enough, "page": str(page)})
        return
    rows = [
        (
            str(depth.groups),
            f"{depth.parameters:,}",
            f"{depth.score:.3f}",
            figure(depth.changed),
            figure(depth.source),
            figure(depth.drift),
            f"{depth.seconds:.1f}",
        )
        for depth in study.depths
    ]
    print_table("", ("groups", "parameters", "accuracy", "source head changed", "its accuracy", "drift", "seconds"), rows)
    print(conclusion(study))
    print(f"Report: {page}")
