"""Federated training with real clients: one side serves, the others join, each with images that stay where they are.

No code travels: a client runs what is installed at its place, on a network of its own zoo, and only if its owner agreed to the
strategy. What left it is written down.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import checkpoint, federation, model, registry
from .backbones import adopt, catalogue
from .data import check_outside, load_task
from .errors import InputError, TrialError
from .evaluation.classification import judge
from .federation import Answer, Client, Told
from .home import read_json, write_text
from .objectives import offer_public, take_part
from .progress import alone_in
from .records import PUBLIC, TEST, VALIDATION, Candidate, Point, Task
from .space import Value, check, defaults
from .strategy import Strategy
from .trials import job_of, judge_on_test, provenance

MODEL, WORK, LEFT = "model", "work", "left.jsonl"
REQUEST = "run.json"
"""What was asked for. `fit` keeps its own under this name, too, so that neither takes the folder of the other."""
NEEDED = frozenset({"clients"})
ANSWER = "answer-{}.safetensors"
_WORDS = slice(3, 3 + 624)
"""The Mersenne twister's, among the words of 64 bits that a generator's state is: 32 bits in each, after seed and counters."""
_ANEW = "A new training needs another --out; its privacy adds up with that of the old one"


@dataclass(frozen=True)
class Served:
    """What came of the rounds."""

    folder: Path
    """Of the model."""
    scores: list[float]
    """Validation accuracy after each round."""
    test: Mapping[str, float]
    notes: tuple[str, ...]
    """Of the rounds, such as the privacy that was spent."""


def serve(
    location: Any,
    *,
    strategy: str,
    backbone: str,
    clients: int,
    address: str,
    out: Path,
    hyperparameters: Mapping[str, Value] | None = None,
    tls: Path | None = None,
    seed: int = 0,
) -> Served:
    """Wait at `address` (HOST:PORT) for so many clients, train with them, and keep the model in `out`; goes on where it stopped.

    `location` holds the server's own images: its classes are the task's, its validation images judge, and its training images
    are public (see `--public` of `join`). `tls` is a folder with ca.pem, server.pem and server.key; without it what is sent can
    be read on its way.

    Raises:
        InputError: the images, the strategy, the backbone, the address or the certificates; or `out` holds another training, or
            another process works in it.
        TrialError: a client failed.
    """
    federation.require_flower()
    from . import flower

    task = offer_public(load_task(location, seed=seed))
    check_outside(out, task, ("", location))
    chosen = _federated(strategy)
    adopt([backbone])
    facts = registry.lookup("backbone", backbone, catalogue())
    values = check(chosen.space, {**defaults(chosen.space), **(hyperparameters or {})})
    candidate = Candidate(backbone, strategy, values)
    meeting = flower.far(address, clients, certificates=None if tls is None else _certificates(tls))
    request = _request(task, candidate, seed)

    def claim(_: Point) -> bool:
        write_text(out / REQUEST, json.dumps(request, indent=1))  # not before a round ended: until then nothing could be lost
        return False

    with alone_in(out):
        _check_free(out, request)
        work = out / WORK
        work.mkdir(exist_ok=True)
        job = job_of(task, candidate, facts, seed=seed, folder=work, report=claim)
        fitted = federation.train(chosen(values, facts), job, meeting=meeting, plan=_plan(task, candidate))
        test = judge_on_test(task, facts, fitted.model)
        told = {
            "task": task.name,
            "validation": judge(fitted.probabilities, task.labels[task.part(VALIDATION)]),
            "test": test,
            "fingerprint": task.fingerprint,
            "images": {split: len(task.part(split)) for split in (PUBLIC, VALIDATION, TEST)},
            "provenance": dict(provenance("", facts)),
        }
        model.save(out / MODEL, fitted.model, facts, candidate, task.classes, told)
    notes = tuple(point.note for point in fitted.curve)
    return Served(out / MODEL, [point.score for point in fitted.curve], test, notes)


def join(
    address: str,
    location: Any,
    *,
    strategy: str,
    out: Path,
    epsilon: float | None = None,
    public: Any = None,
    authority: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Take part with the images in `location` until the server at `address` is done; gives the record of what left.

    `strategy` is what the owner of the images agrees to, `epsilon` the most privacy that may be spent in `out`: the server's plan
    is refused if it is another. `public` holds the server's public images, `authority` the certificate that it must be signed by.

    `say` hears that it waits.

    Raises:
        InputError: the address, the images or the authority cannot be used, or the plan is not what was agreed to.
        TrialError: the server cannot be reached, or is not the one that `authority` vouches for.
    """
    federation.require_flower()
    from . import flower

    _federated(strategy)
    flower.host_and_port(address)
    own, known = load_task(location), None if public is None else load_task(public)
    check_outside(out, own, ("", location))
    if known is not None:
        check_outside(out, known, ("--public", public))
    out.mkdir(parents=True, exist_ok=True)
    record = out / LEFT
    client = _Joined(own, strategy, epsilon, known, out)
    say(f"waiting for a server at {address} (up to {flower.WAIT_SECONDS / 60:.0f} min)")
    flower.join(
        address,
        client,
        lambda number, answer: _write_down(record, number, answer),
        authority=None if authority is None else _read(authority, "--authority"),
    )
    return record


@dataclass(frozen=True)
class _Agreed:
    """What came of the server's plan."""

    plan: str
    rounds: int
    side: Client


class _Joined:
    """A real client: what it is to do comes with every round."""

    def __init__(self, own: Task, strategy: str, epsilon: float | None, public: Task | None, folder: Path) -> None:
        self.own, self.public, self.folder = own, public, folder
        self.strategy, self.epsilon = strategy, epsilon
        self.agreed: _Agreed | None = None

    def answer(self, arrays: list[np.ndarray], told: Told) -> Answer:
        if self.agreed is None or self.agreed.plan != told["plan"]:
            self.agreed = self._agree(str(told["plan"]))
        number = int(told["round"])
        if not 0 <= number < self.agreed.rounds:
            raise InputError(
                f"the server asks for round {number + 1}, but its plan has {self.agreed.rounds}; "
                "it must plan all of them from the start (--set epochs=N)"
            )
        if self.epsilon is None:
            return self.agreed.side.answer(arrays, told)
        return self._answer_once(self.agreed.side, self.epsilon, arrays, told)

    def _answer_once(self, side: Client, epsilon: float, arrays: list[np.ndarray], told: Told) -> Answer:
        """One answer to a round, ever: another would have other noise, and both together would tell more than ε allows.

        It is in the folder before it leaves, so that a client that was started again sends the same.
        """
        from filelock import FileLock

        number, training = int(told["round"]), _digest([], told["plan"], self.own.fingerprint)
        question = _digest(arrays, *sorted(told.items()))
        with FileLock(self.folder / "answers.lock"):
            known = _answered(self.folder, number, training, question)
            if known is not None:
                return known
            answer = side.answer(arrays, told)
            spent = answer.facts.get("epsilon", math.inf)
            if not spent <= epsilon:
                raise InputError(
                    f"round {number + 1} would have spent ε = {spent:.2f}, more than --epsilon {epsilon}; nothing of it was sent"
                )
            tensors = {str(place): torch.from_numpy(np.array(values)) for place, values in enumerate(answer.arrays)}
            facts = {"training": training, "question": question, "images": answer.images, "facts": answer.facts}
            checkpoint.save(self.folder / ANSWER.format(number + 1), tensors, facts)
        return answer

    def _agree(self, text: str) -> _Agreed:
        """The side of the strategy that was agreed to, with chance of its own: noise that the server knows would hide nothing."""
        plan = json.loads(text)
        if plan["strategy"] != self.strategy:
            raise InputError(f"the server trains by {plan['strategy']}, but --strategy {self.strategy} was agreed to")
        chosen = _federated(self.strategy)
        values = check(chosen.space, plan["hyperparameters"])
        asked = values.get("epsilon")
        if asked is None and self.epsilon is not None:
            raise InputError(
                f"--epsilon {self.epsilon}: {self.strategy} keeps no account of ε; leave it out, or agree to another --strategy"
            )
        if asked is not None and (self.epsilon is None or float(asked) > self.epsilon):
            raise InputError(f"the server would spend ε = {asked}; agree to it with --epsilon {asked}")
        facts = catalogue().get(plan["backbone"])
        if facts is None:  # nothing is fetched because a server says so
            raise InputError(f"the server trains {plan['backbone']!r}, which no zoo here has; `automl-tl zoo add` adds it")
        task = take_part(self.own, plan["classes"], self.public, [int(value, 16) for value in plan["public"]])
        candidate = Candidate(facts.name, self.strategy, values)
        job = job_of(task, candidate, facts, seed=secrets.randbits(31), folder=self.folder)  # of orders and crops: no secret
        sides: Any = chosen(values, facts)
        sides.chance = secret_chance  # looked at by strategies that add noise
        return _Agreed(text, int(values["epochs"]), sides.client(job))


def secret_chance() -> torch.Generator:
    """A generator whose whole state comes from the operating system, for noise that hides something.

    A seed would not do: torch takes 32 bits of it, and who tries them all finds the noise.

    Raises:
        TrialError: this version of torch keeps its state in a form that is not known here.
    """
    chance = torch.Generator().manual_seed(0)
    state = chance.get_state()
    words = state.numpy().view(np.uint64)[_WORDS]
    known = np.random.RandomState(0).get_state(legacy=False)["state"]["key"]  # NumPy's Mersenne twister starts alike
    if not np.array_equal(words, known):
        raise TrialError(f"torch {torch.__version__} cannot provide secret noise; use an earlier version")
    words[:] = np.frombuffer(secrets.token_bytes(4 * len(words)), dtype=np.uint32)
    return chance.set_state(state)


def _answered(folder: Path, number: int, training: str, question: str) -> Answer | None:
    """The answer to round `number` that left earlier; None where none did.

    Raises:
        InputError: it was to another question, or the answers in `folder` are of another training.
    """
    for path in list(folder.glob(ANSWER.format("*")))[:1]:  # all are of one training
        if checkpoint.load(path)[1]["training"] != training:
            raise InputError(
                f"--out {folder} holds the answers of another training: by another plan, or of other images. {_ANEW}"
            )
    path = folder / ANSWER.format(number + 1)
    if not path.exists():
        return None
    tensors, facts = checkpoint.load(path)
    if facts["question"] != question:
        raise InputError(
            f"the server asks for round {number + 1} again, and not the same: another answer would spend privacy twice. {_ANEW}"
        )
    return Answer([tensors[str(place)].numpy() for place in range(len(tensors))], facts["images"], facts["facts"])


def _digest(arrays: Sequence[np.ndarray], *said: object) -> str:
    """sha256 of all that was sent."""
    found = hashlib.sha256(repr(said).encode())
    for values in arrays:
        found.update(repr((values.dtype.str, values.shape)).encode())
        found.update(values.tobytes())
    return found.hexdigest()


def _federated(name: str) -> type[Strategy]:
    known = {one: strategy for one, strategy in registry.strategies().items() if strategy.needs == NEEDED}
    return registry.lookup("federated strategy", name, known)


def _request(task: Task, candidate: Candidate, seed: int) -> dict[str, Any]:
    """What makes one training of a server; the rest of its plan follows from it."""
    return {
        "strategy": candidate.strategy,
        "backbone": candidate.backbone,
        "hyperparameters": dict(candidate.hyperparameters),
        "images": task.fingerprint,
        "seed": seed,
    }


def _check_free(out: Path, request: Mapping[str, Any]) -> None:
    """Raises InputError where `out` holds another training: this one would go on with its rounds, or replace its model."""
    path, remedy = out / REQUEST, "choose another --out or delete it"
    if not path.exists() and not (out / WORK / federation.CHECKPOINT).exists():
        return
    before = read_json(path, dict, remedy=remedy) if path.exists() else {}
    changed = [name for name in request if before.get(name) != request[name]]
    if changed:
        verb = "differs" if len(changed) == 1 else "differ"
        raise InputError(f"{out} holds another training (its {', '.join(changed)} {verb}); {remedy}")


def _plan(task: Task, candidate: Candidate) -> str:
    """What clients are told: names, numbers, and which images are public."""
    return json.dumps(
        {
            "strategy": candidate.strategy,
            "backbone": candidate.backbone,
            "hyperparameters": dict(candidate.hyperparameters),
            "classes": list(task.classes),
            "public": [f"{value:x}" for value in task.hashes[task.part(PUBLIC)].tolist()],
        }
    )


def _certificates(folder: Path) -> tuple[bytes, bytes, bytes]:
    try:
        authority, own, key = ((folder / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key"))
    except OSError as error:
        raise InputError(
            f"--tls {folder}: {error.strerror}: {error.filename}; it must hold ca.pem, server.pem and server.key"
        ) from None
    try:
        ssl.create_default_context(cadata=authority.decode("ascii"))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / "server.pem", folder / "server.key", password="")
    except (ssl.SSLError, ValueError) as error:  # gRPC's own words come after the work, and name no file
        raise InputError(
            f"--tls {folder}: ca.pem and server.pem must be certificates in PEM, and server.key the second one's, without a "
            f"password: {error}"
        ) from None
    return authority, own, key


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}") from None


def _write_down(record: Path, number: int, answer: Answer) -> None:
    """One line a round: what left, in words and sizes."""
    line = {
        "round": number + 1,
        "arrays": [{"shape": list(values.shape), "type": str(values.dtype)} for values in answer.arrays],
        "bytes": sum(values.nbytes for values in answer.arrays),
        "images": answer.images,
        "facts": answer.facts,
    }
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
