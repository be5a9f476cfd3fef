"""A strategy that hangs, raises, ends the process, leaks, says nonsense or asks for too much memory: one failed trial, not a lost
search. The strategies are of a distribution of their own, as anyone's would be."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import QUICK, digits
from torch import Tensor, nn

from automl_tl import Candidate, Classifier, Outcome, Point, Profile, Ranked, Ranking, Task, Trial, guard, loop, registry, search
from automl_tl.backbones import catalogue
from automl_tl.budget import parse_budget
from automl_tl.campaign import TaskPlan, Unit, run_unit
from automl_tl.device import out_of_memory, release_memory, settled
from automl_tl.errors import InputError, TrialError, TrialWarning
from automl_tl.evaluation.classification import judge
from automl_tl.facts import trial_of
from automl_tl.fetching import in_batches
from automl_tl.history import open_history
from automl_tl.hookspecs import Tracker
from automl_tl.space import defaults
from automl_tl.trials import Limits, run_trial

pytestmark = pytest.mark.usefixtures("used_home")

PLUGIN = '''
import os, sys, time, weakref
import numpy as np
import torch
import automl_tl
from automl_tl.space import Choice, Int

MADE = []

class _Faulty(automl_tl.Strategy):
    space = {"epochs": Int(1, 9, 2), "batch_size": Choice((16, 32, 64), 32)}

    def build(self, backbone, num_classes):
        model = super().build(backbone.requires_grad_(False), num_classes)
        MADE.append(weakref.ref(model))
        return model

    def start_epoch(self, model, epoch):
        model.backbone.eval()
        self.fault(model, epoch)

    def fault(self, model, epoch):
        pass

class Sound(_Faulty):
    name = "sound"

class Hangs(_Faulty):
    """And holds on to it: an `except Exception` in a loop without end."""
    name = "hangs"
    def fault(self, model, epoch):
        while epoch == 1:
            try:
                time.sleep(60)
            except Exception:
                pass

class Raises(_Faulty):
    name = "raises"
    def fault(self, model, epoch):
        raise KeyError("what is not there")

class Exits(_Faulty):
    name = "exits"
    def fault(self, model, epoch):
        sys.exit(3)

class Vanishes(_Faulty):
    """Ends the process in its second epoch, when it may have been paused: each of its two candidates is found out by itself."""
    name = "vanishes"
    space = {"epochs": Int(2, 3, 2)}
    def fault(self, model, epoch):
        if epoch == 1:
            os._exit(7)

class Silent(_Faulty):
    """Ends the process before its first epoch."""
    name = "silent"
    def build(self, backbone, num_classes):
        os._exit(7)

class SaysNothing(_Faulty):
    name = "says-nan"
    def run(self, job):
        fitted = super().run(job)
        fitted.probabilities = np.full_like(fitted.probabilities, np.nan)
        return fitted

class ScoresNothing(_Faulty):
    name = "scores-nan"
    def run(self, job):
        fitted = super().run(job)
        fitted.curve[-1] = automl_tl.Point(2, 1.0, None, float("nan"))
        return fitted

class OddWords(_Faulty):
    """Of a file whose name is not UTF-8."""
    name = "odd-words"
    def fault(self, model, epoch):
        raise OSError("there is no gr\\udcf6sse.png")

class LosesNothing(_Faulty):
    name = "loses-nan"
    def run(self, job):
        fitted = super().run(job)
        fitted.curve[-1] = automl_tl.Point(2, 1.0, torch.tensor(float("nan")), 0.5)
        return fitted

class OtherNumbers(_Faulty):
    """As they come out of arrays and tensors."""
    name = "other-numbers"
    def run(self, job):
        fitted = super().run(job)
        numbers = np.int64(2), torch.tensor(1.5), np.float32(0.25), torch.tensor(0.5), np.float32(3.0)
        fitted.curve[-1] = automl_tl.Point(*numbers)
        return fitted

class Breaks(_Faulty):
    """What it kept is not what it judged: the stored network gives NaN."""
    name = "breaks"
    def run(self, job):
        fitted = super().run(job)
        torch.nn.init.constant_(fitted.model.head.bias, float("nan"))
        return fitted

class OtherShape(_Faulty):
    name = "other-shape"
    def run(self, job):
        fitted = super().run(job)
        fitted.model.backbone = torch.nn.Sequential(fitted.model.backbone)
        return fitted

class NoModel(_Faulty):
    name = "no-model"
    def run(self, job):
        return automl_tl.Fitted(None, [], super().run(job).probabilities)

class Hungry(_Faulty):
    """Has memory for nine images at once."""
    name = "hungry"
    words = "CUDA out of memory. Tried to allocate 2.00 GiB"
    def loss(self, model, batch):
        if len(batch.labels) > 9:
            raise torch.OutOfMemoryError(self.words)
        return super().loss(model, batch)

class Starving(_Faulty):
    """As the processor's allocator says it, and for no image at all."""
    name = "starving"
    def loss(self, model, batch):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried")

@automl_tl.hookimpl
def register_strategies():
    return _Faulty.__subclasses__()
'''


def install(place: Path) -> None:
    """The distribution, as pip leaves it."""
    (place / "faulty_strategies.py").write_text(PLUGIN)
    facts = place / "faulty_strategies-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty_strategies\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[automl_tl]\nfaulty_strategies = faulty_strategies\n")


@pytest.fixture(autouse=True)
def faulty(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("site")
    install(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(guard, "LEAST_SILENCE", 8.0)
    registry.forget()
    yield place
    registry.forget()
    sys.modules.pop("faulty_strategies", None)


def item(strategy: str, score: float = 0.9, **changed: Any) -> Ranked:
    values = {**defaults(registry.strategies()[strategy].space), **changed}
    return Ranked(Candidate(QUICK, strategy, values), score, score - 0.1, score + 0.1, 0.01, 100.0)


def run(names: list[str], out: Path, trackers: Sequence[Tracker] = (), *, epochs: int = 2) -> Outcome:
    """The first ones first, as the ranking would have it."""
    items = []
    for place, name in enumerate(names):
        changed = {"epochs": epochs} if "epochs" in registry.strategies()[name].space else {}
        items.append(item(name, 0.9 - place / 100, **changed))
    task, backbones = digits(), {QUICK: catalogue()[QUICK]}
    profile = Profile(task.name, task.fingerprint, {}, {}, {})
    with open_history() as history:
        history.record_task(task)
        history.record_backbone(backbones[QUICK])
        return search(
            task,
            Ranking(tuple(items), "a test", 2),
            profile=profile,
            backbones=backbones,
            budget=parse_budget("9 trials + 40 epochs"),
            trackers=trackers,
            folder=out,
            history=history,
        )


def one(strategy: str, folder: Path, limits: Limits | None = None, **changed: Any) -> Trial:
    task = digits()
    return run_trial(task, item(strategy, **changed).candidate, catalogue()[QUICK], seed=0, folder=folder, limits=limits)[0]


FAULTS = {
    "raises": "raises: KeyError: 'what is not there'",
    "exits": "exits: SystemExit: asked the process to end (code 3), which is not a plugin's to do",
    "hangs": "hangs: no epoch ended in 8 s, far more than was expected: ended, as it seems to hang",
    "says-nan": "says-nan: gave probabilities of shape (36, 10) or not finite; expected (36, 10)",
    "scores-nan": "scores-nan: reported a score of nan in epoch 2; expected a finite number",
    "no-model": "no-model: strategy 'no-model' left a NoneType; expected an automl_tl.Classifier",
}


def test_a_faulty_strategy_costs_only_its_own_trial(tmp_path: Path) -> None:
    """All at once: the search goes on to the one that is sound, and says in the history and the run what became of the others."""
    outcome = run([*FAULTS, "breaks", "other-shape", "sound"], tmp_path / "run")
    from faulty_strategies import MADE  # type: ignore[import-not-found]

    said = {trial.candidate.strategy: trial for trial in outcome.trials}
    assert outcome.winner.candidate.strategy == "sound"
    assert outcome.winner.test
    assert said.keys() == {*FAULTS, "breaks", "other-shape", "sound"}
    for name, words in FAULTS.items():
        assert said[name].error == words
    assert said["other-shape"].error.startswith("other-shape: left a model that cannot be kept: ")
    assert said["breaks"].error == (
        "breaks: left a model that cannot be kept: the network says nan of image 0 of 32, which is no probability"
    )
    failed = [trial for name, trial in said.items() if name not in ("sound", "hangs")]
    assert all((trial.status, trial.score, trial.artefact) == ("failed", None, "") for trial in failed)
    assert (said["hangs"].status, len(said["hangs"].curve)) == ("stopped", 1), "it was paused before, and its model is kept"
    with open_history() as history:
        assert {history.trial(trial.id).error for trial in outcome.trials} == {trial.error for trial in outcome.trials}
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    gc.collect()
    assert len(MADE) >= len(said), "of each trial a model"
    assert [made() for made in MADE] == [None] * len(MADE), "all that an ended trial held is released"


def test_what_a_strategy_says_can_be_written_down(tmp_path: Path) -> None:
    """The history and JSON hold no other numbers and texts: one such point, and a history gave no advice any more."""
    said = {name: one(name, tmp_path / name) for name in ("loses-nan", "odd-words", "other-numbers")}
    assert said["loses-nan"].error == "loses-nan: reported a loss of nan in epoch 2; expected a finite number"
    assert said["odd-words"].error == "odd-words: OSError: there is no gr\\xf6sse.png"
    assert said["other-numbers"].curve[-1] == Point(2, 1.5, 0.25, 0.5, 3.0)
    with open_history() as history:
        history.record_task(digits())
        history.record_backbone(catalogue()[QUICK])
        for trial in said.values():
            assert trial_of(json.loads(json.dumps(asdict(trial)))) == trial
            history.record_trial(trial)
            assert history.trial(trial.id) == trial


def test_a_campaign_gets_past_a_network_that_fails_on_test_images() -> None:
    """It was fine on the validation images."""
    plan = TaskPlan("few digits", "digits", "digits", per_class=3, most_judged=20)
    trial = run_unit(Unit(".", plan, item("breaks").candidate, (), 0))
    assert isinstance(trial, Trial)
    assert (trial.status, trial.score) == ("failed", None)
    assert trial.error.startswith("breaks: its model is no good: the network says nan of image 0 of ")


class Damaging:
    """A tracker that cuts the weights of a finished probe short, as a failing disk does, and then asks the process to end."""

    name = "damaging"

    def __init__(self, run: Path) -> None:
        self.run = run

    def opened(self, task: Task, seconds: float, folder: Path) -> None: ...

    def started(self, trial: Trial) -> None: ...

    def epoch(self, trial: Trial, point: Point) -> None: ...

    def finished(self, trial: Trial) -> None:
        if trial.candidate.strategy == "linear-probe":
            weights = self.run / trial.artefact / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
            sys.exit(1)


@pytest.mark.slow
def test_a_winner_whose_model_is_damaged_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    with pytest.warns(
        registry.PluginWarning, match="tracker 'damaging' stumbled at 'finished' and is told no more: SystemExit: 1"
    ):
        outcome = run(["sound", "linear-probe"], tmp_path, [Damaging(tmp_path)], epochs=1)
    assert outcome.winner.candidate.strategy == "sound"
    (probe,) = (trial for trial in outcome.trials if trial.candidate.strategy == "linear-probe")
    assert (probe.status, probe.score) == ("failed", None)
    assert probe.error.startswith(f"linear-probe: its model is no good: {tmp_path}")


def test_silence_is_measured_by_what_is_expected_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LEAST_SILENCE", 120.0)
    assert guard.silence(1.0, 600.0) == 120
    assert guard.silence(40.0, 600.0) == 400
    assert guard.silence(400.0, 600.0) == 1200
    assert guard.silence(400.0, float("inf")) == 4000


def test_an_alarm_that_is_somebody_elses_is_left_to_them() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with guard.never_silent(0.1):
            time.sleep(0.3)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(TrialError, match="no epoch ended in 0 s"), guard.never_silent(0.1):
        time.sleep(30)


def test_a_strategy_that_ends_the_process_is_given_up_after_three_starts(tmp_path: Path) -> None:
    """Four processes, each a start of the same trial, that share its folder; the last one lives to tell."""
    program = (
        "import os\nfrom pathlib import Path\nfrom automl_tl import guard\n"
        "for number in range(4):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        f"        with guard.outlived(Path({str(tmp_path)!r})) as lives:\n"
        "            os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["7", "7", "7", "1"], done.stderr
    assert "TrialError: 3 starts in a row died in it, without an error, before another epoch ended" in done.stderr
    trial = one("sound", tmp_path)
    assert trial.error == "sound: 3 starts in a row died in it, without an error, before another epoch ended"


def test_who_ends_with_an_error_or_lives_is_not_counted(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), guard.outlived(tmp_path):
            raise error
    with guard.outlived(tmp_path) as lives:
        assert list(tmp_path.iterdir())
        lives()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("died", [0, 2])
@pytest.mark.parametrize("how", ["terminated", "terminated beside a fork", "pardoned"])
def test_who_is_ended_on_purpose_is_not_counted(how: str, died: int, tmp_path: Path) -> None:
    """What had died there before stays counted."""
    marks = tmp_path / "deaths.txt"
    marks.write_text("x" * died)
    program = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom automl_tl import guard\n"
        f"with guard.outlived(Path({str(tmp_path)!r})):\n"
        "    if sys.argv[1] == 'pardoned':\n"
        "        guard.pardon()\n"
        "        os._exit(3)\n"
        "    if sys.argv[1] == 'terminated beside a fork':\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM\n"
        f"        assert Path({str(marks)!r}).read_text() == {'x' * (died + 1)!r}, 'a child decides nothing here'\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, how], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if how != "pardoned":
            assert process.stdout.readline() == "there\n"
            process.terminate()
        assert process.wait(60) == (3 if how == "pardoned" else -signal.SIGTERM)
    assert (marks.read_text() if marks.exists() else "") == "x" * died


def test_sigterm_that_is_somebody_elses_is_left_to_them(tmp_path: Path) -> None:
    heard: list[int] = []

    def listen(number: int, _: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, listen)
    try:
        with guard.outlived(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with guard.outlived(tmp_path):
            signal.signal(signal.SIGTERM, listen)  # as a plugin may
        assert signal.getsignal(signal.SIGTERM) is listen
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with guard.outlived(tmp_path):
            pass
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vanishes", "silent"])
def test_a_search_gets_past_a_strategy_that_ends_the_process(strategy: str, tmp_path: Path, faulty: Path) -> None:
    """The same command, again and again, as a person or a supervisor would start it."""
    environment = {**os.environ, "PYTHONPATH": str(faulty), "AUTOML_TL_HOME": str(tmp_path / "home")}
    only = ["--strategy", strategy, "--strategy", "linear-probe", "--backbone", QUICK]
    line = [sys.executable, "-m", "automl_tl.cli", "fit", "digits", "--budget", "200 trials + 30 epochs", *only]
    codes = []
    for _ in range(12):
        done = subprocess.run([*line, "--out", str(tmp_path / "run"), "--json"], env=environment, capture_output=True, text=True)
        codes.append(done.returncode)
        if done.returncode != 7:
            break
    assert codes == [*[7] * (len(codes) - 1), 0], done.stderr
    assert 3 <= len(codes) - 1 <= 2 * (guard.DEATHS + 1), "each of two candidates is tried so often, and then never again"
    trials = json.loads(done.stdout)["trials"]
    failed = [trial["error"] for trial in trials if trial["candidate"]["strategy"] == strategy]
    assert failed
    assert all("starts in a row died in it" in error for error in failed)


def test_what_a_search_is_spared_from_looking_through_does_not_hold_what_trials_leave() -> None:
    class Knot:
        """Refers to itself, as hooks and their modules do."""

        def __init__(self) -> None:
            self.itself = self

    before = gc.get_freeze_count()
    with settled():
        assert gc.get_freeze_count() > 100_000, "torch alone is more"
        left = weakref.ref(Knot())
        release_memory()
        assert left() is None
    assert (gc.get_freeze_count() > 0) == (before > 0), "elsewhere garbage is collected as it was"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_trials(tmp_path: Path) -> None:
    import psutil

    def seen(trials: int) -> float:
        for _ in range(trials):
            one("fine-tuning", tmp_path / str(time.monotonic_ns()), epochs=1)
        gc.collect()
        return float(psutil.Process().memory_info().rss) / 2**20

    seen(5)  # caches, threads, allocators
    before = seen(5)
    weights = catalogue()[QUICK].params * 4 / 2**20
    assert seen(20) - before < 5 * weights, "a model, its gradients and its moments would be 80 times the weights by now"


def test_a_batch_that_is_too_large_is_halved_and_it_is_said(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trial = one("hungry", tmp_path)
    start = "hungry on resnet10t_24.omniglot_a_64: memory runs out with"
    assert [str(one.message).split(", whose")[0] for one in said] == [
        f"{start} 32 images at once; goes on with 16",
        f"{start} 16 images at once; goes on with 8",
    ]
    assert {one.category for one in said} == {TrialWarning}
    assert trial.status == "finished"
    assert trial.provenance["pieces"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrialWarning)
        starved = one("starving", tmp_path / "other")
    assert starved.error.startswith("starving: memory runs out with 2 images at once: [enforce fail at alloc_cpu.cpp:118]")


def test_the_gradient_of_the_pieces_is_that_of_the_batch() -> None:
    """Of a network without batch norm; in float64, as the sums are in another order."""
    torch.manual_seed(0)
    net = Classifier(nn.Flatten(), nn.Linear(12, 3)).double()
    strategy = registry.strategies()["sound"]({"batch_size": 16}, replace(catalogue()[QUICK], num_features=12))
    from automl_tl import Batch

    batch = Batch(torch.randn(11, 3, 2, 2, dtype=torch.float64), torch.arange(11) % 3)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    parts = loop.Parts(net, None, optimiser, torch.amp.GradScaler("cpu", enabled=False), torch.float32)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for pieces in (1, 2, 4, 64):
        loss = loop._in_pieces(strategy, parts, batch, pieces)
        found[pieces] = loss, torch.cat([parameter.grad.flatten() for parameter in net.parameters()])  # type: ignore[union-attr]
    for loss, gradient in found.values():
        torch.testing.assert_close(gradient, found[1][1])
        assert float(loss) == pytest.approx(float(found[1][0]), rel=1e-6)


def test_pieces_of_a_batch_have_all_its_classes() -> None:
    """It lies in the order of the task, class by class: batch norms would see half the classes in each half of it."""
    from automl_tl import Batch

    net = Classifier(nn.Flatten(), nn.Linear(12, 3))
    strategy = registry.strategies()["sound"]({"batch_size": 16}, replace(catalogue()[QUICK], num_features=12))
    plain, seen = strategy.loss, list[set[int]]()
    strategy.loss = lambda model, part: seen.append(set(part.labels.tolist())) or plain(model, part)  # type: ignore
    parts = loop.Parts(net, None, torch.optim.SGD(net.parameters()), torch.amp.GradScaler("cpu", enabled=False), torch.float32)
    loop._in_pieces(strategy, parts, Batch(torch.randn(11, 3, 2, 2), torch.arange(11) // 4), 2)
    assert seen == [{0, 1, 2}, {0, 1, 2}]


def test_images_are_looked_at_in_smaller_batches_where_memory_runs_out() -> None:
    sizes: list[int] = []
    images = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1).repeat(3, axis=3)

    def run(batch: torch.Tensor) -> tuple[torch.Tensor]:
        if len(batch) > 3:
            raise MemoryError
        sizes.append(len(batch))
        return (batch[:, 0, 0, 0] * 2,)

    doubled = torch.cat([values for (values,) in in_batches(images, np.arange(10, 0, -1), 16, run)])
    assert doubled.tolist() == list(range(20, 0, -2))
    assert sizes == [2] * 5
    with pytest.raises(RuntimeError, match="something else"):
        in_batches(images, np.arange(3), 2, lambda batch: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(MemoryError):
        in_batches(images, np.arange(3), 2, lambda batch: (_ for _ in ()).throw(MemoryError()))
    assert not out_of_memory(RuntimeError("shape '[2]' is invalid"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by the kernel of Linux")
def test_a_process_that_the_system_gives_no_more_memory(tmp_path: Path) -> None:
    """A real allocator that is refused: the batch is halved until it fits, and the trial ends well."""
    program = f"""
import resource, sys, warnings
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import psutil, torch
from pathlib import Path
from small import QUICK, digits
from automl_tl import Candidate
from automl_tl.backbones import catalogue
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import run_trial

class Wide(strategies()["fine-tuning"]):
    def loss(self, model, batch):
        torch.empty(len(batch.labels) * 2**24)  # 64 MiB an image
        return super().loss(model, batch)

strategies()["fine-tuning"] = Wide
values = {{**defaults(Wide.space), "epochs": 3, "batch_size": 64}}
def trained(name):
    candidate, folder = Candidate(QUICK, "fine-tuning", values), Path({str(tmp_path)!r}) / name
    return run_trial(digits(), candidate, catalogue()[QUICK], seed=0, folder=folder)[0]
whole = trained("whole")
assert whole.status == "finished" and "pieces" not in whole.provenance, whole.error
warnings.simplefilter("always")
limit = psutil.Process().memory_info().vms + 1500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
trial = trained("limited")
print(trial.status, trial.provenance.get("pieces"), trial.error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, pieces, *error = done.stdout.split()
    assert (status, error) == ("finished", [])
    assert int(pieces) >= 4
    assert "memory runs out with 64 images at once; goes on with 32" in done.stderr


def test_predictions_that_are_no_numbers_are_named() -> None:
    labels, said = np.array([0, 1, 1]), np.full((3, 2), 0.5)
    assert judge(said, labels)["accuracy"] == pytest.approx(1 / 3)
    said[1, 0] = np.nan
    with pytest.raises(InputError, match="the network says nan of image 1 of 3, which is no probability"):
        judge(said, labels)
    with pytest.raises(InputError, match="0 predictions for 0 labels"):
        judge(said[:0], labels[:0])
