"""What somebody's plugin may do to the process that runs it: end it, or never come back. Here it ends as an error with a name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .errors import TrialError
from .home import write_text

LEAST_SILENCE = 120.0
"""Seconds that a trial may always take without an epoch that ended."""
EXPECTED = 10.0
"""Times the seconds that its whole training is expected to take: longer than that a trial is not silent."""
LEFT = 2.0
"""Times the seconds of the budget that are left: nor longer than that."""
DEATHS = 3
"""Starts in a row that may die in one and the same epoch of a trial. The next one records it as failed."""
AGAIN = 5.0
"""Seconds after which one who goes on all the same is told again."""


_counted: dict[Path, int] = {}
"""Where this process counts as a start that may die, and how many had died there before."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_counted.clear)  # what a plugin forked may end as it likes


class _Silent(BaseException):
    """No `except Exception` of a plugin holds it back."""


def silence(expected: float, left: float) -> float:
    """Seconds that a trial may take without an epoch that ended, where its whole training is expected to take `expected` seconds
    and `left` seconds of the budget are left."""
    return max(LEAST_SILENCE, min(EXPECTED * expected, LEFT * left))


def in_words(error: BaseException) -> str:
    """What a plugin did."""
    if isinstance(error, SystemExit):
        return f"SystemExit: asked the process to end (code {error.code}), which is not a plugin's to do"
    return f"{type(error).__name__}: {error}"


@contextmanager
def never_silent(seconds: float) -> Iterator[Callable[[], None]]:
    """Let the block run; what it is given is to be called whenever an epoch has ended.

    An alarm of the system interrupts Python code, and calls that wait; neither a computation inside one call of a C library, nor
    an import. It needs the main thread of a process that has no other use for SIGALRM, and no Windows; elsewhere nobody watches.

    Raises:
        TrialError: for so many `seconds` no epoch ended.
    """
    if not _can_watch(seconds):
        yield lambda: None
        return

    def begin_anew() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)

    def ring(_: int, frame: FrameType | None) -> None:
        if not _imports(frame):  # half a module would stay, for all that come after; a moment later it is rung again
            raise _Silent

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            begin_anew()
            yield begin_anew
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Silent:
        words = f"no epoch ended in {seconds:.0f} s, far more than was expected: ended, as it seems to hang"
        raise TrialError(words) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _can_watch(seconds: float) -> bool:
    return (
        seconds < threading.TIMEOUT_MAX
        and hasattr(signal, "SIGALRM")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    )


@contextmanager
def outlived(folder: Path) -> Iterator[Callable[[], None]]:
    """Count in `folder` the starts that die inside the block: an error and Ctrl-C leave it alive, `os._exit`, a crash or the
    system's killer do not. What it is given is to be called whenever an epoch has ended, and forgets them.

    Who is ended by SIGTERM, or calls `pardon` first, is not counted either.

    Raises:
        TrialError: so many starts in a row died in it.
    """
    path = folder / "deaths.txt"
    died = len(path.read_text(encoding="utf-8")) if path.exists() else 0
    if died >= DEATHS:
        raise TrialError(f"{died} starts in a row died in it, without an error, before another epoch ended")

    def lives() -> None:
        _counted.pop(path, None)
        _write(path, 0)

    with _pardoned_by_sigterm():
        _counted[path] = died
        _write(path, died + 1)  # this one counts until it is known to live
        try:
            yield lives
        finally:
            lives()


def pardon() -> None:
    """Take this process's start out of the counts: it is about to be ended on purpose, and no trial is to blame for that."""
    with suppress(OSError):  # whoever calls this ends the process next, whatever happens here
        for path, died in list(_counted.items()):
            _write(path, died)


def _write(path: Path, died: int) -> None:
    if died:
        write_text(path, "x" * died)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _pardoned_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as ever, but is no trial's doing: a machine that is shut down, or taken back, says it so.

    It is heard between two lines of Python, as Ctrl-C is. Where somebody else listens to it, it is left to them.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    pardon()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
