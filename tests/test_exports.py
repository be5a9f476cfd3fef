"""One run in every form: the same predictions, and nothing that runs a stranger's code."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import QUICK, TINY, arrays

import automl_tl
from automl_tl import Candidate, Classifier, model
from automl_tl.backbones import build, catalogue
from automl_tl.errors import AutomlError, InputError
from automl_tl.exports import timm_folder, torch_program
from automl_tl.exports.card import PLACES, SETTINGS, plain, without_paths
from automl_tl.exports.torch_program import check_archive

AGREES = 1e-5
"""The largest difference of a probability from the run's that any form may show here."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwriting as PNGs of different sizes, with a hostile class name."""
    folder = tmp_path_factory.mktemp("secret-photos")
    for number, (image, label) in enumerate(zip(*arrays(120), strict=True)):
        name = "a|b <i>`0`" if label == 0 else f"digit {label}"
        place = folder / ("test" if number >= 90 else "train") / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((40 + number % 50, 90)).save(place / f"patient-{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(make_home()))
        out = tmp_path_factory.mktemp("run")
        patch.setattr("sys.argv", ["/opt/bin/automl-tl", "fit", str(photos), "--out", str(out)])
        automl_tl.fit(photos, budget="1 trials", out=out, strategies=["linear-probe"], backbones=[QUICK])
        yield out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each form is made once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("exported")
    known: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form == "onnx":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                pytest.importorskip(package, reason="needs pip install 'automl_tl[onnx]'")
        if form not in known:
            found = automl_tl.export(run, to=form, out=folder / form)
            assert found.largest_difference <= AGREES
            assert set(found.files) == {path.name for path in (folder / form).iterdir()}
            known[form] = folder / form
        return known[form]

    return make


@pytest.mark.parametrize("form", ["timm", "onnx", "torch"])
def test_every_form_predicts_the_same(form: str, run: Path, photos: Path, exported: Callable[[str], Path]) -> None:
    expected = automl_tl.predict(run, photos / "test")
    found = automl_tl.predict(exported(form), photos / "test")
    assert len(found.where) == 30
    assert (found.where, found.classes, found.labels) == (expected.where, expected.classes, expected.labels)
    largest = np.abs(found.probabilities - expected.probabilities).max()
    assert largest <= AGREES
    assert automl_tl.evaluate(exported(form), photos) == pytest.approx(automl_tl.evaluate(run, photos), abs=1e-5)
    print(f"{form}: largest difference {largest:.2g}")


def test_images_in_blocks_are_predicted_as_at_once(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sorted((photos / "test").rglob("*.png"))
    broken = photos.parent / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:100])
    expected = automl_tl.predict(run, images)
    monkeypatch.setattr("automl_tl.exports.predictor.DECODED", 8)
    found = automl_tl.predict(run, images)
    assert (found.where, found.labels) == (expected.where, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)  # of smaller batches
    with pytest.raises(InputError, match=r"broken\.png"):
        automl_tl.predict(run, [*images, broken])
    nothing = automl_tl.predict(run, [])
    assert (nothing.labels, nothing.probabilities.shape) == ([], (0, 10))


def test_one_image_is_one_image_in_every_form(run: Path, photos: Path) -> None:
    """Not its rows, each for a grey one."""
    path = sorted((photos / "test").rglob("*.png"))[0]
    expected = automl_tl.predict(run, path).labels
    with Image.open(path) as image:
        colours = np.asarray(image.convert("RGB"))
        assert automl_tl.predict(run, image).labels == expected
    assert automl_tl.predict(run, colours).labels == expected
    assert automl_tl.predict(run, path.read_bytes()).labels == expected
    assert automl_tl.predict(run, colours[None]).labels == expected
    with pytest.raises(InputError, match="a NoneType is no image"):
        automl_tl.predict(run, None)  # type: ignore[arg-type]


def test_timm_alone_predicts_the_same(run: Path, photos: Path, exported: Callable[[str], Path]) -> None:
    """As a person does it who has never heard of us: create_model, create_transform."""
    import timm

    net = timm.create_model(f"local-dir:{exported('timm')}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    expected = automl_tl.predict(run, photos / "test")
    assert tuple(net.pretrained_cfg["label_names"]) == expected.classes
    images = torch.stack([prepare(Image.open(photos / "test" / name).convert("RGB")) for name in expected.where])
    with torch.inference_mode():
        found = net(images).softmax(1).numpy()
    assert np.abs(found - expected.probabilities).max() <= AGREES


def test_onnx_says_how_images_are_prepared(run: Path, exported: Callable[[str], Path]) -> None:
    """And onnxruntime alone, from what the metadata say, gives the same."""
    folder = exported("onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    beside = json.loads((folder / "model.onnx.json").read_text(encoding="utf-8"))
    assert json.loads(facts["classes"]) == beside["classes"] == list(model.load(run / "model").classes)
    assert json.loads(facts["preparation"]) == beside["preparation"]
    assert beside["normalisation"]["where"] == "inside the graph"
    assert float(facts["largest_difference"]) <= float(facts["tolerance"]) == 1e-4
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape[1:]) == ("images", "tensor(uint8)", [64, 64, 3])
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        (chances,) = session.run(None, {"images": images})
        assert np.abs(chances - model.load(run / "model").probabilities(images)).max() <= AGREES


def test_a_program_holds_nothing_that_is_unpickled_or_evaluated(exported: Callable[[str], Path], tmp_path: Path) -> None:
    good = exported("torch") / "model.pt2"
    check_archive(good)
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(parts)).partition("/")[0]
    graph, table = f"{root}/models/model.json", f"{root}/data/weights/model_weights_config.json"

    def changed(name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
        return {**parts, name: json.dumps(change(json.loads(parts[name]))).encode()}

    def replaced(old: str, new: str) -> dict[str, bytes]:
        assert old.encode() in parts[graph]
        return {**parts, graph: parts[graph].replace(old.encode(), new.encode())}

    symbol = parts[graph].decode().partition('"expr_str": "')[2].partition('"')[0]
    foreign = (
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.mul.out",
    )
    hostile = {
        "use_pickle": {**parts, table: parts[table].replace(b'"use_pickle": false', b'"use_pickle": true', 1)},
        "pickled sample inputs": {**parts, f"{root}/data/sample_inputs/model.pt": b"\x80\x04."},
        "data/aotinductor": {**parts, f"{root}/data/aotinductor/model/evil.so": b"\x7fELF"},
        "data/weights/model.pt": {**parts, f"{root}/data/weights/model.pt": b"\x80\x04."},
        "guards_code": changed(graph, lambda facts: {**facts, "guards_code": ["__import__('os').system('true')"]}),
        **{target: replaced("torch.ops.aten.softmax.int", target) for target in foreign},
        "torch.ops.aten.from_file": replaced('"as_int": 1}', '"as_operator": "torch.ops.aten.from_file"}'),
        "has the size": replaced(symbol, "__import__('os').getpid()"),
        "cannot be read": {},
    }
    for reason, contents in hostile.items():
        bad = tmp_path / "model.pt2"
        with zipfile.ZipFile(bad, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        if not contents:
            bad.write_bytes(b"no archive")
        with pytest.raises(InputError, match=reason):
            check_archive(bad)


@pytest.fixture
def parts(exported: Callable[[str], Path]) -> dict[str, bytes]:
    """Of a good program."""
    with zipfile.ZipFile(exported("torch") / "model.pt2") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("size", ["9**9**9", "9" * 19, "+".join("1" * 600), "Pow(Integer(9), Integer(9))", "9//0"])
def test_a_size_of_a_program_is_worked_out_at_once_or_refused(size: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    graph = next(name for name in parts if name.endswith("models/model.json"))
    symbol = parts[graph].decode().partition('"expr_str": "')[2].partition('"')[0]
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(symbol.encode(), size.encode()))
    with pytest.raises(InputError, match="cannot read it" if size == "9//0" else "it has the size"):
        torch_program.read(tmp_path / "model.pt2")


@pytest.mark.parametrize("trouble", ["packed", "encrypted", "large", "cut"])
def test_a_program_is_not_larger_than_its_file(trouble: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    """torch packs nothing; what is packed may be a thousand times larger, or no stream at all."""
    file = tmp_path / "model.pt2"
    graph = next(name for name in parts if name.endswith("models/model.json"))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if trouble == "packed" else zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            room = b" " * (torch_program.LARGEST_TABLE if trouble == "large" and name == graph else 0)
            archive.writestr(name, content + room)
    if trouble in ("encrypted", "cut"):
        data = bytearray(file.read_bytes())
        entry = data.rindex(graph.encode()) - 46  # of the archive's list
        data[entry + 8 :] = data[entry + 8 :].replace(b"\0", b"\1", 1) if trouble == "encrypted" else data[entry + 8 :]
        if trouble == "cut":
            data[entry + 20 : entry + 28] = (2**20).to_bytes(4, "little") * 2
        file.write_bytes(data)
    words = {"cut": "cannot be read as", "large": r"model\.json of [\d,]+ bytes"}.get(trouble, "which is packed or encrypted")
    with pytest.raises(InputError, match=words):
        check_archive(file)


def test_windows_are_exported_and_read_back(tmp_path: Path) -> None:
    """Of images n×64 tokens, say: such sizes are products of n."""

    class Windows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = images.flatten(1).reshape(-1, 8)
            return rows.softmax(1).reshape(images.shape[0], -1)[:, :3]

    facts = replace(catalogue()[TINY], name="windows", num_features=3)
    assert torch_program.write(tmp_path, trained(facts, Windows())) <= AGREES


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_graph_names_no_folder_of_this_machine(form: str, run: Path, exported: Callable[[str], Path]) -> None:
    """Each step was noted with the lines of code that it comes from."""
    folders = (Path(sys.prefix), Path(automl_tl.__file__).parent, Path.home(), Path.cwd(), run)
    names = {str(path).encode() for path in folders}
    assert min(map(len, names)) > 1
    for path in exported(form).iterdir():
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += map(archive.read, archive.namelist())
        for name in (*names, b"site-packages", b'.py"'):
            assert not any(name in content for content in contents), (path.name, name)


@pytest.mark.parametrize(
    ("form", "name", "content", "words"),
    [
        ("timm", "config.json", b"{", "is damaged"),
        ("timm", "config.json", b'{"pretrained_cfg": {}}', "is damaged: KeyError"),
        ("timm", "model.safetensors", b"1234567890", "does not hold this network"),
        ("torch", "model.pt2", b"PK", "cannot be read as a torch.export program"),
        ("torch", "model.pt2.json", b"[]", "is damaged"),
    ],
)
def test_damage_is_named(
    form: str, name: str, content: bytes, words: str, exported: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(exported(form), tmp_path / "copy"))
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        automl_tl.predict(copy, photos / "test")


def test_a_timm_folder_cannot_ask_for_a_pickle(exported: Callable[[str], Path], photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported("timm"), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["model_args"]["checkpoint_path"] = "evil.pth"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(AutomlError, match="checkpoint_path"):
        automl_tl.predict(copy, photos / "test")


def test_the_card_says_what_matters_and_nothing_else(run: Path, photos: Path, exported: Callable[[str], Path]) -> None:
    card = (exported("timm") / "README.md").read_text(encoding="utf-8")
    front = card.split("---")[1]
    for line in ('library_name: "timm"', 'pipeline_tag: "image-classification"', 'license: "mit"'):
        assert line in front
    test = model.load(run / "model").facts["test"]
    assert f"| accuracy | {test['accuracy']:.3f} | 0." in card, "with its interval"
    assert "on 30 test images" in card
    for heading in ("Data", "Training", "Scores", "Intended use and limits", "Licence", "How to reproduce it"):
        assert f"\n## {heading}\n" in card
    assert "ImageOps.exif_transpose(" in card, "or a photograph of a phone is classified lying on its side"
    assert "a\\|b &lt;i&gt;\\`0\\`" in card
    assert "automl-tl fit PATH --out PATH\n" in card
    for private in (str(photos.parent), str(run.parent), "patient-", "/opt/bin"):
        assert private not in card
        assert private not in (exported("timm") / "config.json").read_text(encoding="utf-8")


def test_words_of_others_are_made_harmless() -> None:
    assert plain("a\n# b | <script>*x*`") == "a \\# b \\| &lt;script&gt;\\*x\\*\\`"


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (
            "automl-tl fit '/srv/ann/my photos/' --out=/tmp/runs/x --budget '5 trials' --json",
            "automl-tl fit PATH --out=PATH --budget '5 trials' --json",
        ),
        (
            r"automl-tl fit 'C:\Users\ann\photos' --source 'D:\clinic b\old.csv' --robust 8/255",
            "automl-tl fit PATH --source PATH --robust 8/255",
        ),
        (
            "automl-tl fit --backbone=resnet10t_24.tiny_imagenet_64 --seed 3 patients.csv",
            "automl-tl fit --backbone=resnet10t_24.tiny_imagenet_64 --seed 3 PATH",
        ),
        ("automl-tl fit --clients ward_a --clients ward_b -- -ward", "automl-tl fit --clients PATH --clients PATH PATH PATH"),
        ("automl-tl fit /home/o'brien/photos", ""),
        ("train_on_patients.py --budget 10m", ""),
        ("automl-tl", ""),
        ("", ""),
    ],
)
def test_a_command_leaves_without_names_of_files(command: str, left: str) -> None:
    assert without_paths(command) == left


def test_every_option_of_fit_is_known_to_leave_or_not() -> None:
    import typer

    from automl_tl.cli import app

    group: Any = typer.main.get_command(app)
    options = {name for option in group.commands["fit"].params for name in option.opts if name.startswith("--")}
    assert options == SETTINGS | PLACES
    assert not SETTINGS & PLACES


def test_what_cannot_be_used_is_said(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: timm, onnx, torch, hub"):
        automl_tl.export(run, to="pickle")
    with pytest.raises(InputError, match="holds no trained model"):
        automl_tl.export(photos, to="timm")
    with pytest.raises(InputError, match="holds other things"):
        automl_tl.export(run, to="timm", out=photos)
    with pytest.raises(InputError, match="OWNER/NAME"):
        automl_tl.export(run, to="hub")
    with pytest.raises(InputError, match="OWNER/NAME"):
        automl_tl.export(run, to="hub", out="alone", dry_run=True)
    assert not list(photos.glob(".export-*"))
    dry = automl_tl.export(run, to="timm", out=tmp_path / "dry", dry_run=True)
    assert dry.files["model.safetensors"] > 1e6
    assert not dry.written
    assert not (tmp_path / "dry").exists()


def trained(backbone: automl_tl.Backbone, net: torch.nn.Module, classes: int = 3) -> model.Model:
    """As if trained: a head of random weights."""
    torch.manual_seed(0)
    head = torch.nn.Linear(backbone.num_features, classes)
    names = tuple(f"class {number}" for number in range(classes))
    return model.Model(Classifier(net, head).eval(), backbone, Candidate(backbone.name, "none"), names, {})


ARCHITECTURES = (
    *("convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "regnetx_002", "efficientnet_b0", "test_vit"),
    *("ghostnet_050", "densenet121", "vgg11", "mobileone_s0", "xcit_nano_12_p16_224", "poolformer_s12", "edgenext_xx_small"),
)


every_architecture = pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES[:2], *(pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES[2:])]
)


def of_timm(architecture: str) -> model.Model:
    """As if trained: timm's network with random weights."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=0).eval()
    size = net.pretrained_cfg["input_size"][1]
    with torch.inference_mode():
        features = net(torch.zeros(1, 3, size, size)).shape[1]
    facts = catalogue()[TINY]
    return trained(replace(facts, name=architecture, architecture=architecture, num_features=features, input_size=size), net)


@every_architecture
def test_heads_of_timm_with_more_layers(architecture: str, tmp_path: Path) -> None:
    """ConvNeXt has a norm, MobileNetV3 a convolution between pooling and classifier: they are in the headless network, too."""
    ours = of_timm(architecture)
    size = ours.backbone.input_size
    assert timm_folder.write(tmp_path, ours) <= 1e-5
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    np.testing.assert_allclose(timm_folder.read(tmp_path).probabilities(images), ours.probabilities(images), atol=1e-5)


@every_architecture
def test_programs_of_timm_are_not_refused(architecture: str, tmp_path: Path) -> None:
    assert torch_program.write(tmp_path, of_timm(architecture)) <= 1e-5


def test_a_program_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    class Strange(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(images.mean((2, 3)))

    facts = replace(catalogue()[TINY], name="strange", num_features=3)
    with pytest.raises(InputError, match=r"strange: its network calls torch\.ops\.aten\.special_i0\.default, .* use --to onnx"):
        torch_program.write(tmp_path, trained(facts, Strange()))
    assert not list(tmp_path.iterdir())


def test_a_head_that_does_not_fit_is_said(tmp_path: Path) -> None:
    """LeViT normalises between features and classifier, and only where there is a classifier."""

    import timm

    net = timm.create_model("levit_128s", num_classes=0).eval()
    facts = replace(catalogue()[TINY], name="levit", architecture="levit_128s", num_features=net.num_features, input_size=224)
    with pytest.raises(InputError, match="a linear head does not fit; use --to onnx"):
        timm_folder.write(tmp_path, trained(facts, net))
    with pytest.raises(InputError, match="is not built by timm"):
        timm_folder.write(tmp_path, trained(replace(facts, architecture=""), net))


def test_embedded_networks_map_one_to_one(tmp_path: Path) -> None:
    for backbone in catalogue().values():
        if backbone.zoo == "embedded":
            assert timm_folder.write(tmp_path, trained(backbone, build(backbone))) <= 1e-6
