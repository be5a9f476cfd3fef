"""What training will cost: seconds and peak memory, learnt from the history and scaled to this machine."""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PLUGIN_FAULTS, PluginError
from .experience import Experience, distinct
from .facts import is_number
from .home import home, write_text
from .learning import predict_by
from .records import Backbone, Candidate
from .registry import PluginWarning
from .space import Value, defaults

if TYPE_CHECKING:
    import torch

    from .strategy import Strategy

WORKLOAD = 1
"""Version of what `calibrate` runs: speeds of another version are not comparable."""
FEWEST, MOST = 30, 50_000
"""Trials: with fewer, formulas; more do not make the prediction better."""
OVERHEAD = 2.0
"""Without history: training reaches half of the calibrated speed (batches are prepared, scores taken)."""
MEASUREMENTS = 5
DEPTHWISE = ("convnext", "efficientnet", "ghostnet", "mcunet", "mnasnet", "mobilenet", "proxyless", "xception")
"""How families begin whose networks a processor does not train in bf16; see `device.precision`, which looks into the network."""
_CALIBRATED: dict[tuple[Path, str], float] = {}
START_SECONDS = 0.2
START_MB = 400.0
_LEARNING = {
    "objective": "regression_l1",
    "learning_rate": 0.15,
    "num_leaves": 15,
    "min_data_in_leaf": 5,
    "lambda_l2": 1.0,
    "feature_fraction": 0.8,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class CostModel:
    """Predicts seconds and memory: multiply-adds over speed, corrected by what the history says of such work."""

    speed: float
    """Of this machine in fp32, in multiply-adds a second."""
    strategies: Mapping[str, type[Strategy]]
    known: tuple[str, ...] = ()
    """Strategies of the history, in the order of their codes."""
    seconds: Any = None
    """LightGBM booster of log(seconds · speed / multiply-adds); None: no history."""
    memory: Any = None
    """LightGBM booster of log(MB); None: no history."""
    gain: float = 1.0
    """How many times `speed` this machine reaches with networks that it trains in bf16."""

    @classmethod
    def learn(
        cls, experience: Experience, *, strategies: Mapping[str, type[Strategy]], speed: float | None = None, seed: int = 0
    ) -> CostModel:
        """Fit both models to the finished trials; `speed`, where it is given, is that of all networks, else this machine's."""
        here, gain = (speed, 1.0) if speed is not None else (calibrate(), bf16_gain())
        trials = experience.trials
        rows = np.flatnonzero((trials.seconds > 0) & np.isfinite(trials.speed) & (trials.speed > 0))
        if len(rows) < FEWEST:
            return cls(here, strategies, gain=gain)
        if len(rows) > MOST:
            rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
        candidates = [Candidate(trials.backbone[i], trials.strategy[i], trials.hyperparameters[i]) for i in rows.tolist()]
        known = tuple(sorted({candidate.strategy for candidate in candidates}))
        work, features = _describe(candidates, trials.images[rows], experience.backbones, strategies, known)
        inefficiency = np.log(trials.seconds[rows] * trials.speed[rows] / work)
        measured = trials.memory_mb[rows] > 0
        enough = measured.sum() >= FEWEST
        memory = _fit(features[measured], np.log(trials.memory_mb[rows][measured]), seed) if enough else None
        return cls(here, strategies, known, _fit(features, inefficiency, seed), memory, gain)

    def predict(
        self, candidates: Sequence[Candidate], images: float, backbones: Mapping[str, Backbone]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each candidate, for `images` training images: median seconds on this machine, peak memory in MB, and what the
        seconds amount to in multiply-adds at full speed, which depends on no clock."""
        count = np.full(len(candidates), images, dtype=np.float64)
        work, features = _describe(candidates, count, backbones, self.strategies, self.known)
        gains = {name: self.gain if _in_bf16(backbone) else 1.0 for name, backbone in backbones.items()}
        speed = self.speed * np.array([gains[candidate.backbone] for candidate in candidates])
        if self.seconds is None:
            work *= OVERHEAD
            seconds = START_SECONDS + work / speed
        else:
            work *= np.exp(predict_by(self.seconds, features))
            seconds = work / speed
        memory = _memory_formula(features) if self.memory is None else np.exp(predict_by(self.memory, features))
        return seconds, memory, work


def _fit(features: np.ndarray, target: np.ndarray, seed: int) -> Any:
    import lightgbm

    data = lightgbm.Dataset(features, target, categorical_feature=[len(_FACTS)], free_raw_data=True)
    return lightgbm.train({**_LEARNING, "min_data_per_group": 5, "seed": seed}, data, num_boost_round=_ROUNDS)


_FACTS = ("work", "images", "epochs", "batch_size", "params", "macs", "input_size", "num_features", "passes")


def _describe(
    candidates: Sequence[Candidate],
    images: np.ndarray,
    backbones: Mapping[str, Backbone],
    strategies: Mapping[str, type[Strategy]],
    known: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Multiply-adds of each candidate (n), and what its cost is predicted from (n × facts and the strategy's code)."""
    work = _multiply_adds(candidates, images, backbones, strategies)
    numbers = {name: (b.params, b.macs, b.input_size, b.num_features) for name, b in backbones.items()}
    codes = {name: float(code) for code, name in enumerate(known)}
    features = np.empty((len(candidates), len(_FACTS) + 1))
    features[:, 0], features[:, 1] = work, images
    settings, setting = distinct([candidate.hyperparameters for candidate in candidates])
    for column, name in ((2, "epochs"), (3, "batch_size")):
        features[:, column] = np.array([_number(values.get(name, np.nan)) for values in settings])[setting]
    features[:, 4:8] = [numbers[candidate.backbone] for candidate in candidates]
    features[:, 8] = work / np.maximum(features[:, 5] * images, 1.0)  # which tells settings of a strategy without epochs apart
    features[:, 9] = [codes.get(candidate.strategy, np.nan) for candidate in candidates]
    return work, features


def _multiply_adds(
    candidates: Sequence[Candidate],
    images: np.ndarray,
    backbones: Mapping[str, Backbone],
    strategies: Mapping[str, type[Strategy]],
) -> np.ndarray:
    """`Strategy.cost` of each; the usual formula where a strategy is not installed or its own fails."""
    plain = {name: defaults(strategy.space) for name, strategy in strategies.items()}
    complete: dict[tuple[str, int], dict[str, Value]] = {}  # many candidates share their hyperparameters
    work = np.empty(len(candidates))
    failed: set[tuple[str, int]] = set()
    named: set[str] = set()
    for row, (candidate, count) in enumerate(zip(candidates, images.astype(int).tolist(), strict=True)):
        backbone, name, values = backbones[candidate.backbone], candidate.strategy, candidate.hyperparameters
        key = (name, id(values))
        if name in plain and key not in failed:
            if key not in complete:
                complete[key] = {**plain[name], **values}
            try:
                work[row] = multiply_adds(strategies[name], backbone, count, complete[key])
                continue
            except PluginError as error:  # it is named, and the usual formula stands in for these values alone
                failed.add(key)
                if name not in named:
                    warnings.warn(str(error), PluginWarning, stacklevel=2)
                named.add(name)
        work[row] = _usual_cost(backbone, count, values)
    return np.maximum(np.nan_to_num(work), 1.0)


def multiply_adds(strategy: type[Strategy], backbone: Backbone, images: int, values: Mapping[str, Value]) -> float:
    """What `Strategy.cost` says.

    Raises:
        PluginError: it fails, or says no amount of work: such a candidate would pass for free, or for endless.
    """
    try:
        found = float(strategy.cost(backbone, images, values))
        if not (0 < found < np.inf or found == 0 == images * backbone.macs):
            raise ValueError(f"it gave {found}")
    except PLUGIN_FAULTS as error:
        words = f"{type(error).__name__}: {error}; expected multiply-adds above 0"
        raise PluginError(f"cost of strategy {strategy.name!r} failed: {words}") from error
    return found


def _usual_cost(backbone: Backbone, images: int, values: Mapping[str, Value]) -> float:
    """What `Strategy.cost` says by default; of the default number of epochs where `values` has none that is a number."""
    from .strategy import Strategy

    epochs = _number(values.get("epochs", np.nan))
    return Strategy.cost(backbone, images, {"epochs": epochs} if np.isfinite(epochs) else {})


def _number(value: Value) -> float:
    """NaN, which LightGBM takes for unknown, where `value` is no number that a double holds: a batch size may be "full"."""
    return float(value) if is_number(value) else np.nan


def _memory_formula(features: np.ndarray) -> np.ndarray:
    """Weights, gradients and two moments in fp32, and for each image of a batch about a float for every 30 multiply-adds."""
    batch = np.nan_to_num(features[:, 3], nan=32.0)
    return np.asarray(START_MB + 4 * (4 * features[:, 4] + batch * features[:, 5] / 30) / 2**20)


def speed_for(backbone: Backbone) -> float:
    """This machine's speed with networks such as this one: `calibrate`, times `bf16_gain` for those that it trains in bf16."""
    return calibrate() * (bf16_gain() if _in_bf16(backbone) else 1.0)


def _in_bf16(backbone: Backbone) -> bool:
    return not backbone.family.startswith(DEPTHWISE)


def calibrate(*, seconds: float = 0.1) -> float:
    """This machine's speed: multiply-adds a second of training a small convolution in fp32.

    One forward and backward pass of a 3×3 convolution, 64 → 64 channels, on 8×64×32×32; the fastest tenth of as many as
    fit into `seconds`. What else the machine was doing at that moment should not count for ever: each of the first
    `MEASUREMENTS` processes measures anew, and the home keeps the fastest, for each device, processor, number of threads and
    version of torch. Within a process the answer stays.
    """
    import torch

    work = 3 * 8 * 32 * 32 * 64 * 64 * 9
    return _kept("", lambda: work / _measure(torch.nn.Conv2d(64, 64, 3, padding=1), torch.float32, seconds), max)


def bf16_gain(*, seconds: float = 0.08) -> float:
    """How many times as fast this machine trains in bf16, if it is a processor with instructions for it; else 1.

    Of the same convolution with batch norm and ReLU, which gain as whole networks do; a bare one gains more. Each of the first
    `MEASUREMENTS` processes measures anew, and the median counts.
    """
    import torch

    from .device import multiplies_bf16

    if not multiplies_bf16():
        return 1.0
    block = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.nn.ReLU())
    return _kept(
        ", gain of bf16",
        lambda: _measure(block, torch.float32, seconds) / _measure(block, torch.bfloat16, seconds),
        lambda found: float(np.median(found)),
    )


def _kept(what: str, measure: Callable[[], float], choose: Callable[[list[float]], float]) -> float:
    """Of what was measured of this machine until now, by this process or earlier ones, what is to be believed."""
    import torch

    from .device import hardware

    path = home() / "speed.json"
    key = f"{hardware()}, {_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, workload {WORKLOAD}{what}"
    if (path, key) not in _CALIBRATED:
        known = _measured(path)
        found = known.get(key, [])
        if len(found) < MEASUREMENTS:
            known[key] = found = [*found, measure()]
            write_text(path, json.dumps(known, indent=1))
        _CALIBRATED[path, key] = choose(found)
    return _CALIBRATED[path, key]


def _measured(path: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: [float(number) for number in numbers] for key, numbers in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: it is measured anew
        return {}


def _measure(layer: torch.nn.Module, dtype: torch.dtype, seconds: float) -> float:
    """Seconds of a forward and a backward pass: the fastest tenth."""
    import torch

    from .device import autocast, device

    layer.to(device())
    images = torch.ones(8, 64, 32, 32, device=device(), requires_grad=True)

    def run() -> None:
        with autocast(dtype):
            result = layer(images)
        result.sum().backward()
        if images.device.type != "cpu":
            torch.accelerator.synchronize()

    taken: list[float] = []
    for _ in range(3):  # the first passes choose algorithms and fill caches
        run()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 3:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.quantile(taken, 0.1))


def _processor() -> str:
    """The processor's model, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or os.name
