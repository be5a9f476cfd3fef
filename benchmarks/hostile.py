"""Bad and hostile input, at every place where input comes in: does anything crash, hang, or get out?

For each target, in a process of its own and from a seed, inputs are made of good ones (`_hostile_inputs`) and taken
(`_hostile_targets`) for --seconds. What may happen: it is taken, or refused with an error of automl_tl's own. Counted are

- crashes: any other exception, and a process that dies;
- hangs: more than 20 seconds of work, or two minutes of waiting, for one input;
- escapes: something is written, or a secret beside the folder read, outside; a program started, a connection made, code
  unpickled. Python's audit hooks tell of these, whoever does it.

Then for as long again, guided: atheris (libFuzzer) changes the same inputs and follows those that reach new branches of
automl_tl; every other input is made anew. `--target http` sends bodies to a running server, unguided: a status of 500 or more is
a crash. Offending inputs are printed and kept.
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
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _hostile_targets import TARGETS, Target, emptied, lay_outside
from _report import arguments, merge, table

LONGEST, WAITING = 20, 120
"""Seconds of this process's own work, and of the clock, that an input may take: others may keep the machine busy."""
MEMORY = 12 * 2**30
"""Of address space: what a bomb asks for beyond that fails, and is counted as a crash."""
FIRST, LONG = 50, 2**17
"""Inputs that the guided search begins with, and the bytes of the longest."""
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
    target, rng = TARGETS[name], random.Random(f"{name}/{seed}")
    found, take = _taker(target, folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        take(target.make(rng))
    return found


def attack_guided(name: str, seconds: float, seed: int, folder: Path) -> None:
    """The same where coverage leads. Prints what came of it and ends the process: libFuzzer comes back to nobody."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    target, rng = TARGETS[name], random.Random(f"{name}/{seed}/guided")
    with atheris.instrument_imports(include=["automl_tl", "automl_tl_plugins"]):
        for number in range(FIRST):
            (corpus / str(number)).write_bytes(target.make(rng)[:LONG])
        found, take = _taker(target, folder)
    found["corpus"] = FIRST
    end = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if time.monotonic() >= end:
            print(json.dumps(found), flush=True)
            os._exit(0)
        take(data)

    def changed(data: bytes, most: int, own_seed: int) -> bytes:
        own = random.Random(own_seed)
        return target.make(own)[:most] if own.random() < 0.5 else atheris.Mutate(data, most)

    options = [
        f"-seed={seed + 1}",
        f"-max_len={LONG}",
        "-timeout=0",
        "-rss_limit_mb=0",
        "-detect_leaks=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=changed)
    atheris.Fuzz()


def _taker(target: Target, folder: Path) -> tuple[dict[str, Any], Callable[[bytes], None]]:
    """What takes an input under watch, and the counts that it adds to."""
    from automl_tl.errors import AutomlError

    scratch, outside = folder / "taken", lay_outside(folder)
    emptied(scratch)
    warnings.simplefilter("ignore")
    _warm(target, scratch)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _too_long)
    watch = Watch(scratch, outside)
    found: dict[str, Any] = {"inputs": 0, "refused": 0, "crashes": {}, "hangs": {}, "escapes": {}}

    def take(data: bytes) -> None:
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

    return found, take


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


def in_process(name: str, seconds: float, seed: int, *, guided: bool = False) -> dict[str, Any]:
    """`attack` or `attack_guided` in a process of its own. If that dies or never ends, what it had last is the culprit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        line = [sys.executable, __file__, "--target", name, "--seconds", str(seconds), "--seed", str(seed), "--inside", scratch]
        line += ["--guided"] if guided else []
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
    parser.add_argument("--guided", action="store_true", help="only what atheris leads to")
    parser.add_argument("--inside", type=Path, help="of one target, in this process (used by the program itself)")
    return parser.parse_args()


def main() -> None:
    options = _parse()
    if options.inside and options.guided:
        attack_guided(options.target[0], options.seconds, options.seed, options.inside)
    if options.inside:
        print(json.dumps(attack(options.target[0], options.seconds, options.seed, options.inside)))
        return
    seconds = 3 if options.quick else options.seconds
    kinds, rows = ("crashes", "hangs", "escapes"), []
    total = dict.fromkeys(("inputs", "guided", *kinds), 0)
    asked = [(name, guided) for name in options.target or [*TARGETS, "http"] for guided in (False, True)]
    for name, guided in asked:
        if (guided and (name == "http" or find_spec("atheris") is None)) or (options.guided and not guided):
            continue
        if name == "http":
            from _hostile_http import attack_server

            found = attack_server(seconds, options.seed)
        else:
            found = in_process(name, seconds, options.seed, guided=guided)
        for kind in kinds:
            for what, data in found[kind].items():
                print(f"{name}: {kind}: {what}\n    {data}", flush=True)
        rows.append(
            (f"{name}, guided" if guided else name, found["inputs"], found["refused"], *(len(found[kind]) for kind in kinds))
        )
        total["inputs"] += found["inputs"]
        total["guided"] += found["inputs"] if guided else 0
        for kind in kinds:
            total[kind] += len(found[kind])
    table(f"{seconds:g} seconds a target, seed {options.seed}", ("", "inputs", "refused", *kinds), rows)
    if find_spec("atheris") is None:
        print("atheris is not installed (extra `test`, Linux on x86-64): nothing was guided")
    figures = {"hostile_inputs": total["inputs"], "hostile_inputs_guided": total["guided"]}
    figures |= {**{kind: total[kind] for kind in kinds}, "hostile_seconds": seconds * len(rows)}
    if not options.target and not options.guided:
        merge(options.json, "hostile", figures)
    if any(total[kind] for kind in kinds):
        raise SystemExit("something got through")


if __name__ == "__main__":
    main()
