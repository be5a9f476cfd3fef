"""`kill -9` at random moments of `fit`, `history build`, `history import`, `history merge` and `serve`: is anything lost?

How a command is killed and what is asked after each kill is in `_kills.py`. Each `_faults_COMMAND.py` has `prepare(folder)`,
which gives what lays out a new run: its line, what it is for, and what must be as in a run that was left alone. After each kill
the database must pass SQLite's `PRAGMA integrity_check`, and every trial that could be read in it at any time before must still
be there with no point of its curve missing; an import or a merge is there whole or not at all; jobs and results that a client
was told of are there. The next start goes on, and what came of a run in the end is compared with that of a run that was left
alone: predictions, trials and their curves, facts, results of jobs. Exit code 1 where anything was wrong.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

from _kills import Tally, kill
from _report import arguments, merge, table

COMMANDS = ("fit", "build", "import", "merge", "serve")
WRONG = ("lost_trials", "corrupt_databases", "lost_jobs", "half_taken", "different_ends", "left_running")
"""What must not be."""


def figures(tallies: dict[str, Tally]) -> dict[str, float]:
    """Flat, by name."""
    counted: dict[str, float] = {"kills": sum(tally.kills for tally in tallies.values())}
    for name, tally in tallies.items():
        counted |= {f"kills_{name}": tally.kills, f"kills_{name}_begun": tally.begun}
    counted |= {name: sum(tally.found[name] for tally in tallies.values()) for name in WRONG}
    counted["ends_compared"] = sum(tally.ends for tally in tallies.values())
    counted["late_kills"] = sum(tally.late for tally in tallies.values())
    counted["partial_files"] = sum(tally.partials for tally in tallies.values())
    return counted


def failed(tallies: dict[str, Tally]) -> bool:
    """Whether anything was wrong, or nothing was there to go wrong."""
    return any(tally.found.total() or not tally.begun or not tally.ends for tally in tallies.values())


def main() -> None:
    parser = arguments(__doc__, "two kills of each command instead of twenty")
    parser.add_argument("--only", action="append", choices=COMMANDS, help="this command (repeatable); not with --json")
    options = parser.parse_args()
    if options.only and options.json:
        parser.error("--json is for the figures of all commands together")
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for command in options.only or COMMANDS:
            begin = import_module(f"_faults_{command}").prepare(scratch)
            tallies[command] = kill(command, begin, scratch / command, 2 if options.quick else 20)
    rows = [
        (name, tally.seconds, tally.kills, tally.begun, tally.late, tally.ends, tally.partials, tally.found.total())
        for name, tally in tallies.items()
    ]
    columns = ("", "computes, s", "kills", "past start-up", "too late", "ends", "partial files", "wrong")
    table("kill -9", columns, rows)
    found = figures(tallies)
    print(", ".join(f"{name}: {found[name]}" for name in WRONG))
    merge(options.json, "faults", found)
    if failed(tallies):
        raise SystemExit("something was lost, or nothing was there to lose")


if __name__ == "__main__":
    main()
