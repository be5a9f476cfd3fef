"""From images to advice and to a model: `fit`, `recommend` and `profile`."""

from __future__ import annotations

import functools
import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_json, progress_bars
from .findings import print_on_request, print_outcome, print_profile, print_ranking
from .options import AsJson, Images, RayAddress, Seed, ZooName, location

if TYPE_CHECKING:
    from automl_tl.advice import Advice
    from automl_tl.along import Along
    from automl_tl.records import Task

Source = Annotated[
    str | None,
    typer.Option(
        help="Labelled images of another domain (adapt to IMAGES), or of other classes (few-shot); "
        "or an earlier run with --remember exemplars."
    ),
]
After = Annotated[Path | None, typer.Option(help="A run or model whose knowledge must not be forgotten.")]
Keep = Annotated[str | None, typer.Option(help="Labelled images of classes that --after knows.")]
Clients = Annotated[
    list[str] | None, typer.Option(help="Federated: a client's images (repeatable), or how many clients to simulate.")
]
Skew = Annotated[float, typer.Option(help="How unequal simulated clients are: 1 is mild, 0.1 gives each few classes.")]
Robust = Annotated[str | None, typer.Option(help="Train to withstand changes of every pixel by up to this, such as 8/255.")]
Shots = Annotated[int, typer.Option(min=0, help="Use this many training images of each class; 0: all.")]
Strategies = Annotated[list[str] | None, typer.Option("--strategy", help="Consider this strategy only (repeatable).")]
Backbones = Annotated[list[str] | None, typer.Option("--backbone", help="Consider this backbone only (repeatable).")]
Trackers = Annotated[list[str] | None, typer.Option("--tracker", help="Also report to tensorboard, mlflow… (repeatable).")]
Remember = Annotated[
    list[str] | None,
    typer.Option(
        help="Store with the model what a later task (--after) needs: fisher, importance, exemplars (images of yours) or "
        "statistics (repeatable)."
    ),
]
Exemplars = Annotated[
    int, typer.Option(min=1, help="At most this many images for --remember exemplars, of all classes together.")
]


def fit(
    images: Images,
    budget: Annotated[
        str | None,
        typer.Option(help="90s, 10m, 1h, '5 trials', '60 epochs', or several joined by +.", show_default="10m without --trials"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: model, trials, report. The same command resumes it.")] = Path(
        "runs/fit"
    ),
    trials: Annotated[
        int | None, typer.Option(help="Short for --budget 'N trials'; beside a --budget, whichever comes first.")
    ] = None,
    source: Source = None,
    after: After = None,
    keep: Keep = None,
    clients: Clients = None,
    skew: Skew = 1.0,
    robust: Robust = None,
    shots: Shots = 0,
    zoo: ZooName = None,
    strategy: Strategies = None,
    backbone: Backbones = None,
    tracker: Trackers = None,
    ray: RayAddress = None,
    remember: Remember = None,
    exemplars: Exemplars = 500,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Find, train and explain the best classifier within a budget."""
    from automl_tl import api, processes
    from automl_tl.facts import outcome_facts

    with progress_bars(json) as progress:
        outcome = api.fit(
            location(images),
            budget=_budget(budget, trials),
            out=out,
            along=_along(source, after, keep, clients, skew, robust, shots),
            seed=seed,
            zoo=zoo,
            strategies=strategy,
            backbones=backbone,
            trackers=list(dict.fromkeys([*(() if json else ("console",)), *(tracker or ())])),
            ray=ray,
            remember=remember or (),
            exemplars=exemplars,
            progress=progress,
            told=None if json else functools.partial(_tell, zoo=zoo),
        )
    if not processes.leads():
        return
    if json:
        places = {"folder": str(outcome.folder), "report": str(outcome.folder / "report.html")}
        print_json({**outcome_facts(outcome), **places, "remembered": dict(outcome.remembered)})
    else:
        print_outcome(outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt  # only now that it has told what there is: a script must not take it for finished


def recommend(
    images: Images,
    top: Annotated[int, typer.Option(min=1, help="How many candidates to show.")] = 10,
    source: Source = None,
    after: After = None,
    keep: Keep = None,
    clients: Clients = None,
    skew: Skew = 1.0,
    robust: Robust = None,
    shots: Shots = 0,
    zoo: ZooName = None,
    strategy: Strategies = None,
    backbone: Backbones = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Advice only, with reasons; nothing is trained."""
    from automl_tl import api

    with progress_bars(json) as progress:
        along = _along(source, after, keep, clients, skew, robust, shots)
        task = api.read_task(location(images), along, seed=seed, progress=progress)
        advice = api.recommend(task, zoo=zoo, strategies=strategy, backbones=backbone, seed=seed, progress=progress)
    if json:
        items = [asdict(item) for item in advice.ranking.items[:top]]
        ranking = advice.ranking
        print_json({"basis": ranking.basis, "stage": ranking.stage, "warnings": advice.profile.warnings, "ranking": items})
        return
    print_profile(task, advice.profile)
    print_ranking(advice.ranking, top)


def profile(images: Images, source: Source = None, zoo: ZooName = None, seed: Seed = 0, json: AsJson = False) -> None:
    """Describe the images in numbers: counts, distances to the sources, transferability of the first six backbones."""
    from automl_tl import api
    from automl_tl.along import Along

    with progress_bars(json) as progress:
        along = Along(source=None if source is None else location(source))
        task = api.read_task(location(images), along, seed=seed, progress=progress)
        found = api.profile_task(task, zoo=zoo, seed=seed, progress=progress)
    if json:
        print_json(asdict(found))
    else:
        print_profile(task, found)


def _budget(budget: str | None, trials: int | None) -> str:
    """Both limits where both are given; ten minutes where neither is."""
    limits = [] if budget is None else [budget]
    limits += [] if trials is None else [f"{trials} trials"]
    return " + ".join(limits or ["10m"])


def _along(
    source: str | None,
    after: Path | None,
    keep: str | None,
    clients: list[str] | None,
    skew: float,
    robust: str | None,
    shots: int,
) -> Along:
    """What the options say comes with the images."""
    from automl_tl.along import Along, fraction

    several: int | tuple[Any, ...] = tuple(map(location, clients or ()))
    if clients and len(clients) == 1 and clients[0].isdecimal():
        several = int(clients[0])
    return Along(
        source=None if source is None else location(source),
        after=after,
        keep=None if keep is None else location(keep),
        clients=several,
        skew=skew,
        robust=0.0 if robust is None else fraction(robust, "--robust"),
        shots=shots,
    )


def _tell(task: Task, advice: Advice, *, zoo: str | None) -> None:
    try:
        if zoo is None and not task.earlier:
            print_on_request()
        print_profile(task, advice.profile)
        print_ranking(advice.ranking, 5)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has seen enough; the training is still wanted, and its folder tells all
        sys.stdout = io.StringIO()
