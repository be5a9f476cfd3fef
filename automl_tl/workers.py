"""Where work is carried out: processes of this machine, or a Ray cluster (Moritz et al., 2018).

Work is a function and its units, one argument each. Whoever hands it out gets futures, and alone writes down what comes back.
Each worker computes on one thread, so that the same work gives the same wherever it is done, and in the folder that the work came
from, where its machine has that folder.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from .errors import AutomlError, InputError, WorkerLost
from .extras import require

Work = TypeVar("Work")
Result = TypeVar("Result")

RETRIES = 3
"""A unit whose worker was lost is begun again so often; then it is the unit, not the machine."""
PROCESSES = 2
"""Of this machine, where nothing is said."""
REACHED_WITHIN = 10.0
"""Seconds in which a cluster answers; Ray itself would wait for two minutes."""


class Workers(Protocol):
    """Several that work at once."""

    @property
    def size(self) -> int:
        """How many there are now; a cluster may grow."""

    def submit(self, run: Callable[[Work], Result], unit: Work, /) -> Future[Result]:
        """Have `run(unit)` done. The future raises what `run` raises, or WorkerLost."""


@contextmanager
def open_workers(ray: str | None = None, *, most: int | None = None) -> Iterator[Workers]:
    """Workers for the time of the block, at most `most` of them.

    Without `ray` they are processes of this machine, which end what they are at. Else `ray` names a cluster: "local" starts one
    here for the time of the block, "auto" is the one that runs here, HOST:PORT another; what still runs there is given up.

    Raises:
        PluginError: the package ray is missing.
        InputError: no cluster answers there.
    """
    if ray is None:
        pool = _Processes(most or PROCESSES)
        try:
            yield pool
        finally:
            pool.close()
        return
    require("ray", "ray")
    begun = _join(ray, most)
    try:
        yield _Cluster(most)
    finally:
        if begun:
            import ray as library

            library.shutdown()


def results(workers: Workers, run: Callable[[Work], Result], units: Iterable[Work]) -> Iterator[tuple[Work, Result | WorkerLost]]:
    """Each unit and what came of it, as they come. Not more than two units a worker are out at once: a stop loses little."""
    todo = iter(units)
    waiting: dict[Future[Result], Work] = {}
    while True:
        while len(waiting) < 2 * workers.size and (unit := next(todo, None)) is not None:
            waiting[workers.submit(run, unit)] = unit
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            unit = waiting.pop(future)
            try:
                yield unit, future.result()
            except WorkerLost as lost:
                yield unit, lost


class _Processes:
    """Processes of this machine. They end with their parent, even one that was killed.

    Each has a pool of its own and a thread that feeds it, so that one which dies takes no unit along but that it was working on.
    """

    def __init__(self, count: int) -> None:
        self.size = count
        self._threads = ThreadPoolExecutor(count)
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._closing = False

    def submit(self, run: Callable[[Work], Result], unit: Work, /) -> Future[Result]:
        return self._threads.submit(self._carry_out, run, unit)

    def _carry_out(self, run: Callable[[Work], Result], unit: Work) -> Result:
        for _ in range(RETRIES + 1):
            try:
                return self._pool().submit(_on_one_thread, run, unit).result()
            except BrokenProcessPool:
                del self._own.pool
                if self._closing:
                    break
        raise WorkerLost(f"lost {RETRIES + 1} workers (no memory left?)")

    def _pool(self) -> ProcessPoolExecutor:
        """Of this thread."""
        if not hasattr(self._own, "pool"):
            context = multiprocessing.get_context("spawn")
            self._own.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_watch_parent)
            self._pools.append(self._own.pool)
        pool: ProcessPoolExecutor = self._own.pool
        return pool

    def close(self) -> None:
        self._closing = True
        self._threads.shutdown(cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()


class _Cluster:
    """The Ray cluster that this process has joined. A lost worker's unit is begun again by Ray, wherever there is room."""

    def __init__(self, most: int | None) -> None:
        import ray

        self._most = most
        self._gpus = ray.cluster_resources().get("GPU", 0.0) > 0
        self._task: Any = ray.remote(max_retries=RETRIES, num_gpus=float(self._gpus))(_on_one_thread)
        self._sent: tuple[Any, Any] = (None, None)

    @property
    def size(self) -> int:
        import ray

        there = int(ray.cluster_resources().get("GPU" if self._gpus else "CPU", 1.0))
        return max(1, there if self._most is None else min(there, self._most))

    def submit(self, run: Callable[[Work], Result], unit: Work, /) -> Future[Result]:
        import ray

        if self._sent[0] is not run:  # sent once, however much is bound to it
            self._sent = run, ray.put(run)
        answer: Future[Result] = Future()
        self._task.remote(self._sent[1], unit, os.getcwd()).future().add_done_callback(lambda done: _pass_on(done, answer))
        return answer


def _pass_on(done: Future[Result], answer: Future[Result]) -> None:
    """What Ray's future says, its errors in our words: one of `run` as it was raised there, any other is a lost worker."""
    from ray.exceptions import RayError, RayTaskError

    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    elif not isinstance(error, RayTaskError):
        answer.set_exception(WorkerLost(f"lost {RETRIES + 1} workers (no memory left?): {type(error).__name__}"))
    elif isinstance(error.cause, RayError):  # the work could not even be read there
        text = str(error.cause).strip().splitlines()[-1]
        answer.set_exception(
            AutomlError(f"a machine of the cluster cannot do the work: {text}; install the same packages on all")
        )
    else:
        answer.set_exception(error.cause)


def _join(address: str, most: int | None) -> bool:
    """Join or start a Ray cluster; False where this process is in one already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"num_cpus": most, "include_dashboard": False} if address == "local" else {}
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # of a node that starts too slowly Ray raises no other kind
        ray.shutdown()
        what = (
            "Ray did not start on this machine, which may be too busy" if address == "local" else "no Ray cluster answers there"
        )
        raise InputError(
            f"--ray {address}: {what} ({error}); 'local' starts one here for the duration of the command, "
            "'auto' finds one that `ray start` has started here, HOST:PORT is that of its head"
        ) from None
    return True


def _check_reachable(address: str) -> None:
    """Raises OSError if HOST:PORT does not answer."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()


def _on_one_thread(run: Callable[[Work], Result], unit: Work, where: str = ".") -> Result:
    import torch

    with suppress(OSError):
        os.chdir(where)
    torch.set_num_threads(1)
    return run(unit)


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
