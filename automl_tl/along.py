"""From a location, and what comes with it, to a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import federation, memory, model, objectives
from .data import load_task, load_unlabelled
from .errors import InputError
from .evaluation.adversaries import require_attacks
from .images import SUFFIXES
from .records import TRAIN, Task

Progress = Callable[[str, int, int], None]
MILD = 1.0
"""How unlike simulated clients are where nothing is said."""


@dataclass(frozen=True)
class Along:
    """What comes with the images, and so what is asked for (see `objectives`). Locations are whatever a reader knows."""

    source: Any = None
    """Labelled images of another domain with the same classes (adaptation), or of other classes (few-shot). The folder of an
    earlier run or model stands for the images that it remembers.

    Labels that an adaptation's own training images have are used. To be judged as if there were none, put those images into
    `unlabelled/` beside `test/`, or give a folder of nothing but images."""
    after: str | Path | None = None
    """Folder of a run or a model whose knowledge must not be forgotten."""
    keep: Any = None
    """Labelled images of what `after` knows; without them, those that it remembers, if it does."""
    clients: int | tuple[Any, ...] = ()
    """Folders of federated clients, or how many to simulate."""
    skew: float = MILD
    """Of simulated clients: small values give each few classes."""
    robust: float | str = 0.0
    """Largest change of a pixel, of 0–1; "8/255" is a number, too."""
    shots: int = 0
    """Training images a class; 0: all."""


def read_task(location: Any, along: Along | None = None, *, seed: int = 0, progress: Progress | None = None) -> Task:
    """Read, check and split labelled images, and what comes along with them; told how far it is by `progress`.

    Raises:
        InputError: names the file, row, class or option and says what to do.
    """
    along = along or Along()
    if isinstance(along.robust, str):
        along = replace(along, robust=fraction(along.robust, "robust"))
    _check(along)
    told = None if progress is None else lambda done, total: progress("reading images", done, total)
    if along.source is not None and _is_flat(location):
        _check_shots(along.shots, 0, Path(location).name)
        source, target = _source(along.source, seed, told), load_unlabelled(location, progress=told)
        _check_apart(source, target)
        return _hardened(objectives.adapt(source, target), along)
    whole = task = load_task(location, seed=seed, target=along.source is not None, progress=told)
    if along.shots:
        _check_shots(along.shots, len(task.part(TRAIN)), task.name)
        task = objectives.few_shots(task, along.shots, seed=seed)
    if along.source is not None:
        source = _source(along.source, seed, told)
        _check_apart(source, whole)
        known = set(task.classes) <= set(source.classes)
        if not known and TRAIN not in task.splits:
            raise InputError(
                f"{task.name} has no labelled training image, and classes that {source.name} has not; give it labels"
            )
        task = objectives.adapt(source, task) if known else objectives.learn_to_learn(task, source)
    if along.after is not None:
        folder = model.model_folder(Path(along.after))
        keep = along.keep
        kept = _remembered(folder, "remembered", seed) if keep is None else load_task(keep, seed=seed, progress=told)
        task = objectives.retain(task, folder, model.load(folder).classes, kept)
    if _has_clients(along):
        clients = along.clients
        real = clients if isinstance(clients, int) else [load_task(one, seed=seed, progress=told) for one in clients]
        task = objectives.federate(task, real, skew=along.skew, seed=seed)
    return _hardened(task, along)


def _source(location: Any, seed: int, told: Callable[[int, int], None] | None) -> Task:
    """Labelled images; those of an earlier task where its run or model is named.

    Raises:
        InputError: that remembers none.
    """
    folder = model.model_folder(Path(location)) if isinstance(location, (str, Path)) else Path()
    if not (folder / model.CARD).exists():
        return load_task(location, seed=seed, progress=told)
    remembered = _remembered(folder, Path(location).name, seed)
    if remembered is None:
        raise InputError(f"--source {location}: remembers no images; train it with --remember exemplars, or give its images")
    return remembered


def _check_apart(source: Task, task: Task) -> None:
    """Raises InputError: a source that is the images themselves has nothing to teach, and would let them judge it."""
    if set(source.hashes.tolist()) == set(task.hashes.tolist()):
        raise InputError("--source: these are the same images; give those of another domain or of other classes, or leave it out")


def _remembered(folder: Path, name: str, seed: int) -> Task | None:
    """The images that a model remembers, as a task."""
    remembered = memory.recall_exemplars(folder)
    if remembered is None:
        return None
    alone = min(remembered[1].count(name) for name in set(remembered[1])) < 2
    return load_task(remembered, name=name, seed=seed, validation=0.0 if alone else 0.2)


def _hardened(task: Task, along: Along) -> Task:
    return objectives.harden(task, float(along.robust)) if along.robust else task


def _check(along: Along) -> None:
    if along.keep is not None and along.after is None:
        raise InputError("--keep names images of what an earlier model knows; give that model with --after")
    asked = {"--source": along.source is not None, "--after": along.after is not None, "--clients": _has_clients(along)}
    both = [name for name, there in asked.items() if there]
    if len(both) > 1:
        raise InputError(f"{' and '.join(both)} ask for different things; give one of them")
    if along.robust:
        require_attacks()
    if along.robust and (along.after is not None or _has_clients(along)):
        raise InputError("--robust goes with images alone or with --source, not with --after or --clients")
    if along.skew != MILD and not isinstance(along.clients, int):
        raise InputError("--skew says how unlike simulated clients are; say how many with --clients N")
    if _has_clients(along):
        federation.require_flower()


def _has_clients(along: Along) -> bool:
    """None to simulate is a number, too: one that is refused, rather than a model that is not federated."""
    return isinstance(along.clients, int) or bool(along.clients)


def _check_shots(shots: int, labelled: int, name: str) -> None:
    """Raises InputError: there is no labelled training image to take so many of."""
    if shots and not labelled:
        raise InputError(f"--shots {shots}: {name} has no labelled training image to choose from; leave it out")


def _is_flat(location: Any) -> bool:
    """Whether a folder holds images but no folders: images without labels."""
    if not isinstance(location, (str, Path)) or not Path(location).is_dir():
        return False
    entries = [entry for entry in Path(location).iterdir() if not entry.name.startswith(".")]
    return bool(entries) and all(entry.is_file() and entry.suffix.lower() in SUFFIXES for entry in entries)


def fraction(text: str, option: str) -> float:
    """ "8/255" or "0.03" as a number.

    Raises:
        InputError: neither, or not above 0: nothing would be asked for.
    """
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{option}: expected a number such as 8/255 or 0.03, but got {text!r}") from None
    if not value > 0:
        raise InputError(f"{option}: expected a number above 0, such as 8/255, but got {text!r}; leave it out for none")
    return value
