"""The command line: each verb is one call of the API, then a table or JSON."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import AutomlError, InputError

if TYPE_CHECKING:
    from .along import Along
    from .api import Advice, Progress
    from .backbones import Wanted
    from .records import Outcome, Profile, Ranked, Ranking, Task
    from .sharing import Leaving

EXPLAINED = 3
"""Candidates whose reasons are printed; --json gives those of all."""

app = typer.Typer(
    help="Which pretrained backbone, which transfer strategy, which hyperparameters: answered from experience.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
study_app = typer.Typer(help="Experiments about transfer itself.", no_args_is_help=True)
history_app = typer.Typer(help="The task-history database: what was tried, and how it went.", no_args_is_help=True)
zoo_app = typer.Typer(help="Pretrained networks at hand.", no_args_is_help=True)
plugins_app = typer.Typer(help="What extends automl_tl.", no_args_is_help=True)
app.add_typer(history_app, name="history")
app.add_typer(zoo_app, name="zoo")
app.add_typer(plugins_app, name="plugins")
app.add_typer(study_app, name="study")
federate_app = typer.Typer(
    help="Train with images that stay where they are: one side serves, the others join.", no_args_is_help=True
)
app.add_typer(federate_app, name="federate")

Images = Annotated[str, typer.Argument(help="Image folder, CSV or Parquet manifest, hf:DATASET, or 'digits'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Seed = Annotated[int, typer.Option(help="Decides the split, the ranking, the training.")]
ZooName = Annotated[str | None, typer.Option("--zoo", help="Also consider the networks of this zoo, such as 'timm'.")]
Strategies = Annotated[list[str] | None, typer.Option("--strategy", help="Consider this strategy only (repeatable).")]
Source = Annotated[
    str | None, typer.Option(help="Labelled images of another domain (adapt to IMAGES), or of other classes (few-shot).")
]
After = Annotated[Path | None, typer.Option(help="A run or model whose knowledge must not be forgotten.")]
Keep = Annotated[str | None, typer.Option(help="Labelled images of what --after knows.")]
Clients = Annotated[
    list[str] | None, typer.Option(help="Federated: a client's images (repeatable), or how many clients to simulate.")
]
Skew = Annotated[float, typer.Option(help="Of simulated clients: 1 is mild, 0.1 gives each few classes.")]
Robust = Annotated[str | None, typer.Option(help="Stand changes of every pixel up to this, such as 8/255.")]
Shots = Annotated[int, typer.Option(min=0, help="Use so many training images a class; 0: all.")]
Remember = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep with the model what a task --after it may need: fisher, importance, or exemplars, which are images of yours "
        "(repeatable)."
    ),
]
Exemplars = Annotated[int, typer.Option(min=1, help="Images that --remember exemplars keeps at most, of all classes together.")]
Trackers = Annotated[list[str] | None, typer.Option("--tracker", help="Also tell tensorboard, mlflow… (repeatable).")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Spread the work over a Ray cluster: local, auto or HOST:PORT."),
]
Backbones = Annotated[list[str] | None, typer.Option("--backbone", help="Consider this backbone only (repeatable).")]
MaxParams = Annotated[str | None, typer.Option(help="Networks with at most so many parameters, such as 5M.")]
Licences = Annotated[list[str] | None, typer.Option(help="Networks under this licence, such as apache-2.0 (repeatable).")]
SourceName = Annotated[str | None, typer.Option("--source", help="Networks whose source dataset has this in its name.")]
Domain = Annotated[str | None, typer.Option(help="Networks whose source shows this, such as medical.")]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 wrong use or bad input, 1 our fault."""
    import os
    import warnings

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if not os.environ.get("AUTOML_TL_DEBUG"):
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", category=UserWarning, message=r".*(plugin|Plugin).*")
    try:
        app()
    except AutomlError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes the one the other
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        _fail("interrupted; the same command goes on where it stopped", 130)
    except Exception as error:  # our fault: say so in one line; the traceback is for those who ask
        if os.environ.get("AUTOML_TL_DEBUG"):
            raise
        _fail(f"internal error: {type(error).__name__}: {error} (AUTOML_TL_DEBUG=1 shows where; please report it)", 1)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


@app.command()
def fit(
    images: Images,
    budget: Annotated[str, typer.Option(help="90s, 10m, 1h, '5 trials', '60 epochs', or several joined by +.")] = "10m",
    out: Annotated[Path, typer.Option(help="Folder of the run: model, trials, report. The same call goes on in it.")] = Path(
        "runs/fit"
    ),
    trials: Annotated[int | None, typer.Option(help="Short for --budget 'N trials'.")] = None,
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
    from . import api, processes

    with _progress(json) as progress:
        outcome = api.fit(
            _location(images),
            budget=budget if trials is None else f"{trials} trials",
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
        _print_json(_outcome_facts(outcome))
    else:
        _print_outcome(outcome)


@app.command()
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
    from dataclasses import asdict

    from . import api

    with _progress(json) as progress:
        along = _along(source, after, keep, clients, skew, robust, shots)
        task = api.read_task(_location(images), along, seed=seed, progress=progress)
        advice = api.recommend(task, zoo=zoo, strategies=strategy, backbones=backbone, seed=seed, progress=progress)
    if json:
        items = [asdict(item) for item in advice.ranking.items[:top]]
        _print_json({"basis": advice.ranking.basis, "stage": advice.ranking.stage, "ranking": items})
        return
    _print_profile(task, advice.profile)
    _print_ranking(advice.ranking, top)


@app.command()
def profile(images: Images, zoo: ZooName = None, seed: Seed = 0, json: AsJson = False) -> None:
    """The data in numbers: counts, distances to the sources, transferability of the backbones."""
    from dataclasses import asdict

    from . import api

    with _progress(json) as progress:
        task = api.read_task(_location(images), seed=seed, progress=progress)
        found = api.profile_task(task, zoo=zoo, seed=seed, progress=progress)
    if json:
        _print_json(asdict(found))
    else:
        _print_profile(task, found)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`, or what `export` wrote.")],
    images: Annotated[Path, typer.Argument(help="A folder of images (labels are not needed), or one image.")],
    out: Annotated[Path | None, typer.Option(help="Write a CSV: path, label, confidence, one column a class.")] = None,
    json: AsJson = False,
) -> None:
    """Classify new images with the winner of a run."""
    from . import api

    predictions = api.predict(run, images)
    if out is not None:
        api.write_predictions(predictions, out)
    if json:
        _print_json(
            [
                {"path": where, "label": label, "confidence": float(row.max())}
                for where, label, row in zip(predictions.where, predictions.labels, predictions.probabilities, strict=True)
            ]
        )
    elif out is not None:
        print(f"{len(predictions.where)} predictions written to {out}")
    else:
        rows = zip(predictions.where, predictions.labels, predictions.probabilities, strict=True)
        _table("", ("image", "class", "confidence"), [(where, label, f"{row.max():.3f}") for where, label, row in rows])


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8765,
    root: Annotated[Path | None, typer.Option(help="Folder whose images may be asked for by their path.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of jobs, uploads and models; by default in the user's home.")] = None,
    token: Annotated[str | None, typer.Option(envvar="AUTOML_TL_TOKEN", help="By default a new one, which is printed.")] = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="Largest archive that is taken.")] = 1024,
    requests_per_minute: Annotated[int, typer.Option(min=1, help="Of one address.")] = 1200,
) -> None:
    """Serve everything over HTTP, with a page for people."""
    from .home import home

    try:
        from .service.app import serve as run
        from .service.settings import Settings, new_token
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'automl_tl[http]'") from None
    settings = Settings(
        state or home() / "serve",
        token=new_token() if token is None else token,
        root=root,
        upload_bytes=upload_mb * 2**20,
        requests_per_minute=requests_per_minute,
    )
    run(settings, host=host, port=port, say=_say)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`.")],
    images: Images,
    classes: Annotated[bool, typer.Option("--classes", help="A row for each class, too.")] = False,
    corruptions: Annotated[bool, typer.Option("--corruptions", help="Accuracy on noisy, blurred, foggy … copies, too.")] = False,
    robust: Annotated[
        str | None, typer.Option(help="Also attack: every pixel may change by up to this, such as 8/255 (takes minutes).")
    ] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Judge the winner of a run on labelled images that it has not seen."""
    from dataclasses import asdict

    from . import api
    from .along import fraction

    judgement = api.judge_model(run, _location(images))
    robustness = api.judge_corrupted(judgement, seed=seed) if corruptions else None
    attacked = api.judge_attacked(run, judgement, fraction(robust, "--robust")) if robust is not None else {}
    if json:
        facts: dict[str, Any] = {**judgement.scores, **attacked, "intervals": judgement.intervals}
        facts |= {"classes": [asdict(row) for row in judgement.classes]} if classes else {}
        facts |= {"corruptions": {**asdict(robustness), "mean": robustness.mean}} if robustness else {}
        _print_json(facts)
        return
    ranges = {name: f"{low:.4f}–{high:.4f}" for name, (low, high) in judgement.intervals.items()}
    rows = [(name, f"{value:.4f}", ranges.get(name, "")) for name, value in (judgement.scores | attacked).items()]
    _table("", ("score", "value", "95 % interval"), rows)
    if classes:
        cells = [(c.name, str(c.images), _figure(c.recall), _figure(c.precision), _figure(c.f1)) for c in judgement.classes]
        _table("", ("class", "images", "recall", "precision", "F1"), cells)
    if robustness:
        found = [(name, *(f"{value:.3f}" for value in values)) for name, values in robustness.accuracy.items()]
        _table("Accuracy by corruption and severity", ("corruption", "1", "2", "3", "4", "5"), found)
        print(f"mean corruption accuracy {robustness.mean:.3f} on {robustness.images} images, clean {robustness.clean:.3f}")


@app.command()
def compare(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`.")],
    weight: Annotated[
        list[str] | None,
        typer.Option(help="score=50, latency=1, size=1, training=1; those not named weigh nothing (repeatable)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """The trials of a run by accuracy, latency, size and training time at once; who is on the Pareto front."""
    from dataclasses import asdict

    from . import api
    from .evaluation.combined import read_weights

    found = api.compare(run, weights=read_weights(weight or ()))
    if json:
        _print_json([{**asdict(one), "trial": one.trial.id, "candidate": asdict(one.trial.candidate)} for one in found])
        return
    rows = [
        (
            one.trial.id,
            f"{one.trial.candidate.strategy} on {one.trial.candidate.backbone}",
            f"{one.combined:.3f}",
            "yes" if one.front else "",
            f"{one.standing.score:.3f}",
            f"{1000 * one.standing.latency:.3g}",
            f"{one.standing.size / 1e6:.1f}",
            f"{one.standing.training:.1f}",
        )
        for one in found
    ]
    _table("", ("trial", "candidate", "combined", "front", "accuracy", "ms an image", "MB", "training, s"), rows)


@federate_app.command("serve")
def federate_serve(
    images: Images,
    strategy: Annotated[str, typer.Option(help="Way of training: a strategy that needs clients.")],
    backbone: Annotated[str, typer.Option(help="Network to train; clients take it from their own zoo.")],
    clients: Annotated[int, typer.Option(min=2, help="Wait for so many, and train with them.")],
    address: Annotated[str, typer.Option(help="HOST:PORT to listen at.")] = "127.0.0.1:8080",
    out: Annotated[Path, typer.Option(help="Folder of the model. The same call goes on in it.")] = Path("runs/federated"),
    setting: Annotated[list[str] | None, typer.Option("--set", help="A hyperparameter, such as epochs=10 (repeatable).")] = None,
    tls: Annotated[Path | None, typer.Option(help="Folder with ca.pem, server.pem and server.key: encrypt.")] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Train with clients that join. IMAGES judge the model; their training images are public."""
    from dataclasses import asdict

    from . import remote

    served = remote.serve(
        _location(images),
        strategy=strategy,
        backbone=backbone,
        clients=clients,
        address=address,
        out=out,
        hyperparameters=_settings(setting or ()),
        tls=tls,
        seed=seed,
    )
    if json:
        _print_json(asdict(served) | {"folder": str(served.folder)})
        return
    rows = list(zip(map(str, range(1, len(served.scores) + 1)), map(_figure, served.scores), served.notes, strict=True))
    _table("Rounds", ("round", "validation accuracy", ""), rows)
    print(f"Model: {served.folder}")


@federate_app.command("join")
def federate_join(
    address: Annotated[str, typer.Argument(help="HOST:PORT of the server.")],
    images: Images,
    strategy: Annotated[str, typer.Option(help="The way of training that you agree to; another is refused.")],
    epsilon: Annotated[float | None, typer.Option(help="The most privacy that may be spent on your images.")] = None,
    public: Annotated[str | None, typer.Option(help="The server's public images, where the strategy speaks about them.")] = None,
    authority: Annotated[Path | None, typer.Option(help="Certificate (PEM) that the server's must be signed by.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for left.jsonl, the record of what left.")] = Path("runs/joined"),
) -> None:
    """Take part with IMAGES, which do not leave. left.jsonl lists what does."""
    from . import remote

    record = remote.join(
        address, _location(images), strategy=strategy, out=out, epsilon=epsilon, public=public, authority=authority
    )
    print(f"Done. What left: {record}")


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """ "epochs=10" as a name and a value."""
    import json

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, such as epochs=10, but got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@study_app.command("data")
def study_data(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder of the study. The same call goes on in it.")] = Path("runs/study"),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with a choice of images of its own.")] = 3,
    strategy: Annotated[str | None, typer.Option(help="Way of transfer to study; the advice's first where not given.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Network to study; the advice's first where not given.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train every run for so many epochs.")] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """The score at 5, 10, 25, 50 and 100 % of the data, transferred against from scratch; the data that transfer saves."""
    from . import study

    with _progress(json) as progress:
        found = study.study_data(
            _location(images),
            out=out,
            seeds=seeds,
            strategy=strategy,
            backbone=backbone,
            epochs=epochs,
            seed=seed,
            progress=progress,
        )
    if json:
        _print_json(study.facts_of(found))
        return
    rows = [(f"{share:.0%}", str(count), *(_figure(score) for score in means)) for share, count, means in study.means_of(found)]
    _table("Test accuracy, mean of the seeds", ("data", "training images", "transferred", "from scratch"), rows)
    print(study.saving_in_words(found))
    print(f"Page: {out / 'study.html'}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`.")],
    to: Annotated[str, typer.Option(help="timm, onnx, torch (torch.export) or hub.")],
    out: Annotated[str | None, typer.Option(help="Folder (default: RUN/exports/FORM), or OWNER/NAME on the hub.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make and check all of it, but keep and send nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Bring the winner of a run into a form that other programs use; `predict` takes it, too."""
    from dataclasses import asdict

    from . import api

    exported = api.export(run, to=to, out=out, dry_run=dry_run)
    if json:
        _print_json(asdict(exported))
        return
    verb = ("sent to" if to == "hub" else "written to") if exported.written else "nothing kept or sent; would go to"
    print(f"{verb} {exported.where}:")
    _table("", ("file", "bytes"), [(name, f"{size:,}") for name, size in exported.files.items()])
    print(f"Largest difference of a probability from the run's network: {exported.largest_difference:.2g}")


@app.command("unfreeze-study")
def unfreeze_study(
    images: Images,
    backbone: Annotated[str | None, typer.Option(help="Of the zoos at hand; else the one that is recommended first.")] = None,
    zoo: ZooName = None,
    source: Annotated[
        str | None, typer.Option(help="Images that the backbone was pretrained on, to see what it forgets of them.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=2, help="Of each depth.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the page, the picture (SVG) and the figures (JSON).")] = Path(
        "runs/unfreezing"
    ),
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """How many layers to unfreeze: accuracy, forgetting and cost of every depth, drawn."""
    from dataclasses import asdict

    from . import api
    from .report.unfreezing import conclusion, report_study

    with _progress(json) as progress:
        where = None if source is None else _location(source)
        study = api.study_unfreezing(
            _location(images), backbone=backbone, zoo=zoo, source=where, epochs=epochs, seed=seed, progress=progress
        )
    page = report_study(study, out)
    if json:
        _print_json({**asdict(study), "enough": study.enough, "page": str(page)})
        return
    rows = [
        (
            str(depth.groups),
            f"{depth.parameters:,}",
            f"{depth.score:.3f}",
            _figure(depth.changed),
            _figure(depth.drift),
            f"{depth.seconds:.1f}",
        )
        for depth in study.depths
    ]
    _table("", ("groups", "parameters", "accuracy", "source head changed", "drift", "seconds"), rows)
    print(conclusion(study))
    print(f"Report: {page}")


@history_app.command("list")
def history_list(
    limit: Annotated[int, typer.Option(min=1, help="How many trials, newest first.")] = 20,
    task: Annotated[str | None, typer.Option(help="Only trials of this task (name or fingerprint).")] = None,
    json: AsJson = False,
) -> None:
    """Trials in the history."""
    from dataclasses import asdict

    from .history import open_history

    with open_history() as history:
        tasks = history.tasks()
        fingerprints = [key for key, facts in tasks.items() if task in (None, key, facts.name)]
        found = history.trials(limit=limit) if task is None else [t for key in fingerprints for t in history.trials(task=key)]
        summary = history.summary()
    if json:
        _print_json([asdict(trial) for trial in found[:limit]])
        return
    rows = [
        (
            trial.id,
            tasks[trial.task].name,
            trial.candidate.backbone,
            trial.candidate.strategy,
            trial.status,
            f"{trial.validation['accuracy']:.3f}" if trial.validation else "",
            f"{trial.seconds:.1f}",
        )
        for trial in found[:limit]
    ]
    _table("", ("trial", "task", "backbone", "strategy", "status", "accuracy", "seconds"), rows)
    print(", ".join(f"{name}: {count}" for name, count in summary.items() if not isinstance(count, dict)))


@history_app.command("show")
def history_show(id: Annotated[str, typer.Argument(help="Trial, as `history list` names it.")]) -> None:
    """One trial in full, as JSON, with what else came of the same work elsewhere."""
    from dataclasses import asdict

    from .history import open_history

    with open_history() as history:
        others = [asdict(other) for other in history.other_results(id)]
        _print_json(asdict(history.trial(id)) | ({"other_results": others} if others else {}))


Names = Annotated[
    bool, typer.Option("--names", help="Also names of tasks and their sources, notes, texts of errors: may tell of your data.")
]


@history_app.command("export")
def history_export(
    folder: Annotated[Path, typer.Argument(help="Written as text, in the form of metadb/.")], names: Names = False
) -> None:
    """Write the history as text: numbers, no image, no name of a file or a class."""
    from .history import open_history

    with open_history() as history:
        _print_counts("exported", history.export(folder, names=names))


@history_app.command("import")
def history_import(folder: Annotated[Path, typer.Argument(help="A folder that `history export` wrote.")]) -> None:
    """Add exported facts; all of them or, if a line is wrong, none."""
    from .history import open_history

    with open_history() as history:
        _print_counts("imported", history.import_facts(folder))


@history_app.command("merge")
def history_merge(source: Annotated[Path, typer.Argument(help="Another history.db, or an exported folder.")]) -> None:
    """Add what another history knows; again, it changes nothing. Other results of a trial are kept beside the known one."""
    from .history import open_history

    with open_history() as history:
        _print_counts("merged", history.merge(source))


@history_app.command("push")
def history_push(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME of a dataset on the hub; made, private, if there is none.")],
    names: Names = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List exactly what would leave this machine; send nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Add this history to a repository of the hub."""
    from dataclasses import asdict

    from . import sharing
    from .history import open_history

    with open_history() as history:
        if dry_run:
            found = sharing.leaving(history, names=names)
            _print_json(asdict(found)) if json else _print_leaving(found)
            return
        counts = sharing.push(history, repository, names=names)
    _print_json(counts) if json else _print_counts("pushed", counts)


@history_app.command("pull")
def history_pull(repository: Annotated[str, typer.Argument(help="OWNER/NAME of a dataset on the hub.")]) -> None:
    """Add what a repository of the hub holds."""
    from . import sharing
    from .history import open_history

    with open_history() as history:
        _print_counts("pulled", sharing.pull(history, repository))


@history_app.command("build")
def history_build(
    plan: Annotated[Path, typer.Argument(help="What to run, as JSON; see metadb/plan.json.")],
    data: Annotated[Path, typer.Option(help="Folder that the plan's locations are in.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="At most so many, each on one thread; 2 processes, or all that --ray has.")
    ] = None,
    ray: RayAddress = None,
) -> None:
    """Fill the history: run what a plan asks for and the history lacks."""
    from .campaign import build_history, read_plan
    from .history import open_history

    options = {"--workers": workers, "--ray": ray}
    given = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    with open_history() as history:
        command = f"automl-tl history build {plan.name}{given}"
        count = build_history(read_plan(plan), data, history, workers=workers, ray=ray, say=_say, command=command)
    print(f"{count} trials added")


@zoo_app.command("list")
def zoo_list(
    zoo: ZooName = None,
    max_params: MaxParams = None,
    licence: Licences = None,
    source: SourceName = None,
    domain: Domain = None,
    json: AsJson = False,
) -> None:
    """The pretrained networks at hand; --zoo timm lists all of timm's, too."""
    from dataclasses import asdict

    from .backbones import catalogue, narrowed

    found = narrowed(catalogue(zoo=zoo), _wanted(max_params, licence, source, domain))
    if json:
        _print_json([asdict(backbone) for backbone in found.values()])
        return
    rows = [
        (b.name, b.zoo, b.source_dataset, f"{b.input_size}", f"{b.params / 1e6:.2f}", f"{b.macs / 1e6:.0f}", b.licence)
        for b in found.values()
    ]
    _table("", ("backbone", "zoo", "source", "pixels", "M params", "M multiply-adds", "licence"), rows)


@zoo_app.command("search")
def zoo_search(
    words: Annotated[str, typer.Argument(help="Looked for in the names on the hub; may be empty.")] = "",
    max_params: MaxParams = None,
    licence: Licences = None,
    source: SourceName = None,
    domain: Domain = None,
    limit: Annotated[int, typer.Option(min=1, help="Ask for so many, the most downloaded first, before they are narrowed.")] = 50,
    json: AsJson = False,
) -> None:
    """Look for networks on the hub; `zoo add NAME` makes one of them known."""
    from dataclasses import asdict

    from .backbones import search

    found = search(words, _wanted(max_params, licence, source, domain), limit=limit)
    if json:
        _print_json([asdict(offer) for offer in found])
        return
    rows = [
        (
            o.name,
            o.source_dataset,
            o.source_domain,
            "" if o.params is None else f"{o.params / 1e6:.2f}",
            o.licence,
            f"{o.downloads or 0}",
        )
        for o in found
    ]
    _table("", ("backbone", "source", "domain", "M params", "licence", "downloads"), rows)


@zoo_app.command("show")
def zoo_show(name: str, zoo: ZooName = None) -> None:
    """All that is known of one network, as JSON."""
    from dataclasses import asdict

    from .backbones import catalogue
    from .registry import lookup

    _print_json(asdict(lookup("backbone", name, catalogue(zoo=zoo))))


@zoo_app.command("add")
def zoo_add(
    what: Annotated[
        str, typer.Argument(help="A folder of cards (JSON) with their safetensors, or hf-hub:OWNER/NAME[@REVISION].")
    ],
) -> None:
    """Add a folder of networks, which stays where it is, or one network of the hub."""
    from .backbones import add
    from .cards import add_folder

    network = add(what)
    if network is not None:
        print(f"added {network.name}")
        return
    added = add_folder(Path(what))
    for name in added.names:
        print(f"added {name}")
    for name, reason in added.skipped.items():
        print(f"left out {name}: {reason}", file=sys.stderr)


@zoo_app.command("pretrain")
def zoo_pretrain(
    recipe: Annotated[Path, typer.Argument(help="A recipe (JSON).")],
    out: Annotated[Path, typer.Option(help="Folder for the card and the safetensors file.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The source's images: train/CLASS/FILE and test/CLASS/FILE. Not for images made by formula."),
    ] = None,
) -> None:
    """Train a network of the embedded zoo anew, from its recipe."""
    from .pretraining import pretrain_recipe

    print(pretrain_recipe(recipe, data, out, say=_say))


@zoo_app.command("describe")
def zoo_describe(
    images: Images,
    name: Annotated[str, typer.Option(help="Name of the source dataset, as the cards of its networks have it.")],
    encoder: Annotated[str, typer.Option(help="The reference encoder: a backbone whose features distances are taken on.")],
    out: Annotated[Path, typer.Option(help="Folder of a zoo, for NAME.source.safetensors.")],
) -> None:
    """Keep statistics of a source's images, so that tasks can be measured against it without the images."""
    from .api import load_task
    from .backbones import catalogue
    from .profiling import describe_source
    from .registry import lookup
    from .sources import write_source

    task = load_task(_location(images), name=name, validation=0.0)
    print(write_source(out, name, encoder, describe_source(task, lookup("backbone", encoder, catalogue()))))


@plugins_app.command("list")
def plugins_list(json: AsJson = False) -> None:
    """Every plugin, with its origin and what it brings."""
    from dataclasses import asdict

    from .registry import plugins

    if json:
        _print_json([asdict(plugin) for plugin in plugins()])
        return
    rows = [(p.name, f"{p.distribution} {p.version}", ", ".join(p.hooks) or f"failed: {p.error}") for p in plugins()]
    _table("", ("plugin", "distribution", "hooks"), rows)


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Of the strategy: lower-case words joined by hyphens.")],
    out: Annotated[Path, typer.Option(help="Folder that the package's folder is made in.")] = Path("."),
) -> None:
    """Write an installable package with a working strategy and its test."""
    from .scaffold import write_plugin

    folder = write_plugin(name, out)
    print(f"{folder}: a package with a strategy that works; next:")
    print(f"  pip install -e {folder}")
    print(f"  pytest {folder}")
    print(f"  automl-tl recommend digits --strategy {name}")


def _location(text: str) -> Any:
    """Paths as paths; names that a reader knows ("digits", "hf:…", "formula:…") as they are."""
    return text if text == "digits" or text.startswith(("hf:", "formula:")) else Path(text)


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
    from .along import Along, fraction

    several: int | tuple[Any, ...] = tuple(map(_location, clients or ()))
    if clients and len(clients) == 1 and clients[0].isdecimal():
        several = int(clients[0])
    return Along(
        source=None if source is None else _location(source),
        after=after,
        keep=None if keep is None else _location(keep),
        clients=several,
        skew=skew,
        robust=0.0 if robust is None else fraction(robust, "--robust"),
        shots=shots,
    )


def _wanted(max_params: str | None, licences: list[str] | None, source: str | None, domain: str | None) -> Wanted:
    from .backbones import Wanted, parse_count

    return Wanted(None if max_params is None else parse_count(max_params), licences or (), source, domain)


def _say(text: str) -> None:
    print(text, flush=True)


def _print_json(facts: Any) -> None:
    import json

    print(json.dumps(facts, indent=1, default=str))


def _print_counts(verb: str, counts: dict[str, int]) -> None:
    print(f"{verb} " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def _print_leaving(found: Leaving) -> None:
    rows = [(name, f"{found.facts[name]}", f"{found.size[name]}", found.sha256[name][:16]) for name in found.facts]
    _table("Files that would leave", ("file", "facts", "bytes", "sha256"), rows)
    texts = [(field, f"{len(values)}", _shortened(", ".join(values))) for field, values in found.texts.items()]
    _table("Texts in them (--json: all); the rest is numbers", ("field", "different", "texts"), texts)


def _shortened(text: str, most: int = 90) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


class _progress:
    """A bar for each step that takes time; silent for programs."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent

    def __enter__(self) -> Progress | None:
        if self.silent or not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import Progress as Bars

        self.bars = Bars(console=Console(stderr=True), transient=True)
        self.known: dict[str, Any] = {}
        return self._step

    def _step(self, what: str, done: int, total: int) -> None:
        if what not in self.known:
            self.bars.start()
            self.known[what] = self.bars.add_task(what, total=total)
        self.bars.update(self.known[what], completed=done)
        if all(task.finished for task in self.bars.tasks):
            self.bars.stop()

    def __exit__(self, *_: object) -> None:
        if not self.silent and hasattr(self, "bars"):
            self.bars.stop()


def _tell(task: Task, advice: Advice, *, zoo: str | None) -> None:
    if zoo is None and not task.earlier:
        _print_on_request()
    _print_profile(task, advice.profile)
    _print_ranking(advice.ranking, 5)


def _print_on_request() -> None:
    from statistics import median

    from .api import LOOKED_AT
    from .backbones import on_request

    for name, more in on_request().items():
        if more:
            size = median(backbone.download_bytes for backbone in more) / 1e6
            print(
                f"note: --zoo {name} would add {len(more)} networks to the choice and download the {LOOKED_AT} "
                f"that look best ({size:.0f} MB each in the median)"
            )


def _print_profile(task: Task, profile: Profile) -> None:
    usual = ("train", "validation", "test")
    splits = [*usual, *(split for split in task.splits if split not in usual)]
    parts = ", ".join(f"{len(task.part(split))} {split}" for split in splits)
    print(f"{task.name}: {len(task.labels)} images of {len(task.classes)} classes ({parts})")
    for warning in profile.warnings:
        print(f"note: {warning}")
    gaps = {name.removeprefix("gap_"): value for name, value in profile.meta.items() if name.startswith("gap_")}
    if gaps:
        print("Gap of the two domains: " + ", ".join(f"{name} {value:.4g}" for name, value in gaps.items()))
    if profile.distances:
        names = sorted({name for scores in profile.distances.values() for name in scores})
        order = sorted(profile.distances, key=lambda source: profile.distances[source].get("frechet", float("inf")))
        rows = [(source, *(_figure(profile.distances[source].get(name)) for name in names)) for source in order]
        _table("Distance to the sources (smaller is closer)", ("source", *names), rows)
    if profile.transferability:
        names = sorted({name for scores in profile.transferability.values() for name in scores})
        rows = [(b, *(_figure(scores.get(name)) for name in names)) for b, scores in profile.transferability.items()]
        _table("Transferability (larger is better)", ("backbone", *names), rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _print_ranking(ranking: Ranking, top: int) -> None:
    print(f"Advice from {ranking.basis}:")
    rows = [
        (
            str(place),
            item.candidate.backbone,
            item.candidate.strategy,
            _hyperparameters(item.candidate.hyperparameters),
            _expected(item),
            f"{item.seconds:.0f} s",
        )
        for place, item in enumerate(ranking.items[:top], 1)
    ]
    _table("", ("", "backbone", "strategy", "hyperparameters", "expected accuracy", "time"), rows)
    for place, item in enumerate(ranking.items[:EXPLAINED], 1):
        if item.reasons:
            print(f"Why {place}: {'; '.join(item.reasons)}")


def _expected(item: Ranked) -> str:
    """Nothing where the interval says nothing: without a history there is an order, but no accuracy."""
    return "" if (item.low, item.high) == (0.0, 1.0) else f"{item.score:.3f} ({item.low:.2f}–{item.high:.2f})"


def _hyperparameters(values: Any) -> str:
    """Without those that are off (0 or False): most are, and --json gives all."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items() if value}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _outcome_facts(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    winner = asdict(outcome.winner)
    return {
        "winner": winner,
        "trials": [asdict(trial) for trial in outcome.trials],
        "seconds": outcome.seconds,
        "rule": outcome.rule,
        "folder": str(outcome.folder),
        "report": str(outcome.folder / "report.html"),
        "basis": outcome.ranking.basis,
        "remembered": dict(outcome.remembered),
    }


def _print_outcome(outcome: Outcome) -> None:
    winner = outcome.winner
    tested = f", test {winner.test['accuracy']:.3f}" if winner.test else ", no test images"
    print(f"Winner: {winner.candidate.strategy} on {winner.candidate.backbone}")
    print(f"Accuracy: validation {winner.validation['accuracy']:.3f}{tested}")
    if "kept" in (scores := winner.test or winner.validation):
        _print_retention(scores, "test" if winner.test else "validation")
    done = sum(trial.status == "finished" for trial in outcome.trials)
    print(f"{done} trials finished, {len(outcome.trials) - done} stopped or failed, in {outcome.seconds:.0f} s")
    print(f"Model:  {outcome.folder / 'model'}")
    print(f"Report: {outcome.folder / 'report.html'}")
    for kind, size in outcome.remembered.items():
        print(f"Remembered: {kind}, {size:,} bytes" + (": images of yours, which go with the model" * (kind == "exemplars")))


def _print_retention(scores: Mapping[str, float], split: str) -> None:
    """Accuracy on what was known before and on what is new."""
    before = f" ({scores['kept_before']:.3f} before)" if "kept_before" in scores else ""
    told = f"; told which of the two: {scores['kept_told']:.3f} and {scores['new_told']:.3f}" if "kept_told" in scores else ""
    print(f"Old classes: {split} {scores['kept']:.3f}{before}, new classes: {scores['new']:.3f}{told}")


if __name__ == "__main__":
    main()
