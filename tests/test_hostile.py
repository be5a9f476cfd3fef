"""Input from strangers: what the fuzzer of benchmarks/hostile.py found stays found, and a few seconds of it run here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load, save

from automl_tl import load_task, predict
from automl_tl.cards import read_folder
from automl_tl.data import natural
from automl_tl.errors import AutomlError, HistoryError, InputError
from automl_tl.history import open_history
from automl_tl.images import read_image

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import _hostile_targets as targets

EVENTS: list[str] = []
"""Of programs that are started, connections and unpickling, since the last test began; Python keeps an audit hook for good."""
NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
)


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(lambda event, values: EVENTS.append(f"{event} {values!r:.200}") if event in NEVER else None)


@pytest.fixture
def nothing_runs() -> Iterator[None]:
    """No program is started, no connection made, nothing unpickled in this test."""
    EVENTS.clear()
    yield
    assert EVENTS == []


@pytest.mark.parametrize("number", range(len(targets.OTHERS)))
def test_what_pretends_to_be_a_png_reaches_no_other_program(number: int, tmp_path: Path, nothing_runs: None) -> None:
    """EPS above all: Pillow would hand it to Ghostscript."""
    path = tmp_path / "picture.png"
    path.write_bytes(targets.OTHERS[number])
    for source in (path, targets.OTHERS[number]):
        with pytest.raises(InputError, match="cannot be read as an image"):
            read_image(source)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_a_wrong_extension_does_not_matter(form: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (9, 7), "white").save(path, form)
    assert read_image(path).size == (9, 7)


def test_names_of_any_length_are_sorted_by_their_numbers() -> None:
    """Python reads no number of more than 4300 digits."""
    names = ["9" * 10_000, "10", "٣", "2", "a10", "a9", "007", "7", "1" + "0" * 10_000, "a", ""]
    ordered = ["", "2", "٣", "007", "7", "10", "9" * 10_000, "1" + "0" * 10_000, "a", "a9", "a10"]
    assert sorted(names, key=natural) == ordered


def test_hostile_class_names_make_a_task(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "../../up", "a/b", "\u202egnp.exe", "9" * 10_000, "name" * 2500]
    images = [np.full((8, 8), 20 * number, dtype=np.uint8) + np.arange(8, dtype=np.uint8) * number for number in range(12)]
    task = load_task((images, names * 2), validation=0)
    assert set(task.classes) == set(names)


def test_a_link_to_itself_is_passed_over_or_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 60 * number + ord(name) - 97).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "images" / "a" / "loop.png").symlink_to(tmp_path / "images" / "a" / "loop.png")
    assert len(load_task(tmp_path / "images", validation=0).labels) == 6
    (tmp_path / "images" / "table.csv").write_text("path,label\na/0.png,a\na/loop.png,a\nb/0.png,b\n")
    with pytest.raises(InputError, match=r"row 3: a/loop.png: there is no such file"):
        load_task(tmp_path / "images" / "table.csv")


def model_of(card: Any, folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.json").write_text(card if isinstance(card, str) else json.dumps(card))
    (folder / "model" / "model.safetensors").write_bytes(targets._model()[1])
    (folder / "evil.pth").write_bytes(targets.OTHERS[3])
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "hf-hub:nobody/nothing"}, "has no network 'hf-hub:nobody/nothing'"),
        ({"architecture": ""}, "none that timm builds, and no zoo 'embedded' here lists it"),
        ({"architecture": "", "zoo": "timm", "name": "resnet10t.c3_in1k"}, "no zoo 'timm' here lists it"),
        ({"architecture": "", "zoo": "timm", "name": "hf-hub:evil/x"}, "loading a model fetches nothing"),
        ({"architecture": "", "zoo": "hub", "weights": "evil/x"}, "loading a model fetches nothing"),
        ({"architecture": "local-dir:."}, "has no network 'local-dir:.'"),
        ({"kwargs": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' is not for a card to say"),
        ({"kwargs": {"pretrained": True}}, "'pretrained' is not for a card to say"),
        ({"kwargs": {"pretrained_cfg": {"file": "evil.pth"}}}, "'pretrained_cfg' is not for a card to say"),
        ({"kwargs": {"depths": [10**9, 1, 1, 1]}}, "a number above 100,000 makes no network"),
        ({"kwargs": {"channels": [1e300] * 4}}, "a number above 100,000 makes no network"),
        ({"kwargs": {"layers": [50_000, 1, 1, 1]}}, "layers: more than 200 in all makes no network"),
        ({"architecture": "mobilenetv2_100", "kwargs": {"depth_multiplier": 1e4}}, "more than 10 in all makes no network"),
        ({"kwargs": {"channels": [10**5] * 4}}, "model.safetensors does not fit its card"),
        ({"input_size": 10**6}, "input_size: expected at most 4096 pixels"),
        ({"interpolation": "%s%n"}, "interpolation: expected one of nearest, bilinear, bicubic, but got '%s%n'"),
        ({"crop_pct": 0}, "crop_pct: expected 0.1 to 2.0, but got 0"),
        ({"crop_mode": "%s%n"}, "crop_mode: expected one of center, squash, border, but got '%s%n'"),
        ({"crop_mode": ["squash"]}, r"crop_mode: expected a text, but got \['squash'\]"),
        ({"std": [1.0, 0.0, 1.0]}, "std: expected numbers above 0"),
        ({"num_features": 10**12}, "model.safetensors does not fit its card"),
    ],
)
def test_a_models_card_fetches_opens_and_runs_nothing(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_runs: None
) -> None:
    card, _ = targets._model()
    folder = model_of({**card, "backbone": {**card["backbone"], **change}}, tmp_path)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        predict(folder, [np.zeros((8, 8), dtype=np.uint8)])


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "neighbours", "stored": 10**13, "k": 1},
        {"kind": "tasks", "classes": [[0, 1]] * 1001, "ranks": [4096] * 1000},
        {"kind": "tasks", "classes": [[0], [1]], "ranks": [4096]},
    ],
    ids=["neighbours", "tasks", "ranks"],
)
@pytest.mark.parametrize("change", [{}, {"num_features": 10**14}], ids=["as they are", "wide"])
def test_a_head_is_not_made_before_its_weights_are_there(
    head: dict[str, Any], change: dict[str, Any], tmp_path: Path, nothing_runs: None
) -> None:
    """And a file without the head's tensors does not make it anyway."""
    card, weights = targets._model()
    told = {**card, "backbone": {**card["backbone"], **change}, "head": head, "sha256": None}
    folder = model_of(told, tmp_path)
    tensors = {name: tensor for name, tensor in load(weights).items() if not name.startswith("head.")}
    (folder / "model" / "model.safetensors").write_bytes(save(tensors, metadata={"facts": "{}"}))
    with pytest.raises(InputError, match=r"its head cannot be made|does not fit its card: it |is more than the 1,000"):
        predict(folder, [np.zeros((8, 8), dtype=np.uint8)])


@pytest.mark.parametrize(
    "card", ["[" * 100_000, "[1, 2, 3]", "null", '{"classes": [1, 2]}'], ids=["deep", "list", "null", "part"]
)
def test_a_models_card_that_is_none(card: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.json is damaged"):
        predict(model_of(card, tmp_path), [np.zeros((8, 8), dtype=np.uint8)])


def test_a_networks_card_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[" * 100_000)
    assert "cannot be read as a card" in read_folder(tmp_path, zoo="folder").skipped["mine"]


def test_a_networks_card_may_not_ask_for_any_size(tmp_path: Path) -> None:
    card, weights = targets._network()
    (tmp_path / f"{card['name']}.safetensors").write_bytes(weights)
    (tmp_path / f"{card['name']}.json").write_text(json.dumps({**card, "input_size": [3, 10**6, 10**6]}))
    assert "SIDE" in read_folder(tmp_path, zoo="folder").skipped[card["name"]]


def test_a_cell_longer_than_csv_takes_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.csv").write_text("fingerprint,name,source_dataset,classes,train,validation,test\n" + "x" * 200_000)
    with open_history() as history, pytest.raises(HistoryError, match=r"tasks\.csv line 2: field larger than field limit"):
        history.import_facts(tmp_path)


@pytest.mark.parametrize("number", [10**30, -(2**63) - 1])
def test_a_number_that_no_database_keeps_is_named(number: int, tmp_path: Path) -> None:
    facts = targets._facts()
    profile = {**facts["profiles"][0], "meta": {"images": number}}
    table = "fingerprint,name,source_dataset,classes,train,validation,test\nf1,t,s,2,10,2,2\n"
    (tmp_path / "tasks.csv").write_text(table)
    for name, lines in {**facts, "profiles": [profile]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with open_history() as history, pytest.raises(HistoryError, match=r"profiles\.jsonl line 1: .*images"):
        history.import_facts(tmp_path)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_few_of_the_fuzzers_inputs(name: str, tmp_path: Path, nothing_runs: None) -> None:
    """Taken or refused by an error of ours; nothing lies outside afterwards."""
    target, rng = targets.TARGETS[name], random.Random(f"{name}/tests")
    outside, scratch = targets.lay_outside(tmp_path), tmp_path / "taken"
    for _ in range({"images": 40, "archives": 40, "cards": 4, "models": 6}.get(name, 15)):
        data = target.make(rng)
        with contextlib.suppress(AutomlError):
            target.take(data, targets.emptied(scratch))
    shutil.rmtree(scratch)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["outside", "secret.png"]
    assert os.listdir(outside) == ["secret.png"]


@pytest.mark.slow
def test_coverage_leads_the_fuzzer(tmp_path: Path) -> None:
    """atheris follows the branches of automl_tl: its figures are printed, and what it tried is counted."""
    pytest.importorskip("atheris", reason="atheris is only there for Linux on x86-64")
    line = [sys.executable, Path(targets.__file__).with_name("hostile.py"), "--guided", "--target", "manifests"]
    line += ["--seconds", "2", "--inside", tmp_path]
    environment = {**os.environ, "AUTOML_TL_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*line, "--inside", tmp_path], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["inputs"] > 50
    assert (found["crashes"], found["hangs"], found["escapes"]) == ({}, {}, {})
    assert "Instrumenting automl_tl" in done.stderr
    assert max(int(number) for number in re.findall(r"cov: (\d+)", done.stderr)) > 50
