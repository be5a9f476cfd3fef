"""The command line: each verb is one call of the API, then a table or JSON. `--help` lists them in the order they have here."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from automl_tl.errors import AutomlError, InputWarning, TrialWarning, no_room

from . import federate, history, plugins, study, zoo
from .runs import compare, evaluate, export, predict
from .serving import serve
from .study import unfreeze_study
from .training import fit, profile, recommend

RESUMED = (("fit",), ("history", "build"), ("study", "data"), ("zoo", "pretrain"), ("federate", "serve"), ("federate", "join"))
"""Commands that keep what they have done; all others begin anew."""

app = typer.Typer(
    help="Which pretrained backbone, which transfer strategy, which hyperparameters: answered from experience.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (fit, recommend, profile, predict, serve, evaluate, compare, export, unfreeze_study):
    app.command()(command)
app.add_typer(history.group, name="history")
app.add_typer(zoo.group, name="zoo")
app.add_typer(plugins.group, name="plugins")
app.add_typer(study.group, name="study")
app.add_typer(federate.group, name="federate")


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"automl_tl {version('automl_tl')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 our fault, 2 wrong use, bad input or a full disk, 130 interrupted, 141 nobody
    reads what it prints any more."""
    from automl_tl.registry import PluginWarning

    _print_anything()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if not os.environ.get("AUTOML_TL_DEBUG"):
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", category=PluginWarning)
        for shown in (TrialWarning, InputWarning):
            warnings.filterwarnings("always", category=shown)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # now, while what comes of it can be told
    except AutomlError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes the one the other
        if isinstance(end, SystemExit) and isinstance(end.__context__, BrokenPipeError):  # typer makes that 1
            _end_unread()
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        _fail("interrupted; the same command goes on where it stopped" if _goes_on(sys.argv[1:]) else "interrupted", 130)
    except BrokenPipeError:
        _end_unread()
    except Exception as error:  # our fault: say so in one line; the traceback is for those who ask
        if no_room(error):
            sys.stdout = io.StringIO()  # what could not be printed would be tried again at the end
            where = f" for {error.filename}" if error.filename else ""
            _fail(f"the disk is full: there was no room{where}; make some, and start the command again", 2)
        if os.environ.get("AUTOML_TL_DEBUG"):
            raise
        _fail(f"internal error: {type(error).__name__}: {error} (AUTOML_TL_DEBUG=1 shows where; please report it)", 1)


def _goes_on(typed: list[str]) -> bool:
    """Whether that command, typed again, goes on where it stopped. No group has options that could come between its words."""
    return any(tuple(typed[: len(words)]) == words for words in RESUMED)


def _print_anything() -> None:
    """What this terminal or file has no character for is escaped: a name or a dash must not end hours of work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a program has put something else in its place
            stream.reconfigure(errors="backslashreplace")


def _end_unread() -> NoReturn:
    """As a program ends that writes into a closed pipe (`| head -1`): without a word."""
    sys.stdout = io.StringIO()  # what was not written would be tried again at the end
    sys.exit(141)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
