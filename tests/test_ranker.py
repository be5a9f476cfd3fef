"""Advice on a world whose truth is known: it beats simpler ways, is honest about what it does not know, and says why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import SPEED, STRATEGIES, World, make_backbone, without

from automl_tl import learning
from automl_tl.candidates import propose
from automl_tl.cost import CostModel
from automl_tl.encoding import Column, Encoder
from automl_tl.experience import Experience, Rows
from automl_tl.explain import Picture, explain
from automl_tl.learning import Line, _conformal, _sample
from automl_tl.ranker import Ranker, learn, rank, ranker_for, shortlist
from automl_tl.records import Candidate, Profile, Ranking
from automl_tl.space import Float
from automl_tl.strategy import Strategy


class Foreign(Strategy):
    """Of a third party; no trial of it is known."""

    name = "foreign"
    space = {"strength": Float(0.0, 1.0, 0.5)}


@pytest.fixture(scope="module")
def world() -> World:
    return World(sources=10, tasks_each=2, trials=25)


@pytest.fixture(scope="module")
def fresh() -> World:
    """Tasks of sources that the history does not know, with the same networks."""
    return World(sources=8, tasks_each=2, trials=30, seed=7)


@pytest.fixture(scope="module")
def ranker(world: World) -> Ranker:
    found = learn(world.experience)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def costs(world: World) -> CostModel:
    return CostModel.learn(world.experience, strategies=STRATEGIES, speed=SPEED)


def advise(ranker: Ranker | None, world: World, profile: Profile, costs: CostModel, *, stage: int = 2) -> Ranking:
    candidates = propose(world.backbones, STRATEGIES, seed=1)
    return rank(ranker, candidates, profile, world.backbones, costs, strategies=STRATEGIES, stage=stage)


def regret(world: World, profile: Profile, order: list[Candidate]) -> float:
    truth = [world.truth(profile, candidate) for candidate in order]
    return max(truth) - truth[0]


def test_the_first_choice_beats_the_best_on_average(world: World, fresh: World, ranker: Ranker, costs: CostModel) -> None:
    candidates = propose(world.backbones, STRATEGIES, seed=1)
    average = [np.mean([world.truth(profile, c) for profile in world.profiles.values()]) for c in candidates]
    standing = [candidates[i] for i in np.argsort(average)[::-1]]
    simple, first, second = [], [], []
    for profile in fresh.profiles.values():
        simple.append(regret(fresh, profile, standing))
        by_metadata = advise(ranker, world, without(profile), costs, stage=1)
        first.append(regret(fresh, profile, [item.candidate for item in by_metadata.items]))
        second.append(regret(fresh, profile, [item.candidate for item in advise(ranker, world, profile, costs).items]))
    assert np.mean(first) < 0.5 * np.mean(simple)
    assert np.mean(second) < 0.5 * np.mean(simple)
    assert np.mean(second) < 0.05


def test_nine_in_ten_lie_in_their_interval(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    trials = fresh.experience.trials
    covered = []
    for task, profile in fresh.profiles.items():
        rows = np.flatnonzero(trials.task == task)
        tried = [Candidate(trials.backbone[i], trials.strategy[i], trials.hyperparameters[i]) for i in rows]
        ranking = rank(ranker, tried, profile, fresh.backbones, costs, strategies=STRATEGIES, stage=2)
        scores = {candidate.id: trials.score[i] for i, candidate in zip(rows, tried, strict=True)}
        covered += [item.low <= scores[item.candidate.id] <= item.high for item in ranking.items]
    assert 0.8 <= np.mean(covered) <= 0.97


def test_residual_bounds_by_hand() -> None:
    residuals = np.arange(99, dtype=float)
    low, high = _conformal(residuals, np.ones(99), 99)
    assert (low, high) == (4.0, 94.0)  # 5 of 100 places lie below, 5 above


@pytest.mark.parametrize("tasks", [5, 20, 45])
def test_bounds_hold_for_the_trials_of_another_task(tasks: int) -> None:
    """What trials of a task have in common is not drawn anew with each of them."""
    rng = np.random.default_rng(tasks)
    covered = []
    for _ in range(300):
        common = rng.normal(size=tasks + 1)
        low, high = _conformal((common[:-1, None] + 0.4 * rng.normal(size=(tasks, 30))).ravel(), np.ones(tasks * 30), tasks)
        others = common[-1] + 0.4 * rng.normal(size=30)
        covered.append(((low <= others) & (others <= high)).mean())
    assert 0.83 <= np.mean(covered) <= 0.95, "with five, there is nothing wider than the extremes"


def test_beyond_all_known_tasks_intervals_are_wider_and_it_is_said(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    profile = next(iter(fresh.profiles.values()))
    most = ranker.sizes["images"][1]
    within = replace(profile, meta={**profile.meta, "images": most})
    plain, huge = (advise(ranker, fresh, replace(within, meta={**within.meta, "images": most + n}), costs) for n in (0, 1))
    assert plain.basis == "500 trials over 20 tasks"
    assert huge.basis.startswith("500 trials over 20 tasks; none with so many images")
    before = {item.candidate: item.high - item.low for item in plain.items if item.low > 0 and item.high < 1}
    after = {item.candidate: item.high - item.low for item in huge.items}
    assert all(after[candidate] > 1.2 * width for candidate, width in before.items())


def test_scores_fall_down_the_ranking_and_are_plausible(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    ranking = advise(ranker, fresh, next(iter(fresh.profiles.values())), costs)
    scores = [item.score for item in ranking.items]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= item.low <= item.score <= item.high <= 1 for item in ranking.items)
    assert all(item.seconds > 0 and item.memory_mb > 0 for item in ranking.items)
    assert ranking.basis == "500 trials over 20 tasks"


def test_learning_is_deterministic(world: World, fresh: World, ranker: Ranker, costs: CostModel) -> None:
    again = learn(world.experience)
    profile = next(iter(fresh.profiles.values()))
    assert advise(again, fresh, profile, costs).items == advise(ranker, fresh, profile, costs).items


def test_a_saved_ranker_advises_the_same(fresh: World, ranker: Ranker, costs: CostModel, tmp_path: Path) -> None:
    ranker.save(tmp_path / "ranker")
    loaded = Ranker.load(tmp_path / "ranker")
    assert sorted({path.suffix for path in (tmp_path / "ranker").iterdir()}) == [".json", ".txt"]
    assert (loaded.digest, loaded.trials, loaded.tasks, loaded.sizes) == (ranker.digest, 500, 20, ranker.sizes)
    for profile in list(fresh.profiles.values())[:3]:
        for stage in (1, 2):
            before, after = (advise(r, fresh, profile, costs, stage=stage) for r in (ranker, loaded))
            assert before.items == after.items


def test_a_ranker_is_learnt_once_for_a_history(world: World, tmp_path: Path) -> None:
    small = world.experience.take(np.arange(60))
    first = ranker_for(small, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.txt")}
    second = ranker_for(small, tmp_path)
    assert first is not None
    assert second is not None
    assert first.digest == second.digest == small.digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.txt")} == written
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("ranker.json", lambda text: ""),
        ("ranker.json", lambda text: "{}"),
        ("*-order.txt", lambda text: ""),
        ("*-order.txt", lambda text: text.replace("leaf_value=", "")),
        ("*-order.txt", None),
    ],
)
def test_a_ranker_that_is_damaged_is_learnt_anew(
    world: World, tmp_path: Path, pattern: str, damage: Callable[[str], str] | None, capfd: pytest.CaptureFixture[str]
) -> None:
    small = world.experience.take(np.arange(60))
    ranker_for(small, tmp_path)
    kept = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    for path in tmp_path.rglob(pattern):
        if damage is None:
            path.unlink()
        else:
            path.write_text(damage(kept[path]))
    again = ranker_for(small, tmp_path)
    assert again is not None
    assert {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()} == kept
    assert "Fatal" not in "".join(capfd.readouterr())


def test_a_second_task_may_have_one_trial_alone(world: World, fresh: World, costs: CostModel) -> None:
    """All that is known where the first is left out."""
    first, second = np.unique(world.experience.trials.task.astype(str))[[0, -1]]
    rows = [np.flatnonzero(world.experience.trials.task == name)[:count] for name, count in ((first, 19), (second, 1))]
    ranker = learn(world.experience.take(np.concatenate(rows)))
    assert ranker is not None
    assert (ranker.trials, ranker.tasks) == (20, 2)
    best = advise(ranker, fresh, next(iter(fresh.profiles.values())), costs).items[0]
    assert 0 <= best.low <= best.score <= best.high <= 1


def test_a_part_of_a_history_has_a_ranker_of_its_own(world: World, tmp_path: Path) -> None:
    """Also where the whole's digest is as long as that of a real history."""
    whole = replace(world.experience.take(np.arange(100)), digest="0123456789abcdef" * 2)
    parts = [whole, whole.take(np.arange(50)), whole.take(np.arange(50, 100))]
    rankers = [ranker_for(part, tmp_path) for part in parts]
    assert [ranker.digest for ranker in rankers if ranker is not None] == [part.digest for part in parts]
    again = ranker_for(parts[1], tmp_path)
    assert again is not None
    assert again.digest == parts[1].digest


def test_of_many_rankers_those_that_were_used_last_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history that grows has another ranker after each trial."""
    monkeypatch.setattr("automl_tl.ranker.KEPT", 2)
    parts = [world.experience.take(np.arange(count)) for count in (40, 50, 60)]

    def kept() -> int:
        return sum(path.is_dir() for path in tmp_path.iterdir())

    ranker_for(parts[0], tmp_path)
    (first,) = (path for path in tmp_path.iterdir() if path.is_dir())
    ranker_for(parts[1], tmp_path)
    long_ago = 1e9
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    ranker_for(parts[0], tmp_path)
    ranker_for(parts[2], tmp_path)
    assert kept() == 2
    assert first.is_dir(), "it was used after the second"


def test_of_two_sources_no_trial_sees_its_own_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the one, the trials of the other are all that is known: their record says nothing of themselves."""
    seen: list[np.ndarray] = []

    def fit(table: np.ndarray, lessons: Any, encoder: Encoder, columns: tuple[int, ...], seed: int) -> learning.Boosters:
        seen.append(table[:, encoder.find("record")])
        return original(table, lessons, encoder, columns, seed)

    original = learning._fit
    monkeypatch.setattr(learning, "_fit", fit)
    experience = World(sources=2, tasks_each=3, trials=20).experience
    learning.learn_stages(experience, seed=0)
    assert sorted(map(len, seen)) == [60, 60, 60, 60, 120, 120]
    for records in seen:
        assert records.any() == (len(records) == 120), "the other source tells of it, once that is known"


def test_a_trial_of_today_changes_the_advice_of_tomorrow(world: World, fresh: World, costs: CostModel) -> None:
    """Once tasks are known on which one network alone did well, it is advised for tasks like them."""
    profile = next(iter(fresh.profiles.values()))
    trials = world.experience.trials
    favoured = np.where(trials.backbone == "net00", 0.99, np.minimum(trials.score, 0.6))
    turned = Experience(replace(trials, score=favoured), world.profiles, world.backbones, "turned")
    ranking = advise(learn(turned), world, profile, costs)
    assert ranking.items[0].candidate.backbone == "net00"


def test_reasons_name_what_drives_the_score(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    for profile in fresh.profiles.values():
        ranking = advise(ranker, fresh, profile, costs)
        text = " ".join(ranking.items[0].reasons)
        assert "frechet" in text or "looked at" in text
        assert all(len(item.reasons) <= 3 for item in ranking.items)
        assert not any(item.reasons for item in ranking.items[20:])


def test_reasons_are_the_largest_contributions_in_words_and_true_numbers() -> None:
    backbone = make_backbone(3)
    scores = {backbone.name: {"knn": 0.91}, "net01": {"knn": 0.7}, "net02": {"knn": 0.95}, "net05": {"knn": 0.5}}
    distances = {backbone.source_dataset: {"frechet": 84.0}, "cats": {"frechet": 31.0}}
    profile = Profile("digits", "f", {"images_per_class": 12.0}, distances, scores)
    about = (("transferability", "knn"), ("distance", "frechet"), ("hyperparameter", "rate"), ("task", "images_per_class"))
    columns = [Column(*names) for names in about]
    candidate = Candidate(backbone.name, "tuning", {"rate": 0.02})
    picture = Picture(candidate, backbone, profile, columns, np.array([0.5, -0.9, 0.01, 0.2]), np.array([0.91, 84, 0.02, 12]))
    assert explain(picture) == (
        f"but the closeness of its source, {backbone.source_dataset}, speaks against it (frechet 84 against 31 for cats)",
        "its features suit your classes well (knn 0.91, 2nd best of 4 looked at)",
        "your images speak for tuning with this network (images per class 12)",
    )


def test_what_was_never_tried_has_no_record() -> None:
    backbone = make_backbone(3)
    columns = [Column("record", name, "all") for name in ("backbone", "family", "source dataset")]
    values, pulls = np.array([0.0, 0.0, 0.25]), np.array([-0.5, 0.3, 0.2])
    told = [
        explain(Picture(Candidate(backbone.name, "tuning", {}), backbone, Profile("t", "f", {}, {}, {}), *one))
        for one in (([columns[i]], pulls[i : i + 1], values[i : i + 1]) for i in range(3))
    ]
    assert told == [
        ("but this network was never tried, which speaks against it",),
        (f"networks of its family ({backbone.family}) were never tried, which speaks for it",),
        (f"in earlier tasks networks pretrained on {backbone.source_dataset} did better than 75 % of what was tried",),
    ]


def test_without_a_look_the_closeness_of_the_source_is_the_reason(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    told = [advise(ranker, fresh, without(profile), costs, stage=1).items[0].reasons for profile in fresh.profiles.values()]
    assert sum("frechet" in " ".join(reasons) for reasons in told) >= len(told) / 2


def test_the_line_speaks_for_all_that_stand_above_the_others(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    """Here it says more than all else. Two networks take all the first places, and it puts both of them there."""
    encoder, stage = ranker.learnt.encoder, ranker.learnt.stages[2]
    column = stage.columns.index(encoder.columns.index(Column("transferability", "linear-probe")))
    boosters = replace(stage.boosters, line=Line(column, 50.0, share=True))
    steep = replace(ranker, learnt=replace(ranker.learnt, stages={2: replace(stage, boosters=boosters)}))
    ahead = {"net03": 0.9, "net07": 0.95}
    looked = {name: {"linear-probe": ahead.get(name, 0.2)} for name in fresh.backbones}
    profile = replace(next(iter(fresh.profiles.values())), transferability=looked)
    explained = advise(steep, fresh, profile, costs).items[:20]
    assert {item.candidate.backbone for item in explained} == set(ahead)
    assert all(item.reasons[0].startswith("its features suit your classes well") for item in explained)


def test_a_hyperparameter_may_have_any_name(fresh: World) -> None:
    """Also that of a column: a plugin's `strategy` is not which strategy it is."""
    (profile, *_), backbones = fresh.profiles.values(), list(fresh.backbones.values())[:1]
    values: list[dict[str, Any]] = [{"strategy": "wide"}, {"strategy": "deep"}, {}]
    place = np.zeros(3, dtype=np.int64)
    rows = Rows([profile], place, backbones, place, ["one", "one", "other"], values)
    encoder = Encoder.of(rows)
    table = encoder.encode(rows, np.zeros((3, len(encoder.find("record")))))
    assert table[:, encoder.find("strategy")].ravel().tolist() == [0, 0, 1]
    np.testing.assert_array_equal(table[:, encoder.find("hyperparameter")].ravel(), [1, 0, np.nan])


def test_a_strategy_without_trials_is_ranked_with_a_wider_interval(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    profile = next(iter(fresh.profiles.values()))
    candidates = propose(fresh.backbones, STRATEGIES | {"foreign": Foreign}, seed=1)
    ranking = rank(ranker, candidates, profile, fresh.backbones, costs, strategies=STRATEGIES, stage=2)
    widths: dict[bool, list[float]] = {True: [], False: []}
    for item in ranking.items:
        widths[item.candidate.strategy == "foreign"].append(item.high - item.low)
    assert len(ranking.items) == len(candidates)
    assert np.mean(widths[True]) > 1.3 * np.mean(widths[False])


def test_without_history_the_order_is_that_of_transferability(fresh: World, world: World) -> None:
    empty = world.experience.take(np.array([], dtype=np.int64))
    assert learn(empty) is None
    costs = CostModel.learn(empty, strategies=STRATEGIES, speed=SPEED)
    profile = next(iter(fresh.profiles.values()))
    first, second = "net04", "net09"
    looked = {first: {"linear-probe": 0.9, "logme": 2.0}, second: {"linear-probe": 0.8, "logme": 1.0}}
    candidates = propose(fresh.backbones, STRATEGIES, seed=1, only_backbones=looked)
    seen = replace(profile, transferability=looked)
    ranking = rank(None, candidates, seen, fresh.backbones, costs, strategies=STRATEGIES, stage=2)
    assert ranking.basis == "transferability scores only: there is no history to learn from"
    top = [(item.candidate.backbone, item.candidate.strategy) for item in ranking.items[:6]]
    assert top == [(name, strategy) for name in (first, second) for strategy in ("probe", "tuning", "scratch")]
    assert all((item.low, item.high) == (0, 1) for item in ranking.items)
    nearest = rank(None, candidates, without(profile), fresh.backbones, costs, strategies=STRATEGIES, stage=1)
    assert nearest.basis.startswith("closeness of the sources only")
    distances = {name: profile.distances[fresh.backbones[name].source_dataset]["frechet"] for name in looked}
    assert nearest.items[0].candidate.backbone == min(distances, key=lambda name: distances[name])
    farther = max(distances, key=lambda name: distances[name])
    partly = without(replace(profile, distances={fresh.backbones[farther].source_dataset: {"frechet": 90.0}}))
    first_known = rank(None, candidates, partly, fresh.backbones, costs, strategies=STRATEGIES, stage=1)
    assert first_known.items[0].candidate.backbone == farther, "nothing is known of the other's closeness"


def test_the_order_does_not_hang_on_how_fast_the_machine_was_measured(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    """Where predictions are equal, it is the work that counts: networks that train in bf16 gain more here than there."""
    families = {
        name: replace(b, family="resnet" if i % 2 else "mobilenetv2") for i, (name, b) in enumerate(fresh.backbones.items())
    }
    candidates, profile = propose(families, STRATEGIES, seed=1), next(iter(fresh.profiles.values()))
    for advised in (ranker, None):
        orders = [
            [
                item.candidate.id
                for item in rank(advised, candidates, profile, families, here, strategies=STRATEGIES, stage=1).items
            ]
            for here in (costs, replace(costs, gain=20.0))
        ]
        assert orders[0] == orders[1]


def test_the_shortlist_has_the_best_and_several_sources(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    ranking = advise(ranker, fresh, next(iter(fresh.profiles.values())), costs, stage=1)
    order = list(dict.fromkeys(item.candidate.backbone for item in ranking.items))
    names = shortlist(ranking, fresh.backbones, size=6)
    assert len(set(names)) == 6
    assert names[:3] == order[:3]
    assert len({fresh.backbones[name].source_dataset for name in names}) >= 4


def test_a_hundred_thousand_candidates(fresh: World, ranker: Ranker, costs: CostModel) -> None:
    many = {(b := make_backbone(i)).name: b for i in range(2300)}
    candidates = propose(many, STRATEGIES, seed=0, per_pair=22)
    profile = without(next(iter(fresh.profiles.values())))
    start = time.perf_counter()
    ranking = rank(ranker, candidates, profile, many, costs, strategies=STRATEGIES, stage=1)
    print(f"{len(candidates)} candidates ranked in {time.perf_counter() - start:.2f} s")
    assert len(ranking.items) == len(candidates)


@pytest.mark.parametrize("strange", ["full", 10**400, None], ids=["text", "huge", "nothing"])
def test_what_is_no_number_where_the_history_has_numbers_is_a_gap(
    world: World, ranker: Ranker, costs: CostModel, strange: Any
) -> None:
    """Somebody's plugin may offer a text beside numbers; advice on everything else goes on."""
    profile = next(iter(world.profiles.values()))
    candidates = [c for c in propose(world.backbones, STRATEGIES, seed=1) if c.hyperparameters][:5]
    name = next(iter(candidates[0].hyperparameters))
    odd = replace(candidates[0], hyperparameters={**candidates[0].hyperparameters, name: strange})
    ranking = rank(ranker, [odd, *candidates[1:]], profile, world.backbones, costs, strategies=STRATEGIES, stage=2)
    assert len(ranking.items) == 5
    assert all(np.isfinite(item.score) and np.isfinite(item.seconds) for item in ranking.items)


@pytest.mark.parametrize(("tasks", "trials"), [(46, 15_001), (3, 20_000), (300, 30_000), (1, 16_000)])
def test_a_large_history_is_sampled_up_to_the_limit(tasks: int, trials: int) -> None:
    task = np.array([f"task {number % tasks}" for number in range(trials)], dtype=object)
    kept = _sample(task, 15_000, 0)
    assert len(set(kept)) == len(kept) == 15_000
    np.testing.assert_array_equal(kept, _sample(task, 15_000, 0))
    assert not np.array_equal(kept, _sample(task, 15_000, 1))
    counts = np.unique(task[kept], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1 if tasks <= 200 else counts.min() == 75, "a few whole tasks, not a little of all"


def test_a_history_below_the_limit_is_learnt_from_whole() -> None:
    np.testing.assert_array_equal(_sample(np.array(["a", "b"] * 50), 100, 0), np.arange(100))


def test_small_tasks_leave_their_room_to_large_ones() -> None:
    task = np.array(["small"] * 5 + ["large"] * 500)
    kept = _sample(task, 100, 0)
    assert dict(zip(*np.unique(task[kept], return_counts=True), strict=True)) == {"large": 95, "small": 5}
