"""The command line on real images: what people read and what programs parse."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image
from small import QUICK, TINY, arrays

from automl_tl import Candidate, Outcome, Profile, Ranking, Trial, api, cli, steps
from automl_tl.cli import console, findings
from automl_tl.errors import InputError, InputWarning

PHOTOS = 240
EVALUATION = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Command = Callable[..., Said]


def call(capsys: pytest.CaptureFixture[str], words: tuple[object, ...]) -> Said:
    """As typed: through `main`, which turns errors into messages and codes."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["automl-tl", *map(str, words)])
        patch.delenv("AUTOML_TL_DEBUG", raising=False)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    out, err = capsys.readouterr()
    return Said(code, out, err)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *words: call(capsys, words)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train and test, of real handwriting."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (image, label) in enumerate(zip(*arrays(PHOTOS), strict=True)):
        place = folder / ("test" if number >= 200 else "train") / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((24, 24)).save(place / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def home(make_home: Callable[[], Path]) -> Path:
    return make_home()


@pytest.fixture(scope="module")
def run(photos: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, whose history the other tests of this module see."""
    from automl_tl import fit

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(home))
        out = tmp_path_factory.mktemp("run")
        fit(photos, budget="2 trials", out=out, strategies=["linear-probe"], backbones=[TINY, QUICK])
        yield out


@pytest.fixture(autouse=True)
def in_that_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_TL_HOME", str(home))


def test_fit_tells_what_it_does(command: Command, photos: Path, tmp_path: Path) -> None:
    only = ("--strategy", "linear-probe", "--backbone", TINY)
    said = command("fit", photos, "--budget", "1 trials", "--out", tmp_path / "out", *only)
    assert said.code == 0
    assert "10 classes (160 train, 40 validation, 40 test)" in said.out
    assert "Distance to the sources" in said.out
    assert "Advice from" in said.out
    assert "Why 1: " in said.out
    assert "--zoo timm would add" in said.out
    assert f"Winner: linear-probe on {TINY}" in said.out
    assert "\n1 trial to the end, in " in said.out
    assert str(tmp_path / "out" / "report.html") in said.out
    assert "done: accuracy" in said.err


def test_fit_for_programs(command: Command, photos: Path, tmp_path: Path) -> None:
    only = ("--strategy", "linear-probe", "--backbone", TINY)
    (photos / "train" / "1.heic").write_bytes(b"")
    said = command("fit", photos, "--trials", 1, "--out", tmp_path / "out", *only, "--json")
    advice = command("recommend", photos, *only, "--json").facts
    (photos / "train" / "1.heic").unlink()
    assert said.err == ""
    facts = said.facts
    assert facts["warnings"] == advice["warnings"] == ["1 file was left out (.heic): convert to JPEG or PNG"]
    assert facts["winner"]["status"] == "finished"
    assert Path(facts["report"]).exists()
    assert 0 < facts["winner"]["test"]["accuracy"] <= 1


def test_an_interrupted_fit_is_not_taken_for_a_finished_one(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells what there is, and then ends as what was interrupted; to programs, too."""
    trained, first = steps.run_trial, []

    def interrupted(task: object, candidate: Candidate, *rest: Any, **options: Any) -> Any:
        if first:
            raise KeyboardInterrupt
        first.append(candidate)
        return trained(task, candidate, *rest, **options)

    only = ("--strategy", "linear-probe", "--backbone", TINY, "--backbone", QUICK)
    words = ("fit", photos, "--trials", 2, "--out", tmp_path / "out", *only)
    outcomes, whole = [], api.fit

    def watched(*given: Any, **options: Any) -> Outcome:
        outcomes.append(whole(*given, **options))
        return outcomes[-1]

    monkeypatch.setattr(steps, "run_trial", interrupted)
    monkeypatch.setattr(api, "fit", watched)
    said = command(*words)
    assert said.code == 130
    assert "Interrupted: this is the best model so far; the same command resumes the search" in said.out
    assert "Winner: linear-probe on" in said.out
    assert said.err.endswith("error: interrupted; the same command goes on where it stopped\n")
    monkeypatch.setattr(api, "fit", lambda *_, **__: outcomes[0])
    again = command(*words, "--json")
    assert (again.code, json.loads(again.out)["interrupted"]) == (130, True)


@pytest.mark.parametrize(
    ("words", "work", "resumed"),
    [
        (("fit", "digits"), "automl_tl.api.fit", True),
        (("study", "data", "digits"), "automl_tl.study.study_data", True),
        (("history", "build", "plan.json", "--data", "."), "automl_tl.campaign.read_plan", True),
        (("zoo", "pretrain", "recipe.json", "--out", "."), "automl_tl.pretraining.pretrain_recipe", True),
        (("federate", "join", "host:1", "digits", "--strategy", "fedavg"), "automl_tl.remote.join", True),
        (("unfreeze-study", "digits"), "automl_tl.api.study_unfreezing", False),
        (("predict", "run", "photos"), "automl_tl.api.predict", False),
        (("evaluate", "run", "photos"), "automl_tl.api.judge_model", False),
        (("recommend", "digits"), "automl_tl.api.read_task", False),
        (("history", "export", "folder"), "automl_tl.history.open_history", False),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_only_what_goes_on_is_said_to(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], work: str, resumed: bool
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, interrupted)
    said = command(*words)
    assert (said.code, said.out) == (130, "")
    assert said.err == f"error: interrupted{'; the same command goes on where it stopped' if resumed else ''}\n"


def test_what_goes_on_are_commands() -> None:
    assert set(cli.RESUMED) <= set(every_command(typer.main.get_command(cli.app)))


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ((), "10m"),
        (("--budget", "1h"), "1h"),
        (("--trials", 5), "5 trials"),
        (("--budget", "10m", "--trials", 5), "10m + 5 trials"),
    ],
)
def test_a_budget_of_time_and_of_trials(
    command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], budget: str
) -> None:
    def refused(*_: object, **given: Any) -> None:
        raise InputError(f"asked for {given['budget']}")

    monkeypatch.setattr("automl_tl.api.fit", refused)
    assert command("fit", "digits", *options).err == f"error: asked for {budget}\n"
    assert "10m without --trials" in " ".join(command("fit", "--help").out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "work", "message"),
    [
        (("predict", "run", "photos", "--out", "."), "predict", "is a folder; --out is the file to write"),
        (
            ("predict", "run", "photos", "--out", "taken.txt/p.csv"),
            "predict",
            "taken.txt: is not a folder that can be written to",
        ),
        (
            ("unfreeze-study", "digits", "--out", "taken.txt"),
            "study_unfreezing",
            "taken.txt: is not a folder that can be written",
        ),
        (("evaluate", "run", "photos", "--robust", "x"), "judge_model", "--robust: expected a number such as 8/255"),
        (("evaluate", "run", "photos", "--robust", "0"), "judge_model", "--robust: expected a number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_could_not_be_kept_is_refused_before_the_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], work: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").write_text("mine")
    monkeypatch.setattr(f"automl_tl.api.{work}", lambda *_, **__: pytest.fail("it works all the same"))
    said = command(*words)
    assert (said.code, said.out, message in said.err) == (2, "", True), said.err


def test_recommend(command: Command, photos: Path) -> None:
    said = command("recommend", photos, "--top", 3)
    assert said.code == 0
    assert "Why 3: " in said.out
    facts = command("recommend", photos, "--top", 3, "--json").facts
    assert facts["stage"] == 2
    assert len(facts["ranking"]) == 3
    assert all(item["reasons"] and item["low"] <= item["score"] <= item["high"] for item in facts["ranking"])
    scores = [item["score"] for item in facts["ranking"]]
    assert scores == sorted(scores, reverse=True)


def test_profile(command: Command, photos: Path) -> None:
    facts = command("profile", photos, "--json").facts
    assert facts["meta"]["images"] == 160
    assert {"tiny_imagenet", "omniglot_a"} <= facts["distances"].keys()
    assert "Transferability" in command("profile", photos).out


def test_predict_writes_a_row_an_image(command: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    said = command("predict", run, photos / "test", "--out", tmp_path / "p.csv")
    assert said.code == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert len(rows) == 40
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) / len(right) > 0.6
    for row in rows:
        chances = {name: float(value) for name, value in row.items() if name.startswith("digit ")}
        assert max(chances, key=lambda name: chances[name]) == row["label"]
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert float(row["confidence"]) == max(chances.values())
    one = command("predict", run, photos / "test" / "digit 3", "--json").facts
    assert all(set(row) == {"path", "label", "confidence"} for row in one)


def test_predict_tells_of_images_that_it_does_not_read(command: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.heic").write_bytes(b"")
    said = command("predict", run, tmp_path / "new")
    assert (said.code, said.err.count("1 file was left out (.heic): convert to JPEG or PNG")) == (2, 1)
    shutil.copy(next(photos.rglob("*.png")), tmp_path / "new" / "2.png")
    with pytest.warns(InputWarning, match=r"^1 file was left out \(\.heic\): convert to JPEG or PNG$"):
        assert len(command("predict", run, tmp_path / "new", "--json").facts) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a system with names that are not UTF-8")
def test_names_that_are_not_utf_8(command: Command, tmp_path: Path) -> None:
    """From the images to the report and to predictions: nothing is lost for the want of a character."""
    folder = tmp_path / os.fsdecode(b"f\xf6tos")
    for number, (image, label) in enumerate(zip(*arrays(60, 3), strict=True)):
        place = folder / os.fsdecode(b"\xe4%d" % label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / os.fsdecode(b"gr\xf6sse %d.png" % number))
    only = ("--strategy", "linear-probe", "--backbone", QUICK)
    said = command("fit", folder, "--trials", 1, "--out", tmp_path / "run", *only)
    assert said.code == 0, said.err
    assert f"automl-tl fit '{tmp_path}/f\\xf6tos' --trials 1" in (tmp_path / "run" / "report.html").read_text("utf-8").replace(
        "&#39;", "'"
    )
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text("utf-8"))["classes"] == ["\\xe40", "\\xe41", "\\xe42"]
    said = command("predict", tmp_path / "run", folder, "--out", tmp_path / "p.csv")
    assert said.code == 0, said.err
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"].split()[0] for row in rows} == {f"\\xe4{label}/gr\\xf6sse" for label in range(3)}
    assert sum(row["path"].startswith(f"{row['label']}/") for row in rows) > 40
    said = command("predict", tmp_path / "run", folder / os.fsdecode(b"\xe41"))
    assert (said.code, "gr\\xf6sse 1.png" in said.out) == (0, True), said.err
    assert command("evaluate", tmp_path / "run", folder).code == 0
    said = command("profile", tmp_path / os.fsdecode(b"nirgendw\xf6"))
    assert (said.code, "nirgendw\\xf6 does not exist" in said.err) == (2, True)


def test_predictions_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    from automl_tl.predictions import Predictions, write_predictions

    bad = Predictions(("a.png",), ("a", "\ud800"), np.array([[0.25, 0.75]]))
    with pytest.raises(UnicodeEncodeError):
        write_predictions(bad, tmp_path / "p.csv")
    assert not list(tmp_path.iterdir())


def test_predictions_go_through_links_and_into_pipes(tmp_path: Path) -> None:
    from automl_tl.predictions import Predictions, write_predictions

    found = Predictions(("a.png",), ("a", "b"), np.array([[0.25, 0.75]]))
    wanted = "path,label,confidence,a,b\na.png,b,0.750000,0.250000,0.750000\n"
    link, pipe = tmp_path / "link.csv", tmp_path / "pipe"
    link.symlink_to(tmp_path / "there" / "real.csv")
    write_predictions(found, link)
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.csv").read_text() == wanted
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_predictions(found, pipe)
        assert read.result(timeout=60) == wanted
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "pipe", "there"]


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (("finished",) * 4 + ("stopped",), "4 trials to the end, 1 paused"),
        (("failed", "finished", "stopped", "stopped"), "1 trial to the end, 2 paused, 1 failed"),
        (("stopped",), "1 trial paused"),
    ],
)
def test_trials_are_counted_by_how_they_ended(statuses: tuple[str, ...], words: str) -> None:
    trials = tuple(Trial(f"{n}", "f", Candidate(TINY, "lda"), 0, status) for n, status in enumerate(statuses))
    profile = Profile("t", "f", {}, {}, {})
    outcome = Outcome("f", profile, Ranking((), "a test", 2), trials, trials[0], Path("run"), 1.0, "the best")
    assert findings._count(outcome) == words


def test_a_target_with_a_few_labels_is_not_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    """An outcome does not say whose labels there were: those of a partly labelled target are looked at, too."""
    scores = {"accuracy": 0.5, "score": 0.4, "labelled": 0.5, "information": 0.3}
    winner = Trial("1", "f", Candidate(TINY, "lda"), 0, "finished", validation=scores)
    profile = Profile("t", "f", {}, {}, {})
    findings.print_outcome(Outcome("f", profile, Ranking((), "a test", 2), (winner,), winner, Path("run"), 1.0, "the best"))
    said = capsys.readouterr().out
    assert "Chosen by accuracy on labelled images 0.500, and information on the target's 0.300" in said


def test_a_narrow_table_loses_no_letter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = [f"gradual-unfreezing on mobilenetv4_small_050.tiny_imagenet_{size}" for size in (64, 96)]
    headers = ("trial", "candidate", "combined", "front", "accuracy", "ms an image", "MB", "training, s")
    rows = [("0123456789abcdef", name, "0.987", "yes", "0.934", "12.3", "100.0", "1234.5") for name in names]
    console.print_table("", headers, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = "0.987 yes 0.934 12.3 100.0 1234.5"
    assert sum(" ".join(line.split()).endswith(whole) for line in lines) == 2, "numbers stay whole"
    start = next(line for line in lines if "candidate" in line).index("candidate")
    folded = "".join(line[start:].split("  ")[0] for line in lines if "─" not in line).replace(" ", "")
    assert all(name.replace(" ", "") in folded for name in names)


def test_what_is_done_once_more_has_a_bar_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the images of a source are read after those of the task."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress_bars(silent=False) as progress:
        assert progress is not None
        for total in (64, 128):
            terminal.truncate(0)
            for done in (total // 2, total):
                progress("reading images", done, total)
            assert "reading images" in terminal.getvalue()


def test_each_column_of_predictions_has_its_own_name(tmp_path: Path) -> None:
    from automl_tl.predictions import Predictions, write_predictions

    found = Predictions(("a.png",), ("class label", "label", "path", "z"), np.array([[0.1, 0.2, 0.3, 0.4]]))
    write_predictions(found, tmp_path / "p.csv")
    row = next(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert row == {
        "path": "a.png",
        "label": "z",
        "confidence": "0.400000",
        "class label": "0.100000",
        "class class label": "0.200000",
        "class path": "0.300000",
        "z": "0.400000",
    }


def test_a_terminal_that_lacks_a_character_ends_nothing(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["automl-tl", "evaluate", str(run), str(photos)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert re.search(rb"0\.\d{4}\\u2013[01]\.\d{4}", written.getvalue()), "an interval, whose dash Latin-1 has not"


def test_evaluate_uses_the_test_split(command: Command, run: Path, photos: Path) -> None:
    facts = command("evaluate", run, photos, "--json").facts
    report = json.loads((run / "model" / "model.json").read_text())
    assert facts["accuracy"] == pytest.approx(report["test"]["accuracy"])
    assert f"{facts['macro_f1']:.4f}" in command("evaluate", run, photos).out
    low, high = facts["intervals"]["accuracy"]
    assert low <= facts["accuracy"] <= high
    assert (facts["images"], facts["split"], "domains" in facts) == (40, "test", False)
    assert "40 images (test split)" in command("evaluate", run, photos).out
    assert "40 images (no test split: all of them)" in command("evaluate", run, photos / "test").out


def test_evaluate_passes_over_unlabelled_images(command: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos / "test", tmp_path / "set")
    expected = command("evaluate", run, folder, "--json").facts
    shutil.copytree(photos / "train" / "digit 3", folder / "unlabelled")
    assert command("evaluate", run, folder, "--json").facts == expected
    with pytest.raises(InputError, match=r"^image 1: has no label; give it one or remove it$"):
        api.evaluate(run, (arrays(2)[0], ["digit 0", ""]))
    with pytest.raises(InputError, match=r"^arrays has classes that the model does not know: 0; known: digit 0, "):
        api.evaluate(run, (arrays(2)[0], ["digit 0", 0]))


def test_evaluate_says_the_accuracy_of_each_domain(command: Command, run: Path, photos: Path) -> None:
    images = sorted((photos / "test").rglob("*.png"))
    rows = [f"{path.relative_to(photos)},{path.parent.name},{'pen' if i % 4 else 'ink'}" for i, path in enumerate(images)]
    table = photos / "list.csv"
    table.write_text("\n".join(["path,label,domain", *rows]))
    facts, said = command("evaluate", run, table, "--json").facts, command("evaluate", run, table).out
    table.unlink()
    assert (facts["images"], facts["split"]) == (40, "all")
    assert [(one["name"], one["images"]) for one in facts["domains"]] == [("ink", 10), ("pen", 30)]
    assert sum(one["images"] * one["accuracy"] for one in facts["domains"]) == pytest.approx(40 * facts["accuracy"])
    assert re.search(rf"pen +30 +{facts['domains'][1]['accuracy']:.4f}", said)


def test_evaluate_passes_over_images_without_a_label(command: Command, run: Path, photos: Path) -> None:
    """Unlabelled images, for adaptation, may lie beside labelled ones."""
    rows = [f"{path.relative_to(photos)},{path.parent.name},train" for path in sorted((photos / "test").rglob("*.png"))]
    others = [f"{path.relative_to(photos)},,target" for path in sorted((photos / "train").rglob("*.png"))[:7]]
    table = photos / "some.csv"
    table.write_text("\n".join(["path,label,split", *rows, *others]))
    facts = command("evaluate", run, table, "--json").facts
    assert (facts["images"], facts["split"]) == (40, "all")
    table.write_text("\n".join(["path,label,split", *others]))
    said = command("evaluate", run, table)
    table.unlink()
    assert (said.code, "no image has a label to judge by" in said.err) == (2, True)


def test_evaluate_looks_further(command: Command, run: Path, photos: Path) -> None:
    facts = command("evaluate", run, photos, "--classes", "--corruptions", "--calibration", "--cost", "--json").facts
    assert sum(one["count"] for one in facts["reliability"]) == 40
    assert sum(one["count"] * one["accuracy"] for one in facts["reliability"]) == pytest.approx(40 * facts["accuracy"])
    assert [speed["batch"] for speed in facts["cost"]["speeds"]] == [1, 64]
    assert facts["cost"]["disk_bytes"] == (run / "model" / "model.safetensors").stat().st_size
    assert [row["name"] for row in facts["classes"]] == [f"digit {label}" for label in range(10)]
    assert sum(row["images"] for row in facts["classes"]) == 40
    corrupted = facts["corruptions"]
    assert corrupted["clean"] == facts["accuracy"]
    values = [value for row in corrupted["accuracy"].values() for value in row]
    assert len(values) == 60
    assert corrupted["mean"] == pytest.approx(sum(values) / 60)
    assert corrupted["mean"] < corrupted["clean"]


def test_cost_and_robustness_are_of_the_run_itself(command: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    api.export(run, to="timm", out=tmp_path / "exported")
    for asked in (("--cost",), ("--robust", "8/255")):
        said = command("evaluate", tmp_path / "exported", photos, *asked)
        assert (said.code, said.err) == (2, "error: --cost and --robust need the run itself, not an export\n")


def test_compare(command: Command, run: Path) -> None:
    facts = command("compare", run, "--json").facts
    assert len(facts) == 2
    assert [one["combined"] for one in facts] == sorted((one["combined"] for one in facts), reverse=True)
    assert any(one["front"] for one in facts)
    only = command("compare", run, "--weight", "score=0", "--weight", "latency=0", "--weight", "training=0", "--json").facts
    assert only[0]["standing"]["size"] == min(one["standing"]["size"] for one in only)
    assert only[0]["combined"] == 1.0
    assert facts[0]["trial"] in command("compare", run).out
    said = command("compare", run, "--weight", "beauty=3")
    assert said.code == 2
    assert "known: score, latency, size, training" in said.err
    assert "write NAME=NUMBER" in command("compare", run, "--weight", "latency").err


def test_compare_needs_a_run(command: Command, tmp_path: Path) -> None:
    said = command("compare", tmp_path)
    assert said.code == 2
    assert "holds no run" in said.err


DOCUMENTED = [
    line
    for block in re.findall(r"```sh\n(.*?)```", EVALUATION.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("automl-tl ")
]


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow if " fit " in line or " study " in line else ()) for line in DOCUMENTED]
)
def test_the_commands_of_the_document_run(
    command: Command, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """docs/evaluation.md, each as it is written, in a folder that holds what it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "test_images").symlink_to(photos / "test")
    if " fit " not in line:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "photos").symlink_to(run)
    said = command(*shlex.split(line)[1:])
    assert said.code == 0, said.err
    assert said.out.strip()


def test_history(command: Command, run: Path, tmp_path: Path) -> None:
    trials = command("history", "list", "--limit", 2, "--json").facts
    assert len(trials) == 2
    shown = command("history", "show", trials[0]["id"]).facts
    assert shown["id"] == trials[0]["id"]
    assert shown["adaptation"]["final"] == max(point["score"] for point in shown["curve"])
    assert set(shown["adaptation"]["epochs"]) == {"0.9", "0.95"}
    assert command("history", "show", trials[0]["id"][:12]).facts == shown
    said = command("history", "show", "")
    assert (said.code, "trials in the history begin with ''; give more of the id" in said.err) == (2, True)
    assert trials[0]["id"] in command("history", "list", "--limit", 2).out
    assert "trials" in command("history", "export", tmp_path / "text").out
    before = command("history", "list", "--limit", 100000, "--json").facts
    assert "imported" in command("history", "import", tmp_path / "text").out
    assert command("history", "list", "--limit", 100000, "--json").facts == before
    for path in (tmp_path / "text").iterdir():
        assert str(tmp_path.parent) not in path.read_text(), "no path of this machine leaves it"


def test_zoo(command: Command, shared: Path, home: Path) -> None:
    assert {backbone["name"] for backbone in command("zoo", "list", "--json").facts} >= {TINY, QUICK}
    assert command("zoo", "show", TINY).facts["source_dataset"] == "tiny_imagenet"
    assert "natural objects" in command("zoo", "list").out, "what --domain narrows by"
    said = command("zoo", "add", shared / "weights")
    assert said.code == 0
    assert "added mobilenetv2_100.in1k_224" in said.out
    assert "left out squeezenet1_1.in1k_227: " in said.err
    assert "mobilenetv2_100.in1k_224" in command("zoo", "list").out
    assert command("zoo", "remove", shared / "weights").out.startswith("removed ")
    assert "mobilenetv2_100.in1k_224" not in command("zoo", "list").out
    known = home / "hub" / "nobody--nothing.json"
    known.write_text("{}")
    assert command("zoo", "remove", "hf-hub:nobody/nothing").out == "removed hf-hub:nobody/nothing\n"
    assert not known.exists()


def test_statistics_of_a_source_go_into_a_new_folder(command: Command, photos: Path, home: Path, tmp_path: Path) -> None:
    from automl_tl.sources import read_sources

    words = ("zoo", "describe", photos, "--encoder", QUICK, "--out", tmp_path / "new" / "zoo", "--name")
    assert "cannot hold a path" in command(*words, "up/../there").err
    assert not (tmp_path / "new").exists()
    assert command(*words, "handwriting").code == 0
    encoder, sources = read_sources(tmp_path / "new" / "zoo")
    assert (encoder, list(sources)) == (QUICK, ["handwriting"])


def test_plugins(command: Command) -> None:
    plugins = command("plugins", "list", "--json").facts
    assert {"strategies.fine_tuning", "zoos.embedded", "metrics.frechet"} <= {plugin["name"] for plugin in plugins}
    assert "register_strategies" in command("plugins", "list").out


def every_command(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            yield from every_command(inner, (*before, name))
        else:
            yield (*before, name)


@pytest.mark.parametrize("words", [(), *every_command(typer.main.get_command(cli.app))], ids=" ".join)
def test_help(command: Command, words: tuple[str, ...]) -> None:
    said = command(*words, "--help")
    assert said.code == 0
    assert "Usage" in said.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"automl_tl {version('automl_tl')}\n"


def test_wrong_use_is_2_and_our_fault_is_1(command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("fit").code == 2
    assert command("recommend", "nowhere").code == 2
    assert command("recommend", photos, "--top", 0).code == 2

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("automl_tl.api.profile_task", broken)
    said = command("profile", photos)
    assert said.code == 1
    assert said.err.startswith("error: internal error: RuntimeError: out of cheese")
    assert "Traceback" not in said.err


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_our_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())
    monkeypatch.setattr(sys, "argv", ["automl-tl", "zoo", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: the disk is full: there was no room; make some, and start the command again\n"


def test_a_listing_that_nobody_reads_ends_without_a_word() -> None:
    listing = [sys.executable, "-m", "automl_tl.cli", "plugins", "list", "--json"]
    with subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_training_goes_on_where_nobody_reads_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_tl.cli.training import _tell

    task = api.load_task(arrays(60))
    advice = api.Advice(Profile(task.name, task.fingerprint, {}, {}, {}), Ranking((), "a test", 2), {})
    read, write = os.pipe()
    os.close(read)
    closed = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", closed)
    _tell(task, advice, zoo=None)
    print("the winner", flush=True)
    with pytest.raises(BrokenPipeError):
        closed.close()


def test_the_home_can_be_moved(command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path / "elsewhere"))
    assert command("history", "list").code == 0
    assert "history.db" in os.listdir(tmp_path / "elsewhere")
