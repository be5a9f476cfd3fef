"""How the history grows: import, open, query, learn, and rank 100,000 candidates for a new task, with time and peak memory.

    python benchmarks/scale.py [--json FILE] [--quick]

Synthetic histories of 10,000, 100,000 and 1,000,000 trials: 100 trials a task, 20 tasks a source dataset, the strategies that
are installed with their own spaces, 1,600 networks (about as many as timm has), three points a learning curve, six networks
looked at in each profile. They are written in the form of `history export`, then read by the same functions as a real one; each
step runs in a process of its own, whose peak memory is its figure. Seconds are those of the clock; CPU seconds stand beside
them, for a machine that has other work. Scores follow a formula, so that there is something to learn, and the ranking is judged
by it: the share of the 100,000 candidates that the first choice beats.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _report import arguments, table, write

from automl_tl import registry
from automl_tl.candidates import propose
from automl_tl.cost import CostModel
from automl_tl.experience import Experience
from automl_tl.facts import backbone_facts
from automl_tl.history import BACKBONES, PROFILES, TASKS, TRIALS, open_history
from automl_tl.ranker import Ranker, learn, rank
from automl_tl.records import Backbone, Candidate, Point, Profile, Trial, trial_id

SIZES = (10_000, 100_000, 1_000_000)
TRIALS_A_TASK, TASKS_A_SOURCE, NETWORKS, LOOKED_AT = 100, 20, 1600, 6
RANKED, SETTINGS = 100_000, 21
"""Candidates, and settings of each pair of network and strategy that make so many."""
DOMAINS = ("photographs", "characters", "textures", "scans")
SPEED = 1e10
STEPS = ("import", "open", "query", "learn", "rank")


def network(index: int) -> Backbone:
    """Sources take turns among the domains; sizes from half a million weights to half a billion."""
    domain, params = DOMAINS[index % 4], int(10 ** (5.7 + 3 * ((index * 37) % NETWORKS) / NETWORKS))
    grey = (0.5, 0.5, 0.5)
    facts = (f"net{index:04}", "synthetic", "", f"family{index % 23}", f"{domain}-{index % 12}", domain)
    return Backbone(*facts, (64, 160, 224)[index % 3], grey, grey, "bicubic", 0.9, params, 40 * params, 256, 1000, 0.7, "MIT")


def task_profile(index: int, networks: list[Backbone], seed: int = 0) -> Profile:
    """A task of one of the domains: its own source's networks are close to it, others far."""
    rng = np.random.default_rng((seed, index))
    domain = DOMAINS[(index // TASKS_A_SOURCE) % 4]
    images, classes = int(10 ** rng.uniform(2, 4.5)), int(rng.integers(2, 100))
    meta = {"images": float(images), "classes": float(classes), "images_per_class": images / classes}
    meta |= {name: float(rng.uniform()) for name in ("aspect", "brightness", "contrast", "edges", "imbalance", "variety")}
    distances = {}
    for source, own in {network.source_dataset: network.source_domain for network in networks[:12]}.items():
        far = rng.uniform(10, 30) if own == domain else rng.uniform(60, 120)
        distances[source] = {"frechet": float(far), "mmd2": float(far / 500), "coral": float(far / 1e6)}
    fingerprint = f"{int(rng.integers(1 << 62)):016x}"
    profile = Profile(f"task{index}", fingerprint, meta, distances, {}, 1.0)
    looked = [networks[i] for i in rng.choice(len(networks), LOOKED_AT, replace=False)]
    scores = {b.name: {"logme": quality(profile, b), "knn": 0.5 + quality(profile, b) / 8} for b in looked}
    return Profile(f"task{index}", fingerprint, meta, distances, scores, 1.0)


def quality(profile: Profile, backbone: Backbone) -> float:
    """Of frozen features: the closer the source and the bigger the network, the better."""
    return 1.2 - 0.02 * profile.distances[backbone.source_dataset]["frechet"] + 0.3 * (float(np.log10(backbone.params)) - 7)


def truth(profile: Profile, backbone: Backbone, candidate: Candidate) -> float:
    """The score without noise: training more weights pays with many images a class; rates have a best place."""
    plenty = float(np.log10(profile.meta["images_per_class"])) - 1.5
    gain = {"linear-probe": 0.3, "from-scratch": -1.2 + 0.8 * plenty}.get(candidate.strategy, 0.4 + 0.9 * plenty)
    rate = float(candidate.hyperparameters.get("rate", 1e-3))  # type: ignore[arg-type]
    logit = quality(profile, backbone) + gain - 0.25 * (np.log10(rate) + 3) ** 2 - 0.01 * profile.meta["classes"]
    return float(1 / (1 + np.exp(-logit)))


def write_history(folder: Path, trials: int) -> None:
    """A synthetic history in the form of `history export`."""
    folder.mkdir(parents=True)
    networks = [network(index) for index in range(NETWORKS)]
    strategies, rng = registry.strategies(), np.random.default_rng(trials)
    settings: dict[str, list[Candidate]] = {}
    for candidate in propose({networks[0].name: networks[0]}, strategies, seed=0, per_pair=500):
        settings.setdefault(candidate.strategy, []).append(candidate)
    names = sorted(settings)
    provenance = {"command": "synthetic", "date": "2026-01-01T00:00:00+00:00", "hardware": "CPU", "speed": SPEED, "versions": {}}
    with (
        (folder / TASKS).open("w", encoding="utf-8") as tasks,
        (folder / PROFILES).open("w", encoding="utf-8") as profiles,
        (folder / TRIALS).open("w", encoding="utf-8") as lines,
    ):
        tasks.write("fingerprint,name,source_dataset,classes,train,validation,test\n")
        for index in range(trials // TRIALS_A_TASK):
            profile = task_profile(index, networks)
            images, task = int(profile.meta["images"]), profile.fingerprint
            source = f"set{index // TASKS_A_SOURCE}"
            tasks.write(f"{task},{profile.task},{source},{int(profile.meta['classes'])},{images},{images // 5},{images // 5}\n")
            profiles.write(json.dumps(asdict(profile)) + "\n")
            for number in range(TRIALS_A_TASK):  # which is the seed, too: no trial comes twice
                backbone, strategy = networks[rng.integers(NETWORKS)], names[rng.integers(len(names))]
                options = settings[strategy]
                values = options[0 if rng.random() < 0.4 else rng.integers(len(options))].hyperparameters
                candidate = Candidate(backbone.name, strategy, values)
                score = float(np.clip(truth(profile, backbone, candidate) + rng.normal(0, 0.01), 0, 1))
                work = strategies[strategy].cost(backbone, images, values)
                seconds = float(0.05 + 2 * work / SPEED * np.exp(rng.normal(0, 0.1)))
                memory = 300.0 + 16 * backbone.params / 2**20
                curve = tuple(Point(e, seconds * e / 3, 1.0 / e, score * (0.7 + 0.1 * e), memory) for e in (1, 2, 3))
                scores = {"accuracy": score, "log_loss": 1 - score}
                id_ = trial_id(task, candidate, number)
                trial = Trial(id_, task, candidate, number, "finished", curve, scores, scores, seconds, memory)
                facts = {**vars(trial), "candidate": vars(candidate), "curve": [vars(point) for point in curve]}
                lines.write(json.dumps({**facts, "provenance": provenance}) + "\n")
    (folder / BACKBONES).write_text("".join(json.dumps(backbone_facts(b)) + "\n" for b in networks), encoding="utf-8")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def do_import(folder: Path) -> dict[str, float]:
    with open_history(folder / "history.db") as history:
        seconds, counts = timed(lambda: history.import_facts(folder / "text"))
    return {"import_seconds": seconds, "trials": counts["trials"]}


def do_open(folder: Path) -> dict[str, float]:
    seconds, history = timed(lambda: open_history(folder / "history.db"))
    with history:
        return {"open_seconds": seconds}


def do_query(folder: Path) -> dict[str, float]:
    """The newest trials of a task, and those of all tasks, as `history list` asks; the counts; what the ranker's cache asks."""
    with open_history(folder / "history.db") as history:
        tasks = list(history.tasks())
        chosen = np.random.default_rng(0).choice(len(tasks), 50)
        of_task = [timed(lambda task=tasks[i]: history.find(task=task, limit=20))[0] for i in chosen.tolist()]
        newest = [timed(lambda: history.find(limit=20))[0] for _ in range(10)]
        summary, _ = timed(history.summary)
        digest, _ = timed(history.digest)
    medians = {"query_ms": 1e3 * float(np.median(of_task)), "newest_ms": 1e3 * float(np.median(newest))}
    return {**medians, "summary_ms": 1e3 * summary, "digest_ms": 1e3 * digest}


def do_learn(folder: Path) -> dict[str, float]:
    """From the open database to a ranker and cost models."""
    with open_history(folder / "history.db") as history:
        reading, experience = timed(lambda: Experience.of(history))
    learning, ranker = timed(lambda: learn(experience))
    costs, _ = timed(lambda: CostModel.learn(experience, strategies=registry.strategies(), speed=SPEED))
    if ranker is None:
        raise SystemExit("nothing was learnt")
    ranker.save(folder / "ranker")
    return {"learn_seconds": reading + learning + costs, "reading_seconds": reading, "cost_seconds": costs}


def do_rank(folder: Path) -> dict[str, float]:
    """For a task that is not in the history; everything is loaded before."""
    with open_history(folder / "history.db") as history:
        loading, experience = timed(lambda: Experience.of(history))
    strategies = registry.strategies()
    costs = CostModel.learn(experience, strategies=strategies, speed=SPEED)
    reading, ranker = timed(lambda: Ranker.load(folder / "ranker"))
    networks = {(b := network(index)).name: b for index in range(NETWORKS)}
    profile = task_profile(10**6, list(networks.values()), seed=1)
    proposing, candidates = timed(lambda: propose(networks, strategies, seed=0, per_pair=SETTINGS)[:RANKED])
    if len(candidates) < RANKED:
        raise SystemExit(f"only {len(candidates)} candidates")
    taken = []
    for _ in range(5):
        seconds, ranking = timed(lambda: rank(ranker, candidates, profile, networks, costs, strategies=strategies, stage=1))
        taken.append(seconds)
    scores = np.array([truth(profile, networks[c.backbone], c) for c in candidates])
    first = truth(profile, networks[ranking.items[0].candidate.backbone], ranking.items[0].candidate)
    return {
        "rank_seconds": float(np.median(taken)),
        "rank_first_seconds": taken[0],
        "propose_seconds": proposing,
        "load_seconds": loading + reading,
        "beaten": float((scores <= first).mean()),
    }


DO = {"import": do_import, "open": do_open, "query": do_query, "learn": do_learn, "rank": do_rank}


def step(name: str, folder: Path) -> dict[str, float]:
    """One step in a process of its own; its figures and its peak memory in GB."""
    line = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(trials: int, folder: Path) -> dict[str, float]:
    """All steps at one size."""
    write_history(folder / "text", trials)
    found: dict[str, float] = {}
    for name in STEPS:
        figures = step(name, folder)
        found |= {**figures, f"{name}_gb": figures["peak_gb"], f"{name}_cpu_seconds": figures["cpu_seconds"]}
        print(f"{trials} trials, {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)
    found["database_gb"] = (folder / "history.db").stat().st_size / 1e9
    return found


def name_of(trials: int) -> str:
    return f"{trials // 1_000_000}m" if trials >= 1_000_000 else f"{trials // 1000}k"


def main() -> None:
    parser = arguments(__doc__, "1,000 and 10,000 trials")
    parser.add_argument("--step", choices=STEPS, help="one step alone, in this process (used by the program itself)")
    parser.add_argument("--folder", type=Path, help="of the one step; or where to keep the synthetic histories")
    options = parser.parse_args()
    if options.step:
        figures = DO[options.step](options.folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({**figures, "peak_gb": used.ru_maxrss * 1024 / 1e9, "cpu_seconds": used.ru_utime + used.ru_stime}))
        return
    sizes = (1000, 10_000) if options.quick else SIZES
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for trials in sizes:
            found[trials] = measure(trials, Path(folder) / name_of(trials))
    last = found[sizes[-1]]
    rows = [
        (key, *(f"{found[trials][key]:.3g}" for trials in sizes))
        for key in last
        if key not in ("trials", "peak_gb", "cpu_seconds")
    ]
    table("A history of so many trials", ("figure", *(name_of(trials) for trials in sizes)), rows)
    figures: dict[str, float] = {}
    for trials, all_ in found.items():
        size = name_of(trials)
        for key in ("import_seconds", "learn_seconds"):
            figures[key.replace("seconds", f"{size}_seconds")] = all_[key]
        figures[f"import_{size}_gb"], figures[f"learn_{size}_gb"] = all_["import_gb"], all_["learn_gb"]
    figures |= {"open_seconds": last["open_seconds"], "query_ms": last["query_ms"], "summary_ms": last["summary_ms"]}
    figures |= {"rank_100k_seconds": last["rank_seconds"], "rank_100k_gb": last["rank_gb"], "rank_100k_beaten": last["beaten"]}
    write(options.json, figures)


if __name__ == "__main__":
    main()
