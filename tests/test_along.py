"""From locations and options to a task: what comes along is read, refused in a sentence, and never half used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from automl_tl import fit
from automl_tl.along import Along, fraction, read_task
from automl_tl.data import load_task
from automl_tl.errors import InputError
from automl_tl.objectives import ADAPTATION, brings
from automl_tl.records import SOURCE, TARGET, TEST, TRAIN, VALIDATION


def lay(folder: Path, classes: range, *, count: int = 8, start: int = 0, flat: bool = False) -> Path:
    """`count` digits of each class as files, below a folder for each class or all in one."""
    digits = load_digits()
    for label in classes:
        for number, index in enumerate(np.flatnonzero(digits.target == label)[start : start + count]):
            place = folder if flat else folder / f"digit {label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(digits.images[index] * 15)).save(place / f"{label}_{number}.png")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lay(tmp_path / "source", range(3))


def test_a_flat_folder_is_a_target_without_labels(tmp_path: Path, source: Path) -> None:
    task = read_task(lay(tmp_path / "flat", range(3), start=20, flat=True), Along(source=source))
    assert task.objective == ADAPTATION
    assert len(task.part(TARGET)) == 24
    assert (task.labels[task.part(TARGET)] == -1).all()
    assert not len(task.part(TEST))
    hard = read_task(tmp_path / "flat", Along(source=source, robust=8 / 255))
    assert brings(hard) == {"target", "epsilon"}


def test_a_fraction_in_python_as_on_the_command_line(source: Path) -> None:
    assert read_task(source, Along(robust="8/255")).epsilon == pytest.approx(8 / 255)
    with pytest.raises(InputError, match="above 0"):
        read_task(source, Along(robust="0"))


def test_unlabelled_images_beside_test_images(tmp_path: Path, source: Path) -> None:
    lay(tmp_path / "target" / "unlabelled", range(3), start=20, flat=True)
    lay(tmp_path / "target" / "test", range(3), start=40, count=4)
    task = read_task(tmp_path / "target", Along(source=source))
    assert {name: len(part) for name, part in task.splits.items()} == {TRAIN: 18, VALIDATION: 6, TARGET: 24, TEST: 12}
    assert (task.labels[task.part(TARGET)] == -1).all()
    assert all("source" not in task.where[i] for i in task.part(TARGET))
    assert np.bincount(task.labels[task.part(TEST)]).tolist() == [4, 4, 4]
    with pytest.raises(InputError, match="no image is marked as train; give labelled images of another domain with --source"):
        read_task(tmp_path / "target")


def test_a_partly_labelled_target(tmp_path: Path, source: Path) -> None:
    lay(tmp_path / "target", range(3), start=40)
    lay(tmp_path / "target" / "unlabelled", range(3), start=20, flat=True)
    task = read_task(tmp_path / "target", Along(source=source))
    assert len(task.part(TRAIN)) == 18 + 18, "the target's labels are used"
    assert len(task.part(VALIDATION)) == 6 + 6
    assert len(task.part(TARGET)) == 24 + 18, "and its training images come along without labels, too"
    assert task.classes == ("digit 0", "digit 1", "digit 2")


def test_a_manifest_with_unlabelled_rows(tmp_path: Path, source: Path) -> None:
    lay(tmp_path / "images", range(3), start=20)
    rows = [f"{path.relative_to(tmp_path)},,target" for path in sorted((tmp_path / "images").rglob("*.png"))[:20]]
    rows += [
        f"{path.relative_to(tmp_path)},{path.parent.name},test" for path in sorted((tmp_path / "images").rglob("*.png"))[20:]
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    task = read_task(tmp_path / "list.csv", Along(source=source))
    assert (len(task.part(TARGET)), len(task.part(TEST))) == (20, 4)
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", rows[0].replace("target", "train"), *rows[1:]]))
    with pytest.raises(InputError, match="has no label"):
        read_task(tmp_path / "list.csv", Along(source=source))


def test_unlabelled_images_do_not_disturb_a_task_without_a_source(tmp_path: Path, source: Path) -> None:
    plain = load_task(source)
    lay(source / "unlabelled", range(3), start=40, flat=True)
    both = load_task(source)
    assert both.classes == plain.classes
    assert {both.where[i] for i in both.part(TRAIN)} == {plain.where[i] for i in plain.part(TRAIN)}
    assert len(both.part(TARGET)) == 24
    assert brings(both) == {"target"}


def test_an_unlabelled_twin_of_a_test_image_is_left_out(tmp_path: Path, source: Path) -> None:
    lay(tmp_path / "target" / "test", range(3), start=40, count=4)
    lay(tmp_path / "target" / "unlabelled", range(3), start=42, flat=True)
    task = read_task(tmp_path / "target", Along(source=source))
    tested = set(task.hashes[task.part(TEST)].tolist())
    assert len(tested) == 12
    assert not tested & set(task.hashes[task.part(TARGET)].tolist())
    assert any("near-duplicates of test images" in warning for warning in task.warnings)


def test_a_source_of_other_classes_is_for_learning_to_learn(tmp_path: Path, source: Path) -> None:
    other = lay(tmp_path / "others", range(4, 8))
    task = read_task(source, Along(source=other, shots=1))
    assert brings(task) == {"source"}
    assert len(task.part(TRAIN)) == 3
    assert len(task.part(SOURCE)) == 32


def test_the_images_themselves_are_no_source(tmp_path: Path, source: Path) -> None:
    lay(tmp_path / "flat", range(3), flat=True)
    for location, shots in ((source, 0), (source, 2), (tmp_path / "flat", 0)):
        with pytest.raises(InputError, match="--source: these are the same images"):
            read_task(location, Along(source=source, shots=shots))


def test_clients_in_folders_and_in_number(tmp_path: Path, source: Path) -> None:
    folders = tuple(lay(tmp_path / f"client {number}", range(3), start=20 + 10 * number) for number in range(2))
    assert brings(read_task(source, Along(clients=folders))) == {"clients"}
    assert brings(read_task(source, Along(clients=2))) == {"clients"}


@pytest.mark.parametrize(
    ("along", "words"),
    [
        (Along(keep="x"), "give that model with --after"),
        (Along(source="x", after="y"), "--source and --after ask for different things"),
        (Along(after="y", clients=3), "--after and --clients"),
        (Along(robust=0.1, clients=3), "--robust goes with images alone or with --source"),
        (Along(robust=0.7), "at most 0.5"),
        (Along(source="nowhere"), "nowhere does not exist"),
        (Along(clients=1), "at least two clients"),
        (Along(clients=0), "at least two clients, but there is 0"),
        (Along(skew=0.1), "say how many with --clients N"),
        (Along(skew=0.1, clients=("x", "y")), "say how many with --clients N"),
        (Along(after="nowhere"), "holds no trained model"),
    ],
    ids=str,
)
def test_what_does_not_go_together(source: Path, along: Along, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_task(source, along)


def test_shots_are_of_labelled_images(tmp_path: Path, source: Path) -> None:
    flat = lay(tmp_path / "flat", range(3), start=20, flat=True)
    lay(tmp_path / "target" / "unlabelled", range(3), start=20, flat=True)
    lay(tmp_path / "target" / "test", range(3), start=40, count=4)
    for place in (flat, tmp_path / "target"):
        with pytest.raises(InputError, match=f"--shots 2: {place.name} has no labelled training image to choose from"):
            read_task(place, Along(source=source, shots=2))


def test_what_comes_along_is_read_with_the_task(source: Path, tmp_path: Path) -> None:
    """Rather than forgotten, and the model no robust one."""
    with pytest.raises(InputError, match=r"what comes along with a task is read with it: give `along` to `api\.read_task`"):
        fit(load_task(source), along=Along(robust=0.1), budget="1 trials", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fractions() -> None:
    assert fraction("8/255", "--robust") == 8 / 255
    assert fraction("0.03", "--robust") == 0.03
    for text in ("eight", "1/0", "1/2/3", ""):
        with pytest.raises(InputError, match="expected a number such as 8/255"):
            fraction(text, "--robust")
    for text in ("0", "0/255", "-0.1", "nan"):
        with pytest.raises(InputError, match="--robust: expected a number above 0, such as 8/255"):
            fraction(text, "--robust")
