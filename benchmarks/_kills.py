"""`kill -9` of a command at random moments, and what is asked after each: is the database sound, is anything missing?

A run is a folder in which a command is started again and again, each time killed at its moment, until a start ends by itself:
what came of the run is then compared with a run that was left alone, and the next begins anew. The moments are drawn from the
whole of the run that was left alone, one from each of as many equal parts of it as there are kills; a kill that comes too late
does not count, and its moment has its turn in a new run. A moment is a share of the seconds that the command and what it
started computed, so that it means the same on a machine that is busy and on one that is not. Half of the kills hit the command
alone, as that of a kernel without memory does, half its whole process group; what it had started must end with it either way.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from _kills_database import Trials, copied, note, read_live, trials, weakened, what_is_broken
from _kills_images import drawn

ALONE = 0.5
"""Share of the kills that hit the command and not what it started."""
WATCHED_EVERY = 0.25
"""Seconds between two looks into the database of a command that runs."""
MEASURED_EVERY = 0.15
"""Seconds between two looks at what it has computed; the kill comes at any moment between."""
ENDS_WITHIN = 60.0
"""Seconds for what a killed command had started."""
NETWORK = "resnet10t_24.omniglot_a_64"
"""The smallest that is embedded: all commands use it."""
HANGS_AFTER = 1800.0
"""Seconds after which a start that should end by itself never will."""
RUBBISH = b"half-written"
WHOLE = (".json", ".safetensors", ".npy", ".npz", ".html", ".txt")
"""Kinds of files that commands write beside their place, as NAME.partial or NAME.PROCESS.partial, and then rename."""


@dataclass(frozen=True)
class Run:
    """A folder for the starts of a command, and what is to be asked of it."""

    home: Path
    line: list[str]
    outcome: Callable[[Path], object]
    """What came of it in the end, of the database's copy and of the folder: the same as of a run that was left alone."""
    progress: Callable[[], object] | None = None
    """Changes when a start has got past its start-up and does what the command is for; None: when it has the database open."""
    wrong: Callable[[Path, object], Iterable[tuple[str, str]]] = lambda database, expected: ()
    """What is lost besides trials, as figure and words; of the database's copy after a kill and the outcome to come."""
    complete: Callable[[Path, object], bool] = lambda database, expected: False
    """Whether the next start is to be left alone: a kill came when all was done, or one more would be taken for the command's
    own doing."""
    attend: Callable[[subprocess.Popen[bytes]], object] = lambda process: process.wait()
    """What is done beside the command while it runs."""
    ends: tuple[int, ...] = (0,)
    """Exit codes of a command that ended by itself."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What was counted of one command."""

    seconds: float = 0.0
    """Of the run that was left alone, computing."""
    kills: int = 0
    """Those that found a start running."""
    begun: int = 0
    """Those that found it past its start-up."""
    late: int = 0
    """Those that came when a start had ended by itself; their moments are tried again."""
    ends: int = 0
    """Runs that were compared with the one that was left alone."""
    partials: int = 0
    """Half-written files that kills left."""
    found: Counter[str] = field(default_factory=Counter)
    """Figure → how often something was wrong."""


@dataclass(frozen=True)
class Ended:
    """How a start ended."""

    landed: bool
    """Whether a kill found it running."""
    computed: float
    """Seconds, with what it had started."""
    opened: bool
    """Whether it had the database open when it was killed."""
    left: list[str]
    """Processes that it had started and that outlived it."""


@dataclass
class Seen:
    """What could be read in the database of a run so far, while it ran and after each start."""

    trials: Trials = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """In words, what could be read before and then no more."""

    def look(self, now: Trials) -> None:
        self.lost += weakened(self.trials, now)
        note(self.trials, now)


def used_home(scratch: Path) -> Path:
    """A home as after some use: its history has the shipped facts, which a ranker has learnt. Runs get copies of it."""
    home = scratch / "home"
    if not home.exists():
        images = drawn(scratch / "few", 60)
        line = [sys.executable, "-m", "automl_tl.cli", "recommend", str(images), "--backbone", NETWORK, "--json"]
        environment = {**os.environ, "AUTOML_TL_HOME": str(home)}
        subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
    return home


def kill(name: str, begin: Callable[[Path], Run], folder: Path, kills: int, *, seed: int = 0) -> Tally:
    """Kill so often; `begin` lays out a new folder. Prints a line for each start."""
    rng, tally = random.Random(f"{seed}/{name}"), Tally()
    moments = [(part + rng.random()) / kills for part in rng.sample(range(kills), kills)]
    run = begin(folder / "whole")
    tally.seconds = _start(run, folder / "whole", Seen(), None, rng).computed
    expected = run.outcome(copied(run.home, folder / "copy"))
    length = tally.seconds
    print(f"{name}: left alone, it computed for {length:.1f} s", flush=True)
    while tally.kills < kills:
        place, seen, landed, starts, complete = folder / f"run{tally.ends}", Seen(), True, 0, False
        run = begin(place)
        while landed:
            after = None if complete or tally.kills == kills else moments[tally.kills] * length
            before, starts = run.progress and run.progress(), starts + 1
            ended = _start(run, place, seen, after, rng)
            landed = ended.landed
            database = copied(run.home, folder / "copy")
            wrong = [("left_running", words) for words in ended.left] + list(_asked(run, database, expected, seen))
            if landed:
                complete = not what_is_broken(database) and run.complete(database, expected)
                begun = ended.opened or complete if run.progress is None else run.progress() != before
                tally.kills, tally.begun, tally.partials = tally.kills + 1, tally.begun + begun, tally.partials + _spoil(place)
                told = f"kill {tally.kills} after {ended.computed:.1f} s, {'at work' if begun else 'starting up'}"
                told += f"; {len(seen.trials)} trials"
            else:
                tally.ends, tally.late = tally.ends + 1, tally.late + (after is not None)
                if after is not None and starts == 1:  # the machine is quicker than it was
                    length = ended.computed
                if run.outcome(database) != expected:
                    wrong.append(("different_ends", "not as in the run that was left alone"))
                told = f"ended by itself after {ended.computed:.1f} s"
            print(f"{name}: run {tally.ends + landed}, start {starts}: {told}", flush=True)
            for figure, words in wrong:
                tally.found[figure] += 1
                print(f"{name}: {figure}: {words}", flush=True)
        shutil.rmtree(place)
    return tally


def _asked(run: Run, database: Path, expected: object, seen: Seen) -> Iterator[tuple[str, str]]:
    """What is wrong after a start, as figure and words."""
    if broken := what_is_broken(database):
        yield "corrupt_databases", "; ".join(broken[:5])
        return
    seen.look(trials(database))
    while seen.lost:
        yield "lost_trials", seen.lost.pop()
    yield from run.wrong(database, expected)


def _start(run: Run, place: Path, seen: Seen, after: float | None, rng: random.Random) -> Ended:
    """Start once, and kill when it has computed for so many seconds, or never.

    What somebody could read in the database meanwhile is in `seen` afterwards.
    """
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **run.environment, "AUTOML_TL_HOME": str(run.home), "TMPDIR": str(place / "tmp")}
    with (place / "said.txt").open("ab") as said:
        process = subprocess.Popen(run.line, env=environment, stdout=said, stderr=said, start_new_session=True)
    killer, over = Killer(process, after, alone=rng.random() < ALONE, pause=rng.uniform(0, MEASURED_EVERY)), threading.Event()
    helpers = [
        threading.Thread(target=_watch, args=(run.home / "history.db", killer, seen, over)),
        threading.Thread(target=killer.follow, args=(run.home / "history.db", over)),
    ]
    for helper in helpers:
        helper.start()
    try:
        run.attend(process)
        process.wait()
    finally:
        over.set()
        for helper in helpers:
            helper.join()
        if process.poll() is None:  # whoever attends to it gave up
            process.kill()
    code = process.wait()
    _, left = psutil.wait_procs(killer.children, ENDS_WITHIN)
    for child in left:
        child.kill()
    if killer.hung:  # that is what this is for, and no kill that was asked for
        raise SystemExit(f"{' '.join(run.line)}: did not end within {HANGS_AFTER:.0f} s; {place} is as it was then")
    landed = code == -signal.SIGKILL and after is not None
    if not landed and code not in run.ends:
        raise SystemExit(f"{' '.join(run.line)}: exit code {code}\n{(place / 'said.txt').read_text(encoding='utf-8')[-2000:]}")
    return Ended(landed, killer.computed, killer.opened, [str(child) for child in left])


class Killer:
    """Follows a process, and kills it when it has computed for so many seconds, or when it hangs."""

    def __init__(self, process: subprocess.Popen[bytes], after: float | None, *, alone: bool, pause: float) -> None:
        self.process = process
        self.after = after
        self.alone = alone
        self.pause = pause
        """Seconds between the last look and the kill."""
        self.computed = 0.0
        """Seconds, with all that it started."""
        self.children: list[psutil.Process] = []
        """What it had started when it was killed."""
        self.hung = False
        self.opened = False
        """Whether it had the database open when it was killed."""

    def follow(self, database: Path, over: threading.Event) -> None:
        """Until it is over."""
        begun = time.monotonic()
        while not over.wait(MEASURED_EVERY):
            self.computed = max(self.computed, sum(map(_computed, self.all())))
            if self.after is not None and self.computed + self.pause >= self.after:
                if not over.wait(self.pause):
                    self._kill(database)
                return
            if time.monotonic() - begun > HANGS_AFTER:
                self.hung = True
                self._kill(database)
                return

    def all(self) -> list[psutil.Process]:
        """The process and what it has started and still runs."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def has_open(self, path: Path) -> bool:
        """Whether one of them has a file open."""
        for process in self.all():
            with suppress(psutil.NoSuchProcess):
                if str(path.resolve()) in (file.path for file in process.open_files()):
                    return True
        return False

    def _kill(self, database: Path) -> None:
        self.process.send_signal(signal.SIGSTOP)  # it starts nothing after what it has started was noted
        self.opened, self.children = self.has_open(database), self.all()[1:]
        if self.alone:
            self.process.kill()
        elif self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def _computed(process: psutil.Process) -> float:
    """Seconds of a process and of those among its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _watch(path: Path, killer: Killer, seen: Seen, over: threading.Event) -> None:
    """Note what a reader sees while the command has the database open: it is the command that finds what a kill left there."""
    while not over.wait(WATCHED_EVERY):
        if killer.has_open(path) and (now := read_live(path)) is not None:
            seen.look(now)


def _spoil(place: Path) -> int:
    """Fill what a kill left half-written with rubbish, and lay such a file beside each that is there: few kills come in the
    instant in which one is written. Whoever takes it for whole will fail on it. How many the kill had left.
    """
    files = [path for path in place.rglob("*") if path.is_file()]
    left = [path for path in files if path.suffix == ".partial" and path.read_bytes() != RUBBISH]
    laid = [path.with_name(f"{path.name}{number}.partial") for path in files if path.suffix in WHOLE for number in ("", ".1")]
    for path in left + laid:
        path.write_bytes(RUBBISH)
    return len(left)
