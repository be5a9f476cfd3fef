"""What a run of `fit` is good for: `predict`, `evaluate`, `compare` and `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import figure, print_json, print_table
from .options import AsJson, Images, location


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`, or what `export` wrote.")],
    images: Annotated[Path, typer.Argument(help="A folder of images (labels are not needed), or one image.")],
    out: Annotated[Path | None, typer.Option(help="Write a CSV: path, label, confidence, and one column for each class.")] = None,
    json: AsJson = False,
) -> None:
    """Classify new images with the winner of a run."""
    from automl_tl import api

    if out is not None:
        api.check_file(out)
    predictions = api.predict(run, images)
    if out is not None:
        api.write_predictions(predictions, out)
    if json:
        print_json(
            [
                {"path": where, "label": label, "confidence": float(row.max())}
                for where, label, row in zip(predictions.where, predictions.labels, predictions.probabilities, strict=True)
            ]
        )
    elif out is not None:
        print(f"{len(predictions.where)} predictions written to {out}")
    else:
        rows = zip(predictions.where, predictions.labels, predictions.probabilities, strict=True)
        print_table("", ("image", "class", "confidence"), [(where, label, f"{row.max():.3f}") for where, label, row in rows])


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`, or what `export` wrote.")],
    images: Images,
    classes: Annotated[bool, typer.Option("--classes", help="Also a row for each class.")] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also how often predictions of each confidence are right.")
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Also latency, throughput, memory and energy on this machine.")] = False,
    corruptions: Annotated[bool, typer.Option("--corruptions", help="Also accuracy on noisy, blurred, foggy … copies.")] = False,
    robust: Annotated[
        str | None, typer.Option(help="Also attack: every pixel may change by up to this, such as 8/255 (takes minutes).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Decides how the copies are made noisy, blurred, foggy …")] = 0,
    json: AsJson = False,
) -> None:
    """Judge a model on labelled images that it has not seen: the test split or, if there is none, all of them."""
    from automl_tl import api
    from automl_tl.along import fraction
    from automl_tl.errors import InputError
    from automl_tl.exports.predictor import is_export

    epsilon = None if robust is None else fraction(robust, "--robust")
    if (cost or epsilon is not None) and is_export(run):
        raise InputError("--cost and --robust need the run itself, not an export")
    judgement = api.judge_model(run, location(images))
    robustness = api.judge_corrupted(judgement, seed=seed) if corruptions else None
    used = api.judge_cost(run) if cost else None
    attacked = api.judge_attacked(run, judgement, epsilon) if epsilon is not None else {}
    if json:
        facts: dict[str, Any] = {"images": len(judgement.labels), "split": judgement.split}
        facts |= {**judgement.scores, **attacked, "intervals": judgement.intervals}
        facts |= {"domains": [asdict(one) for one in judgement.domains]} if judgement.domains else {}
        facts |= {"classes": [asdict(row) for row in judgement.classes]} if classes else {}
        facts |= {"reliability": [asdict(one) for one in judgement.reliability]} if calibration else {}
        facts |= {"cost": {**asdict(used[0]), "disk_bytes": used[1]}} if used else {}
        facts |= {"corruptions": {**asdict(robustness), "mean": robustness.mean}} if robustness else {}
        print_json(facts)
        return
    ranges = {name: f"{low:.4f}–{high:.4f}" for name, (low, high) in judgement.intervals.items()}
    rows = [(name, f"{value:.4f}", ranges.get(name, "")) for name, value in (judgement.scores | attacked).items()]
    which = "test split" if judgement.split == "test" else "no test split: all of them"
    print(f"{len(judgement.labels)} images ({which})")
    print_table("", ("score", "value", "95 % interval"), rows)
    if judgement.domains:
        cells = [(one.name or "none", str(one.images), f"{one.accuracy:.4f}") for one in judgement.domains]
        print_table("", ("domain", "images", "accuracy"), cells)
    if classes:
        found = [(c.name, str(c.images), figure(c.recall), figure(c.precision), figure(c.f1)) for c in judgement.classes]
        print_table("", ("class", "images", "recall", "precision", "F1"), found)
    if calibration:
        bins = [
            (f"{b.low:.2f}–{b.high:.2f}", str(b.count), f"{b.confidence:.3f}", f"{b.accuracy:.3f}") for b in judgement.reliability
        ]
        print_table("", ("confidence", "images", "mean confidence", "right"), bins)
    if used:
        print_table("", ("cost of use", ""), used[0].in_words(used[1]))
    if robustness:
        steps = [(name, *(f"{value:.3f}" for value in values)) for name, values in robustness.accuracy.items()]
        print_table("Accuracy by corruption and severity", ("corruption", "1", "2", "3", "4", "5"), steps)
        print(f"mean corruption accuracy {robustness.mean:.3f} on {robustness.images} images, clean {robustness.clean:.3f}")


def compare(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`.")],
    weight: Annotated[
        list[str] | None,
        typer.Option(help="score=50, latency=1, size=1, training=1; those not named stay as they are (repeatable)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare a run's trials by accuracy, latency, size and training time, and show which are on the Pareto front."""
    from automl_tl import api
    from automl_tl.comparison import measure_of
    from automl_tl.evaluation.combined import read_weights

    found = api.compare(run, weights=read_weights(weight or ()))
    if json:
        print_json([{**asdict(one), "trial": one.trial.id, "candidate": asdict(one.trial.candidate)} for one in found])
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
    measure = measure_of([one.trial for one in found])
    print_table("", ("trial", "candidate", "combined", "front", measure, "ms an image", "MB", "training, s"), rows)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fit`.")],
    to: Annotated[str, typer.Option(help="timm, onnx, torch (torch.export) or hub.")],
    out: Annotated[str | None, typer.Option(help="Folder (default: RUN/exports/FORM), or OWNER/NAME on the hub.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make and check everything, but keep and send nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Convert the winner of a run into a form that other programs use; `predict` accepts it, too."""
    from automl_tl import api

    exported = api.export(run, to=to, out=out, dry_run=dry_run)
    if json:
        print_json(asdict(exported))
        return
    verb = ("sent to" if to == "hub" else "written to") if exported.written else "nothing kept or sent; would go to"
    print(f"{verb} {exported.where}:")
    print_table("", ("file", "bytes"), [(name, f"{size:,}") for name, size in exported.files.items()])
    print(f"Largest difference of a probability from the run's network: {exported.largest_difference:.2g}")
