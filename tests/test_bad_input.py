"""Bad input: one clear line that says where and what to do, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pictures import drawn, lay, lay_drawn, png
from small import QUICK

from automl_tl.cli import main
from automl_tl.errors import InputError


class Place(NamedTuple):
    """Where a kind of bad input is laid out."""

    root: Path
    model: Path
    """A trained model that is in order, of the classes a and b."""
    home: Path


Prepare = Callable[[Place], list[str]]
"""Lays out the input and gives the arguments of the command line."""

KINDS: dict[str, tuple[Prepare, str]] = {}
USAGE: dict[str, tuple[Prepare, str]] = {}


def bad(message: str, kinds: dict[str, tuple[Prepare, str]] = KINDS) -> Callable[[Prepare], Prepare]:
    """A kind of bad input, named as its function, and what (as a pattern) must be said of it."""

    def add(prepare: Prepare) -> Prepare:
        kinds[prepare.__name__] = (prepare, message)
        return prepare

    return add


def fit(location: Path | str, *more: str) -> list[str]:
    return ["fit", str(location), "--budget", "1 trials", *([] if "--out" in more else ["--out", "run"]), *more]


def manifest(place: Place, text: str | bytes, *, name: str = "list.csv") -> list[str]:
    """Eight images beside a table."""
    lay_drawn(place.root / "x", {"a": 4, "b": 4})
    path = place.root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return fit(path)


GOOD = "path,label\n" + "".join(f"x/{label}/{i:03}.png,{label}\n" for label in "ab" for i in range(4))


def good(place: Place) -> Path:
    return lay_drawn(place.root / "photos", {"a": 6, "b": 6})


# Folders of images


@bad("photos does not exist")
def path_that_is_not_there(place: Place) -> list[str]:
    return fit(place.root / "photos")


@bad(r"photos: is empty of folders; expected CLASS/FILE")
def empty_folder(place: Place) -> list[str]:
    (place.root / "photos").mkdir()
    return fit(place.root / "photos")


@bad(r"photos/a: is a class without an image; delete the folder or fill it")
def only_text_files(place: Place) -> list[str]:
    lay(place.root / "photos", {"a": [], "b": []})
    (place.root / "photos" / "a" / "notes.txt").write_text("no image")
    return fit(place.root / "photos")


@bad("photos: is empty of folders")
def images_without_class_folders(place: Place) -> list[str]:
    (place.root / "photos").mkdir()
    drawn(0).save(place.root / "photos" / "0.png")
    return fit(place.root / "photos")


@bad("photos: all images are of one class, 'a'; a classifier needs at least two")
def one_class(place: Place) -> list[str]:
    return fit(lay_drawn(place.root / "photos", {"a": 6}))


@bad(r"photos: class 'b' has 1 training image\(s\); it takes two")
def class_of_one_image(place: Place) -> list[str]:
    return fit(lay_drawn(place.root / "photos", {"a": 6, "b": 1}))


@bad("photos: no training image is left: all 8 are near-duplicates of validation or test images; give splits that share no")
def training_images_that_are_the_test_images(place: Place) -> list[str]:
    for split in ("train", "test"):
        lay_drawn(place.root / "photos" / split, {"a": 4, "b": 4})
    return fit(place.root / "photos")


@bad("photos: no image can be held out for validation: those of each class are near-duplicates of one another")
def images_that_are_all_alike(place: Place) -> list[str]:
    folder = good(place)
    for image in folder.rglob("*.png"):
        drawn(0).save(image)
    return fit(folder)


@bad(r"photos: a/000.png: cannot be read as an image: .*\(all 8 images alike\)")
def all_unreadable(place: Place) -> list[str]:
    return fit(lay(place.root / "photos", {label: [b"no image"] * 4 for label in "ab"}))


@bad("photos: 1 of 16 images cannot be read, more than 5%; the first: b/007.png.*truncated")
def too_many_truncated(place: Place) -> list[str]:
    lay_drawn(place.root / "photos", {"a": 8, "b": 7})
    return fit(lay(place.root / "photos", {"b": [png(drawn(99))[:-600]]}))


@bad("photos: 1 of 13 images cannot be read.*b/006.png: cannot be read as an image")
def file_of_no_bytes(place: Place) -> list[str]:
    return fit(lay(good(place), {"b": [b""]}))


@bad("photos: no image of class 'c' can be read; the first: c/000.png")
def class_of_nothing_but_an_unreadable_image(place: Place) -> list[str]:
    lay_drawn(place.root / "photos", {"a": 20, "b": 20})
    return fit(lay(place.root / "photos", {"c": [b"no image"]}))


@bad("b/out.png: is a link that leads out of .*photos; copy in what it leads to")
def link_out_of_the_folder(place: Place) -> list[str]:
    drawn(0).save(place.root / "secret.png")
    (good(place) / "b" / "out.png").symlink_to(place.root / "secret.png")
    return fit(place.root / "photos")


@bad("photos: test has classes that train has not: c; give both the same classes")
def splits_with_different_classes(place: Place) -> list[str]:
    lay_drawn(place.root / "photos" / "train", {"a": 4, "b": 4})
    lay_drawn(place.root / "photos" / "test", {"a": 2, "c": 2}, start=50)
    return fit(place.root / "photos")


@bad("photos: validation has classes that train has not: zebra")
def validation_of_an_unknown_class(place: Place) -> list[str]:
    lay_drawn(place.root / "photos" / "train", {"a": 4, "b": 4})
    lay_drawn(place.root / "photos" / "val", {"a": 2, "zebra": 2}, start=50)
    return fit(place.root / "photos")


@bad("photos: has 'cat' beside split folders; keep only train .or training., validation")
def class_folder_beside_split_folders(place: Place) -> list[str]:
    lay_drawn(place.root / "photos" / "train", {"a": 4, "b": 4})
    lay_drawn(place.root / "photos", {"cat": 2}, start=50)
    return fit(place.root / "photos")


@bad("photos: no image is marked as train")
def only_a_test_split(place: Place) -> list[str]:
    lay_drawn(place.root / "photos" / "test", {"a": 4, "b": 4})
    return fit(place.root / "photos")


@bad("huge.png.*has more than the 178,956,970 pixels that are read; scale it down")
def decompression_bomb(place: Place) -> list[str]:
    from test_images import bomb

    (good(place) / "a" / "huge.png").write_bytes(bomb(60_000, 60_000))
    return fit(place.root / "photos")


# Manifests


@bad("list.csv: has no column 'label'; its columns are: 'path', 'class'")
def manifest_without_labels(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("label", "class"))


@bad("list.csv: has no column 'path'; its columns are: 'file', 'label'")
def manifest_without_paths(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("path", "file"))


@bad("list.csv: has the column 'label' twice")
def manifest_with_a_column_twice(place: Place) -> list[str]:
    return manifest(place, "path,label,label\nx/a/000.png,a,b\n")


@bad("list.csv row 3: x/a/001.png: has no label; give it one or remove the row")
def empty_label(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("001.png,a", "001.png, "))


@bad("list.csv row 9: x/b/999.png: there is no such file; paths are relative to the manifest's folder")
def row_of_a_missing_file(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("x/b/003", "x/b/999"))


@bad(r"list.csv row 2: \.\./photo.png: lies outside the manifest's folder; paths must stay below")
def path_that_climbs_out(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("x/a/000", "../photo"))


@bad("list.csv row 2: .*: lies outside the manifest's folder")
def absolute_path(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("x/a/000.png", str(Path(sys.executable).resolve())))


@bad("list.csv row 10: x/out.png: lies outside the manifest's folder")
def row_of_a_link_that_leads_out(place: Place) -> list[str]:
    arguments = manifest(place, GOOD + "x/out.png,a\n")
    (place.root / "x" / "out.png").symlink_to(Path(sys.executable).resolve())
    return arguments


@bad(r"list.csv row 2: x.x00/a/000.png': is not a path: embedded null byte")
def path_with_a_zero_byte(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("x/a/000", "x\0/a/000"))


@bad("list.csv row 4: has 1 cells, the header 2; is ',' the separator throughout")
def mixed_separators(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("002.png,a", "002.png;a"))


@bad("list.csv row 5: has 3 cells, the header 2")
def ragged_rows(place: Place) -> list[str]:
    return manifest(place, GOOD.replace("003.png,a", "003.png,a,oops"))


@bad("list.csv row 10: x/a/000.png: is labelled 'b', but 'a' in list.csv row 2: x/a/000.png; keep one of the rows")
def one_path_with_two_labels(place: Place) -> list[str]:
    return manifest(place, GOOD + "x/a/000.png,b\n")


@bad("list.csv row 2: x/a/000.png: split 'holdout' is not known; known are train .or training., validation")
def unknown_split(place: Place) -> list[str]:
    return manifest(place, "path,label,split\nx/a/000.png,a,holdout\nx/b/000.png,b,train\n")


@bad("list.csv: is empty; the first line names the columns: path,label")
def empty_manifest(place: Place) -> list[str]:
    return manifest(place, "")


@bad("list.csv: has no rows")
def manifest_of_a_header(place: Place) -> list[str]:
    return manifest(place, "path,label\n\n")


@bad("list.csv row [0-9]+: is not UTF-8 text; save the table as UTF-8")
def binary_garbage_as_csv(place: Place) -> list[str]:
    return manifest(place, np.random.default_rng(0).bytes(4000))


@bad("list.csv row 3: is not UTF-8 text; save the table as UTF-8")
def manifest_in_latin_1(place: Place) -> list[str]:
    return manifest(place, "path,label\nx/a/000.png,a\nx/b/000.png,größer\n".encode("latin-1"))


@bad("list.csv row 3: unexpected end of data")
def quote_that_never_ends(place: Place) -> list[str]:
    return manifest(place, 'path,label\nx/a/000.png,a\nx/b/000.png,"b\n')


@bad("list.parquet: cannot be read as Parquet: ")
def truncated_parquet(place: Place) -> list[str]:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": ["x/a/000.png"], "label": ["a"]}), place.root / "list.parquet")
    return manifest(place, (place.root / "list.parquet").read_bytes()[:-30], name="list.parquet")


@bad("list.txt is not something that can be read; readers tried: arrays, digits")
def file_that_nobody_reads(place: Place) -> list[str]:
    return manifest(place, GOOD, name="list.txt")


# Options


@bad("cannot read the budget '10 parsecs'; write it like 90s, 10m")
def budget_in_parsecs(place: Place) -> list[str]:
    return fit(good(place), "--budget", "10 parsecs")


@bad("cannot read the budget '0m'")
def budget_of_nothing(place: Place) -> list[str]:
    return fit(good(place), "--budget", "0m")


@bad("cannot read the budget '-5m'")
def budget_below_nothing(place: Place) -> list[str]:
    return fit(good(place), "--budget", "-5m")


@bad("cannot read the budget ''")
def budget_that_is_empty(place: Place) -> list[str]:
    return fit(good(place), "--budget", "")


@bad("the budget '5 trials . 8 trials' names trials twice; write one limit of each kind")
def trials_in_two_options(place: Place) -> list[str]:
    return ["fit", str(good(place)), "--out", "run", "--budget", "5 trials", "--trials", "8"]


@bad("--robust: expected a number above 0, such as 8/255, but got '0'; leave it out for none")
def robust_against_nothing(place: Place) -> list[str]:
    return fit(good(place), "--robust", "0")


@bad("federated training takes at least two clients, but there is 0")
def no_clients(place: Place) -> list[str]:
    pytest.importorskip("flwr", reason="needs the extra `federated`")
    return fit(good(place), "--clients", "0")


@bad("--skew says how unlike simulated clients are; say how many with --clients N")
def skew_of_no_clients(place: Place) -> list[str]:
    return fit(good(place), "--skew", "0.1")


@bad("--exemplars says how many images are kept; ask for them with --remember exemplars")
def exemplars_that_nobody_asked_for(place: Place) -> list[str]:
    return fit(good(place), "--exemplars", "20", "--remember", "fisher")


@bad("--shots 2: flat has no labelled training image to choose from; leave it out")
def shots_of_images_without_labels(place: Place) -> list[str]:
    (place.root / "flat").mkdir()
    drawn(0).save(place.root / "flat" / "0.png")
    return fit(place.root / "flat", "--source", str(good(place)), "--shots", "2")


@bad("unknown backbone 'resnet9000'.* Known: ")
def unknown_backbone(place: Place) -> list[str]:
    return fit(good(place), "--backbone", "resnet9000")


@bad("unknown strategy 'linear_probe'; did you mean 'linear-probe'")
def unknown_strategy(place: Place) -> list[str]:
    return fit(good(place), "--strategy", "linear_probe")


@bad("unknown zoo 'tim'; did you mean 'timm'")
def unknown_zoo(place: Place) -> list[str]:
    return fit(good(place), "--zoo", "tim")


@bad("unknown backbone 'nobody'")
def zoo_show_of_nobody(place: Place) -> list[str]:
    return ["zoo", "show", "nobody"]


@bad("Invalid value for '--seed'", USAGE)
def seed_in_words(place: Place) -> list[str]:
    return fit(good(place), "--seed", "seven")


@bad("Invalid value for '--seed': -1 is not in the range", USAGE)
def seed_below_zero(place: Place) -> list[str]:
    return fit(good(place), "--seed", "-1")


@bad("No such command 'fitt'", USAGE)
def misspelt_command(place: Place) -> list[str]:
    return ["fitt", str(good(place))]


@bad("No such option.*--budgets", USAGE)
def misspelt_option(place: Place) -> list[str]:
    return ["fit", str(good(place)), "--budgets", "10m"]


@bad("(?i)missing argument 'images'", USAGE)
def no_images(place: Place) -> list[str]:
    return ["fit"]


@bad("Invalid value for '--top'", USAGE)
def top_of_nothing(place: Place) -> list[str]:
    return ["recommend", str(good(place)), "--top", "0"]


# Runs and models


@bad("taken.txt: is not a folder that can be written to; choose another --out")
def out_that_is_a_file(place: Place) -> list[str]:
    (place.root / "taken.txt").write_text("mine")
    return fit(good(place), "--out", str(place.root / "taken.txt"))


@bad(r"photos/runs/fit: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def out_among_the_images(place: Place) -> list[str]:
    """As `cd photos; automl-tl fit .` would have it: the same command again would find a class called runs."""
    folder = good(place)
    return fit(folder, "--out", str(folder / "runs" / "fit"))


@bad(r"known/run: lies in the folder of the images of --source; choose another --out, such as .*runs/known$")
def out_among_the_images_of_a_source(place: Place) -> list[str]:
    known = lay_drawn(place.root / "known", {"c": 6, "d": 6}, start=50)
    return fit(good(place), "--source", str(known), "--out", str(known / "run"))


@bad(r"two/run: lies in the folder of the images of --clients; choose another --out, such as .*runs/two$")
def out_among_the_images_of_a_client(place: Place) -> list[str]:
    pytest.importorskip("flwr")
    clients = [str(lay_drawn(place.root / name, {"a": 6, "b": 6}, start=start)) for name, start in (("one", 50), ("two", 70))]
    return fit(good(place), "--clients", clients[0], "--clients", clients[1], "--out", f"{clients[1]}/run")


@bad(r"photos/study: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def study_among_the_images(place: Place) -> list[str]:
    folder = good(place)
    return ["study", "data", str(folder), "--out", str(folder / "study")]


@bad(r"photos/depths: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def unfreezing_among_the_images(place: Place) -> list[str]:
    folder = good(place)
    return ["unfreeze-study", str(folder), "--out", str(folder / "depths")]


@bad(r"known/depths: lies in the folder of the images of --source; choose another --out, such as .*runs/known$")
def unfreezing_among_the_images_of_its_source(place: Place) -> list[str]:
    known = lay_drawn(place.root / "known", {"c": 6, "d": 6}, start=50)
    return ["unfreeze-study", str(good(place)), "--source", str(known), "--out", str(known / "depths")]


@bad(r"photos: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def statistics_among_the_images(place: Place) -> list[str]:
    folder = good(place)
    return ["zoo", "describe", str(folder), "--name", "mine", "--encoder", QUICK, "--out", str(folder)]


@bad(r"photos/served: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def server_among_the_images(place: Place) -> list[str]:
    pytest.importorskip("flwr")
    folder = good(place)
    chosen = ["--strategy", "fedavg", "--backbone", QUICK, "--clients", "2", "--address", "127.0.0.1:1"]
    return ["federate", "serve", str(folder), *chosen, "--out", str(folder / "served")]


@bad(r"photos/joined: lies in the folder of the images; choose another --out, such as .*runs/photos$")
def client_among_its_images(place: Place) -> list[str]:
    pytest.importorskip("flwr")
    folder = good(place)
    return ["federate", "join", "127.0.0.1:1", str(folder), "--strategy", "fedavg", "--out", str(folder / "joined")]


@bad(r"known/joined: lies in the folder of the images of --public; choose another --out, such as .*runs/known$")
def client_among_public_images(place: Place) -> list[str]:
    pytest.importorskip("flwr")
    known = lay_drawn(place.root / "known", {"a": 6, "b": 6}, start=50)
    more = ["--public", str(known), "--out", str(known / "joined")]
    return ["federate", "join", "127.0.0.1:1", str(good(place)), "--strategy", "fedavg", *more]


@bad(r"other holds another run \(with other images, zoo\); choose another --out or delete it")
def out_of_another_run(place: Place, seed: int = 0) -> list[str]:
    (place.root / "other").mkdir()
    request = {"fingerprint": "0123", "seed": seed, "zoo": "timm", "strategies": [], "backbones": []}
    (place.root / "other" / "run.json").write_text(json.dumps(request))
    return fit(good(place), "--out", str(place.root / "other"))


@bad(r"other holds another run \(with other seed, zoo\); choose another --out or delete it")
def out_of_a_run_with_another_seed(place: Place) -> list[str]:
    """Which splits the same images otherwise, so that they must not be said to be others."""
    return out_of_another_run(place, seed=5)


@bad("unknown strategy 'linear_probe'; did you mean 'linear-probe'")
def unknown_strategy_onto_a_run(place: Place) -> list[str]:
    return [*out_of_another_run(place), "--strategy", "linear_probe"]


@bad("other/run.json: is damaged: .*; choose another --out or delete it")
def out_of_a_damaged_run(place: Place) -> list[str]:
    (place.root / "other").mkdir()
    (place.root / "other" / "run.json").write_text("{")
    return fit(good(place), "--out", str(place.root / "other"))


@bad(r"run/trials/0123/trial.json: is damaged: .*; delete it, and the trial goes on from its last checkpoint")
def comparison_of_a_damaged_trial(place: Place) -> list[str]:
    (place.root / "run" / "trials" / "0123").mkdir(parents=True)
    (place.root / "run" / "advice.json").write_text("{}")
    (place.root / "run" / "trials" / "0123" / "trial.json").write_text('{"id": "0123"}')
    return ["compare", str(place.root / "run")]


@bad(r"run/advice.json: is damaged: 'ranking' is missing; delete it, and the next start of the run asks for advice anew")
def comparison_of_damaged_advice(place: Place) -> list[str]:
    shutil.copytree(place.model, place.root / "run" / "model")
    (place.root / "run" / "advice.json").write_text("{}")
    return ["compare", str(place.root / "run")]


@bad(r"photos holds no trained model \(model.json is missing\); run `automl-tl fit` first")
def predict_without_a_model(place: Place) -> list[str]:
    return ["predict", str(good(place)), str(place.root / "photos")]


@bad("nowhere is not an image or a folder with images")
def predict_of_nothing(place: Place) -> list[str]:
    return ["predict", str(place.model), str(place.root / "nowhere"), "--out", str(place.root / "p.csv")]


@bad("notes.txt: cannot be read as an image")
def predict_of_a_text(place: Place) -> list[str]:
    (place.root / "notes.txt").write_text("no image")
    return ["predict", str(place.model), str(place.root / "notes.txt"), "--out", str(place.root / "p.csv")]


@bad("a/bad.png: cannot be read as an image")
def predict_of_a_folder_with_a_damaged_image(place: Place) -> list[str]:
    (good(place) / "a" / "bad.png").write_bytes(b"no image")
    return ["predict", str(place.model), str(place.root / "photos"), "--out", str(place.root / "p.csv")]


@bad("photos: is a folder; --out is the file to write")
def predictions_onto_a_folder(place: Place) -> list[str]:
    return ["predict", str(place.model), str(good(place)), "--out", str(place.root / "photos")]


@bad("a/000.png: is called an image, and a table of predictions would take its place; choose another --out")
def predictions_onto_an_image(place: Place) -> list[str]:
    image = good(place) / "a" / "000.png"
    return ["predict", str(place.model), str(image), "--out", str(image)]


@bad("model.safetensors is damaged: .*; copy it anew")
def truncated_weights(place: Place) -> list[str]:
    weights = place.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return ["predict", str(place.model), str(good(place))]


@bad("model.json is damaged")
def model_card_that_is_not_json(place: Place) -> list[str]:
    (place.model / "model.json").write_text("{'backbone':")
    return ["predict", str(place.model), str(good(place))]


@bad("model.json is damaged: it lacks 'backbone'")
def model_card_without_a_backbone(place: Place) -> list[str]:
    card = json.loads((place.model / "model.json").read_text())
    del card["backbone"]
    (place.model / "model.json").write_text(json.dumps(card))
    return ["evaluate", str(place.model), str(good(place))]


@bad("model.json is damaged, or of another version: 'strange' is no field")
def model_card_of_another_version(place: Place) -> list[str]:
    card = json.loads((place.model / "model.json").read_text())
    card["backbone"]["strange"] = 1
    (place.model / "model.json").write_text(json.dumps(card))
    return ["evaluate", str(place.model), str(good(place))]


@bad("model.safetensors does not fit its card")
def weights_of_another_model(place: Place) -> list[str]:
    card = json.loads((place.model / "model.json").read_text())
    (place.model / "model.json").write_text(json.dumps(card | {"classes": ["a", "b", "c"]}))
    return ["evaluate", str(place.model), str(good(place))]


@bad("photos has classes that the model does not know: zebra; known: a, b")
def evaluate_of_an_unknown_class(place: Place) -> list[str]:
    return ["evaluate", str(place.model), str(lay_drawn(place.root / "photos", {"a": 2, "zebra": 2}))]


@bad("photos: no image has a label to judge by; `predict` needs none")
def evaluate_of_nothing_but_unlabelled_images(place: Place) -> list[str]:
    return ["evaluate", str(place.model), str(lay_drawn(place.root / "photos", {"unlabelled": 4}))]


@bad(r"model holds no trained model \(model.safetensors is missing\); run `automl-tl fit` first")
def model_without_its_weights(place: Place) -> list[str]:
    (place.model / "model.safetensors").unlink()
    return ["predict", str(place.model), str(good(place))]


@bad("model.safetensors is damaged: its header has no facts, as a file of automl-tl has; copy it anew")
def weights_that_another_program_wrote(place: Place) -> list[str]:
    from safetensors.torch import load, save_file

    save_file(load((place.model / "model.safetensors").read_bytes()), place.model / "model.safetensors")
    return ["predict", str(place.model), str(good(place))]


@bad("model: the model there cannot be read: ")
def weights_that_are_a_folder(place: Place) -> list[str]:
    (place.model / "model.safetensors").unlink()
    (place.model / "model.safetensors").mkdir()
    return ["predict", str(place.model), str(good(place))]


# History, zoo, plan, home


def facts(place: Place, **files: str) -> list[str]:
    folder = place.root / "facts"
    folder.mkdir()
    (folder / "tasks.csv").write_text("fingerprint,name,source_dataset,classes,train,validation,test\nf1,t,s,2,10,2,2\n")
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text)
    return ["history", "import", str(folder)]


@bad(r"trials.jsonl line 2: Expecting value")
def history_line_that_is_not_json(place: Place) -> list[str]:
    trial = json.dumps({"id": "1", "task": "f1", "candidate": {"backbone": "b", "strategy": "s"}, "seed": 0, "status": "failed"})
    return facts(place, trials=f"{trial}\noops\n")


@bad(r"trials.jsonl line 1: status: expected one of finished, stopped, failed, but got 'fine'")
def history_line_of_an_unknown_status(place: Place) -> list[str]:
    trial = {"id": "1", "task": "f1", "candidate": {"backbone": "b", "strategy": "s"}, "seed": 0, "status": "fine"}
    return facts(place, trials=json.dumps(trial))


@bad(r"trials.jsonl line 1: hyperparameters: 'epochs' is 10*; expected a finite number, a text or a truth value")
def history_line_of_endless_epochs(place: Place) -> list[str]:
    candidate = {"backbone": "b", "strategy": "s", "hyperparameters": {"epochs": 10**400}}
    return facts(place, trials=json.dumps({"id": "1", "task": "f1", "candidate": candidate, "seed": 0, "status": "failed"}))


@bad("tasks.csv line 2: ")
def history_table_with_words_for_numbers(place: Place) -> list[str]:
    arguments = facts(place)
    (place.root / "facts" / "tasks.csv").write_text(
        "fingerprint,name,source_dataset,classes,train,validation,test\nf1,t,s,two,10,2,2\n"
    )
    return arguments


@bad("photos: has no tasks.csv; give a folder that `history export` wrote")
def history_of_no_folder(place: Place) -> list[str]:
    return ["history", "import", str(good(place))]


@bad("no trial 'nobody' in the history; `automl-tl history list` names them")
def history_show_of_nobody(place: Place) -> list[str]:
    return ["history", "show", "nobody"]


@bad("taken.txt: cannot be made or used: .*; give another folder")
def history_export_onto_a_file(place: Place) -> list[str]:
    (place.root / "taken.txt").write_text("mine")
    return ["history", "export", str(place.root / "taken.txt")]


@bad("cannot read the plan .*plan.json: .*; see metadb/plan.json for an example")
def plan_that_is_not_json(place: Place) -> list[str]:
    (place.root / "plan.json").write_text("{")
    return ["history", "build", str(place.root / "plan.json"), "--data", str(place.root)]


@bad("cannot read the plan .*plan.json: .*; see metadb/plan.json for an example")
def plan_that_is_a_number(place: Place) -> list[str]:
    (place.root / "plan.json").write_text("5")
    return ["history", "build", str(place.root / "plan.json"), "--data", str(place.root)]


@bad("gone does not exist")
def plan_of_missing_images(place: Place) -> list[str]:
    tasks = [{"name": "t", "location": "gone", "source_dataset": "s"}]
    (place.root / "plan.json").write_text(json.dumps({"tasks": tasks, "trials": 1}))
    return ["history", "build", str(place.root / "plan.json"), "--data", str(place.root)]


CARD = {
    "name": "mine",
    "build": {"timm": "resnet10t"},
    "num_classes": 2,
    "source_dataset": "s",
    "source_domain": "d",
    "input_size": [3, 64, 64],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}


def zoo_of(place: Place, card: str, *, weights: bool = True) -> list[str]:
    folder = place.root / "zoo"
    folder.mkdir()
    (folder / "mine.json").write_text(card)
    if weights:
        (folder / "mine.safetensors").write_bytes(b"")
    return ["zoo", "add", str(folder)]


@bad(r"photos: holds no network that can be used: there is no card \(NAME.json\) in it")
def zoo_without_cards(place: Place) -> list[str]:
    return ["zoo", "add", str(good(place))]


@bad("nowhere: is not a folder")
def zoo_that_is_not_there(place: Place) -> list[str]:
    return ["zoo", "add", str(place.root / "nowhere")]


@bad("mine: its weights are missing: there is no mine.safetensors beside it")
def card_without_weights(place: Place) -> list[str]:
    return zoo_of(place, json.dumps(CARD), weights=False)


@bad("mine: mean: missing; expected three numbers")
def card_with_a_missing_field(place: Place) -> list[str]:
    return zoo_of(place, json.dumps({name: value for name, value in CARD.items() if name != "mean"}))


@bad(r"mine: build: timm [0-9.]+ has no network 'resnet9000'")
def card_of_an_unknown_architecture(place: Place) -> list[str]:
    return zoo_of(place, json.dumps(CARD | {"build": {"timm": "resnet9000"}}))


@bad(r"mine: mean: expected three numbers, but got \[NaN, 0, 0\]")
def card_of_no_numbers(place: Place) -> list[str]:
    return zoo_of(place, json.dumps(CARD | {"mean": [float("nan"), 0, 0]}))


@bad("zoo: was not added; added are: none")
def zoo_that_was_never_added(place: Place) -> list[str]:
    return ["zoo", "remove", *zoo_of(place, json.dumps(CARD))[2:]]


@bad("mine: cannot be read as a card: ")
def card_that_is_not_json(place: Place) -> list[str]:
    return zoo_of(place, "{")


@bad("history.db: cannot be used as a history: file is not a database; move it away")
def history_that_is_no_database(place: Place) -> list[str]:
    (place.home / "history.db").write_bytes(b"no database at all" * 100)
    return fit(good(place))


@bad("zoos.json: expected a JSON list of folders.*delete it")
def list_of_zoos_that_is_damaged(place: Place) -> list[str]:
    (place.home / "zoos.json").write_text("{")
    return ["zoo", "list"]


# The test


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `fit` leaves it; what it has learnt does not matter here."""
    from torch import nn

    from automl_tl import model
    from automl_tl.backbones import build, catalogue
    from automl_tl.records import Candidate
    from automl_tl.strategy import Classifier

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:  # the home of each test is not there yet
        patch.setenv("AUTOML_TL_HOME", str(tmp_path_factory.mktemp("home")))
        backbone = min((b for b in catalogue().values() if b.zoo == "embedded"), key=lambda b: b.params)
        net = Classifier(build(backbone), nn.Linear(backbone.num_features, 2))
        model.save(folder, net, backbone, Candidate(backbone.name, "linear-probe"), ("a", "b"), {})
    return folder


@pytest.fixture
def place(tmp_path: Path, own_home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    root, model = tmp_path / "place", tmp_path / "model"
    root.mkdir()
    model.mkdir()
    for path in trained.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(root)
    return Place(root, model, own_home)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit code and what was written, of the function that the installed command calls."""
    monkeypatch.setattr(sys, "argv", ["automl-tl", *arguments])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    capfd.readouterr()
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr()
    return stopped.value.code, said.out, said.err


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_nothing_half_written(place: Place, before: dict[str, bytes]) -> None:
    assert files(place.root.parent) == before
    assert not list(place.home.rglob("*.partial"))
    history = place.home / "history.db"
    if history.exists() and history.read_bytes().startswith(b"SQLite"):
        connection = sqlite3.connect(history)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()


@pytest.mark.parametrize(("prepare", "message"), KINDS.values(), ids=KINDS.keys())
def test_bad_input_is_named_in_one_line(
    prepare: Prepare, message: str, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = prepare(place)
    before = files(place.root.parent)
    code, out, err = run(arguments, monkeypatch, capfd)
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert (code, out) == (2, "")
    check_nothing_half_written(place, before)


@pytest.mark.parametrize(("prepare", "message"), USAGE.values(), ids=USAGE.keys())
def test_wrong_use_is_answered_with_the_usage(
    prepare: Prepare, message: str, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = prepare(place)
    before = files(place.root.parent)
    code, out, err = run(arguments, monkeypatch, capfd)
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert err.startswith("Usage: ")
    assert (code, out) == (2, "")
    check_nothing_half_written(place, before)


def test_thirty_kinds() -> None:
    assert len(KINDS) >= 30


@pytest.mark.parametrize("kind", ["one_class", "out_that_is_a_file"])
def test_the_installed_command_says_the_same(kind: str, place: Place) -> None:
    prepare, message = KINDS[kind]
    command = [sys.executable, "-m", "automl_tl.cli", *prepare(place)]
    before = files(place.root.parent)
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", done.stderr), done.stderr
    assert (done.returncode, done.stdout) == (2, "")
    check_nothing_half_written(place, before)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_home_that_cannot_be(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the home should be, or above it."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path / "file" / below))
    code, _, err = run(["history", "list"], monkeypatch, capfd)
    assert re.fullmatch(
        r"error: [^\n]*file[^\n]*: cannot be made or used: [^\n]*; set AUTOML_TL_HOME to another folder\n", err
    ), err
    assert code == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b", "a"], "image 1: has no label; give it one or remove it"),
        ([1.0, 0.0, float("nan"), 1.0], "image 2: has no label"),
        ([0.25, 1.0, 0.5, 1.0], r"image 0: its label is 0\.25; labels are classes"),
        (["a", "b"], "4 images, but 2 labels"),
        (["a"] * 4, "all images are of one class, 'a'"),
        (np.eye(4), "y must be one-dimensional"),
    ],
)
def test_the_estimator_names_bad_labels(labels: Any, message: str, tmp_path: Path) -> None:
    from automl_tl import TransferClassifier

    with pytest.raises(InputError, match=message):
        TransferClassifier(budget="1 trials", out=tmp_path / "run").fit(np.zeros((4, 8, 8), dtype=np.uint8), labels)
    assert not (tmp_path / "run").exists()


def test_the_next_try_with_better_input_is_not_in_the_way(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that was refused leaves no claim on its folder."""
    for arguments, message in (
        (fit(good(place), "--backbone", "nobody"), "unknown backbone"),
        (fit(place.root / "photos", "--strategy", "nobody"), "unknown strategy"),
        (fit(place.root / "photos", "--zoo", "nobody"), "unknown zoo"),
    ):
        code, _, err = run(arguments, monkeypatch, capfd)
        assert (code, message in err) == (2, True)
        assert not (place.root / "run").exists()
