"""The task history: `history …`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_json, print_table, say
from .options import AsJson, RayAddress

if TYPE_CHECKING:
    from automl_tl.sharing import Leaving

group = typer.Typer(help="The task-history database: what was tried, and how it went.", no_args_is_help=True)

Names = Annotated[
    bool,
    typer.Option(
        "--names", help="Also names of tasks and their sources, notes, error messages: may reveal something about your data."
    ),
]


@group.command("list")
def history_list(
    limit: Annotated[int, typer.Option(min=1, help="How many trials, newest first.")] = 20,
    task: Annotated[str | None, typer.Option(help="Only trials of this task (name or fingerprint).")] = None,
    json: AsJson = False,
) -> None:
    """Trials in the history."""
    from automl_tl.history import open_history

    with open_history() as history:
        tasks = history.tasks()
        _, found = history.find(task=task, limit=limit)
        summary = history.summary()
    if json:
        print_json([asdict(trial) for trial in found])
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
        for trial in found
    ]
    print_table("", ("trial", "task", "backbone", "strategy", "status", "accuracy", "seconds"), rows)
    print(", ".join(f"{name}: {count}" for name, count in summary.items()))


@group.command("show")
def history_show(
    id: Annotated[str, typer.Argument(help="Id of the trial, from `history list`, or the beginning of it.")],
) -> None:
    """One trial in full, as JSON, with how fast it learnt and other results of the same trial."""
    from automl_tl.errors import HistoryError
    from automl_tl.evaluation.adaptation import adaptation
    from automl_tl.history import open_history

    with open_history() as history:
        alike = [known for known in history.known() if known.startswith(id)]
        if len(alike) > 1 and id not in alike:
            raise HistoryError(f"{len(alike)} trials in the history begin with {id!r}; give more of the id")
        trial = history.trial(alike[0] if len(alike) == 1 else id)
        others = [asdict(other) for other in history.other_results(trial.id)]
    speed = adaptation(trial.curve)
    shown = asdict(trial) | ({"adaptation": asdict(speed)} if speed else {})
    print_json(shown | ({"other_results": others} if others else {}))


@group.command("export")
def history_export(
    folder: Annotated[Path, typer.Argument(help="Written as text, in the form of metadb/.")], names: Names = False
) -> None:
    """Write the history as text: numbers, no image, no name of a file or a class."""
    from automl_tl.history import open_history

    with open_history() as history:
        _print_counts("exported", history.export(folder, names=names))


@group.command("import")
def history_import(folder: Annotated[Path, typer.Argument(help="A folder that `history export` wrote.")]) -> None:
    """Add exported facts; all of them or, if a line is wrong, none."""
    from automl_tl.history import open_history

    with open_history() as history:
        _print_counts("imported", history.import_facts(folder))


@group.command("merge")
def history_merge(source: Annotated[Path, typer.Argument(help="Another history.db, or an exported folder.")]) -> None:
    """Add the facts of another history; doing so twice changes nothing. Other results of a known trial are kept beside it."""
    from automl_tl.history import open_history

    with open_history() as history:
        _print_counts("merged", history.merge(source))


@group.command("push")
def history_push(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME of a dataset on the hub; created as private if there is none.")],
    names: Names = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List exactly what would leave this machine; send nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Add this history to a repository of the hub."""
    from automl_tl import sharing
    from automl_tl.history import open_history

    with open_history() as history:
        if dry_run:
            found = sharing.leaving(history, names=names)
            print_json(asdict(found)) if json else _print_leaving(found)
            return
        counts = sharing.push(history, repository, names=names)
    print_json(counts) if json else _print_counts("pushed", counts)


@group.command("pull")
def history_pull(repository: Annotated[str, typer.Argument(help="OWNER/NAME of a dataset on the hub.")]) -> None:
    """Add what a repository of the hub holds."""
    from automl_tl import sharing
    from automl_tl.history import open_history

    with open_history() as history:
        _print_counts("pulled", sharing.pull(history, repository))


@group.command("build")
def history_build(
    plan: Annotated[Path, typer.Argument(help="What to run, as JSON; see metadb/plan.json.")],
    data: Annotated[Path, typer.Option(help="Folder that contains the plan's image sets.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="At most this many, each on one thread; by default 2 processes, or all that --ray has."),
    ] = None,
    ray: RayAddress = None,
) -> None:
    """Fill the history: run what a plan asks for and the history lacks."""
    from automl_tl.campaign import build_history, read_plan
    from automl_tl.history import open_history

    options = {"--workers": workers, "--ray": ray}
    given = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    with open_history() as history:
        command = f"automl-tl history build {plan.name}{given}"
        count = build_history(read_plan(plan), data, history, workers=workers, ray=ray, say=say, command=command)
    print(f"{count} trials added")


def _print_counts(verb: str, counts: dict[str, int]) -> None:
    print(f"{verb} " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def _print_leaving(found: Leaving) -> None:
    rows = [(name, f"{found.facts[name]}", f"{found.size[name]}", found.sha256[name][:16]) for name in found.facts]
    print_table("Files that would leave", ("file", "facts", "bytes", "sha256"), rows)
    texts = [(field, f"{len(values)}", _shortened(", ".join(values))) for field, values in found.texts.items()]
    print_table("Texts in them (--json: all); the rest is numbers", ("field", "different", "texts"), texts)
    if found.left_out:
        counts = ", ".join(f"{count} {name}" for name, count in found.left_out.items())
        print(f"{counts}: these networks may be your own, and stay here with their trials (--names sends them, too)")


def _shortened(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:89]}…"
