"""Bad and hostile input, at every place where input comes in: does anything crash, hang, or get out?

For each target, in a process of its own and from a seed, inputs are made of good ones (`_hostile_inputs`) and taken
(`_hostile_targets`) for --seconds. What may happen: it is taken, or refused with an error of automl_tl's own. Counted are

- crashes: any other exception, and a process that dies;
- hangs: more than 20 seconds of work, or two minutes of waiting, for one input;
- escapes: something is written, or a secret beside the folder read, outside; a program started, a connection made, code
  unpickled. Python's audit hooks tell of these, whoever does it.

`--target http` sends bodies to a running server: a status of 500 or more is a crash. Offending inputs are printed and kept.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _hostile_targets import TARGETS, Target, emptied, lay_outside
from _report import arguments, merge, table

LONGEST, WAITING = 20, 120
"""Seconds of this process's own work, and of the clock, that an input may take: others may keep the machine busy."""
MEMORY = 12 * 2**30
"""Of address space: what a bomb asks for beyond that fails, and is counted as a crash."""
NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo"}
NEVER |= {"pickle.find_class", "ftplib.connect", "urllib.Request", "ctypes.dlopen"}


class Hang(Exception):
    """An input took too long."""


class Watch:
    """What an input did that none may do, as Python's audit hook tells it."""

    def __init__(self, inside: Path, outside: Path) -> None:
        self.places = tuple(f"{place}{os.sep}" for place in (inside, Path(os.environ["AUTOML_TL_HOME"])))
        self.outside, self.on, self.seen = str(outside), False, set[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in NEVER:
            self.seen.add(f"{event} {values!r:.200}")
        elif event == "open" and isinstance(values[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(values[0]))
            flags = values[2] or 0
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) or (isinstance(values[1], str) and set(values[1]) & set("wax+"))
            if path.startswith(self.outside) or (writes and not path.startswith(self.places) and path != os.devnull):
                self.seen.add(f"open {path} {values[1]}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


def attack(name: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Inputs to one target until the time is up; what came of them."""
    from automl_tl.errors import AutomlError

    target, rng = TARGETS[name], random.Random(f"{name}/{seed}")
    scratch, outside = folder / "taken", lay_outside(folder)
    emptied(scratch)
    warnings.simplefilter("ignore")
    _warm(target, scratch)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _too_long)
    watch = Watch(scratch, outside)
    found: dict[str, Any] = {"inputs": 0, "refused": 0, "crashes": {}, "hangs": {}, "escapes": {}}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = target.make(rng)
        (folder / "last.bin").write_bytes(data)
        emptied(scratch)
        found["inputs"] += 1
        start = time.monotonic(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        signal.alarm(WAITING)
        try:
            with watch.watching():
                target.take(data, scratch)
        except AutomlError:
            found["refused"] += 1
        except Hang:
            pass
        except BaseException as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
            found["crashes"].setdefault(f"{type(error).__name__} at {place}", f"{str(error)[:150]}\n    {_kept(data)}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        waited, worked = time.monotonic() - start[0], time.process_time() - start[1]
        if worked >= LONGEST or waited >= WAITING:
            found["hangs"].setdefault(f"{worked:.0f} s of work, {waited:.0f} s in all", _kept(data))
        for event in watch.seen:
            found["escapes"].setdefault(event, _kept(data))
        watch.seen.clear()
    return found


def _warm(target: Target, folder: Path) -> None:
    """What is loaded on first use is loaded now, before anything is watched: good or bad inputs, it does not matter."""
    import timm.models  # noqa: F401 (slow, and it looks for libraries)
    import torch.utils.flop_counter  # noqa: F401

    for seed in range(10):
        with contextlib.suppress(Exception):
            target.take(target.make(random.Random(seed)), emptied(folder))


def _too_long(*_: object) -> None:
    raise Hang


def _kept(data: bytes) -> str:
    return base64.b64encode(data[:300]).decode()


def in_process(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """`attack` in a process of its own. If that dies or never ends, what it had last is the culprit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        line = [sys.executable, __file__, "--target", name, "--seconds", str(seconds), "--seed", str(seed), "--inside", scratch]
        environment = {**os.environ, "AUTOML_TL_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=seconds + 600)
        except subprocess.TimeoutExpired:
            return {"inputs": 1, "refused": 0, "crashes": {}, "hangs": {"never ended": _last(folder)}, "escapes": {}}
        if done.returncode:
            died = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
            return {"inputs": 1, "refused": 0, "crashes": {died: _last(folder)}, "hangs": {}, "escapes": {}}
        return dict(json.loads(done.stdout.splitlines()[-1]))


def _last(folder: Path) -> str:
    path = folder / "last.bin"
    return _kept(path.read_bytes()) if path.exists() else ""


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__, "three seconds a target")
    parser.add_argument("--seconds", type=float, default=40, help="for each target (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=[*TARGETS, "http"], help="only these (repeatable)")
    parser.add_argument("--inside", type=Path, help="of one target, in this process (used by the program itself)")
    return parser.parse_args()


def main() -> None:
    options = _parse()
    if options.inside:
        print(json.dumps(attack(options.target[0], options.seconds, options.seed, options.inside)))
        return
    seconds = 3 if options.quick else options.seconds
    kinds, rows = ("crashes", "hangs", "escapes"), []
    total = dict.fromkeys(("inputs", *kinds), 0)
    for name in options.target or [*TARGETS, "http"]:
        if name == "http":
            from _hostile_http import attack_server

            found = attack_server(seconds, options.seed)
        else:
            found = in_process(name, seconds, options.seed)
        for kind in kinds:
            for what, data in found[kind].items():
                print(f"{name}: {kind}: {what}\n    {data}", flush=True)
        rows.append((name, found["inputs"], found["refused"], *(len(found[kind]) for kind in kinds)))
        total["inputs"] += found["inputs"]
        for kind in kinds:
            total[kind] += len(found[kind])
    table(f"{seconds:g} seconds a target, seed {options.seed}", ("", "inputs", "refused", *kinds), rows)
    figures = {"hostile_inputs": total["inputs"], **{kind: total[kind] for kind in kinds}, "hostile_seconds": seconds * len(rows)}
    if not options.target:
        merge(options.json, "hostile", figures)
    if any(total[kind] for kind in kinds):
        raise SystemExit("something got through")


if __name__ == "__main__":
    main()
