"""How the embedded networks came to be, on a small scale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import arrays

from automl_tl.backbones import build, catalogue
from automl_tl.cards import add_folder
from automl_tl.errors import InputError
from automl_tl.pretexts import PRETEXTS
from automl_tl.pretraining import Recipe, pretrain, pretrain_recipe, read_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "plugins" / "zoos" / "recipes").glob("*.json"))
SMALL = Recipe(
    name="resnet10t_8.digits_32",
    build={"timm": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}},
    source_dataset="digits",
    source_domain="handwritten digits",
    input_size=32,
    epochs=4,
    batch_size=32,
    rate=3e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    scale=0.7,
    flip=False,
    rotate=5,
    jitter=0.1,
    start_size=24,
    precision="fp32",
    seed=0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(zip(*arrays(400), strict=True)):
        place = folder / ("test" if number >= 320 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return folder


def test_a_recipe_becomes_a_network_of_the_zoo(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(SMALL)))
    said: list[str] = []
    card = pretrain_recipe(recipe, data, tmp_path / "out", say=said.append)
    facts = json.loads(card.read_text())
    assert facts["source_dataset"] == "digits"
    assert len(said) >= 4
    add_folder(tmp_path / "out")
    backbone = catalogue()["resnet10t_8.digits_32"]
    assert (backbone.num_classes, backbone.num_features, backbone.input_size) == (10, 16, 32)
    assert backbone.source_accuracy is not None
    assert 0.2 < backbone.source_accuracy <= 1
    assert build(backbone, head=True)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("kwargs", [{}, {"drop_path_rate": 0.5}], ids=["plain", "dropped paths"])
def test_interrupted_and_gone_on_is_the_same_network(tmp_path: Path, kwargs: dict[str, float]) -> None:
    recipe = replace(SMALL, build={**SMALL.build, "kwargs": {**SMALL.build["kwargs"], **kwargs}})
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32)).convert("RGB")) for image in arrays(128)[0]])
    labels = np.array(arrays(128)[1])
    train, test = (images[:96], labels[:96]), (images[96:], labels[96:])
    whole, facts = pretrain(recipe, train, test, checkpoint=tmp_path / "a.pt", say=lambda text: None)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, train, test, checkpoint=tmp_path / "b.pt", say=interrupt)
    resumed, again = pretrain(recipe, train, test, checkpoint=tmp_path / "b.pt", say=lambda text: None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    accuracy = [value for key, value in facts.items() if "accuracy" in key]
    assert accuracy == [value for key, value in again.items() if "accuracy" in key]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:1000], lambda whole: b"x" * 1000])
def test_a_checkpoint_that_is_damaged_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """As by a power cut."""
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32)).convert("RGB")) for image in arrays(40)[0]])
    part, path = (images, np.array(arrays(40)[1])), tmp_path / "small.pt"

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(SMALL, part, part, checkpoint=path, say=interrupt)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"small\.pt: is damaged; delete it, and the pretraining begins anew"):
        pretrain(SMALL, part, part, checkpoint=path, say=interrupt)


def test_an_edited_recipe_and_other_images_begin_anew(data: Path, tmp_path: Path, own_home: Path) -> None:
    """An interrupted training is gone on with by its own recipe on its own images alone, and then leaves no checkpoint."""
    other = shutil.copytree(data, tmp_path / "other")
    next(other.glob("train/*/*.png")).unlink()
    path = tmp_path / "recipe.json"

    def begin(epochs: int, images: Path) -> str:
        """What is said of the first epoch, which is the last."""

        def interrupt(text: str) -> None:
            raise KeyboardInterrupt(text)

        path.write_text(json.dumps(asdict(replace(SMALL, epochs=epochs))))
        with pytest.raises(KeyboardInterrupt) as stopped:
            pretrain_recipe(path, images, tmp_path / "out", say=interrupt)
        return str(stopped.value)

    assert "epoch 1/2" in begin(2, data)
    assert "epoch 1/3" in begin(3, data)
    assert "epoch 1/2" in begin(2, other)
    path.write_text(json.dumps(asdict(replace(SMALL, epochs=2))))
    said: list[str] = []
    assert len(list((own_home / "pretraining").iterdir())) == 3
    pretrain_recipe(path, data, tmp_path / "out", say=said.append)
    assert ["epoch 2/2" in text for text in said] == [True]
    assert len(list((own_home / "pretraining").iterdir())) == 2


@pytest.mark.parametrize("method", sorted(PRETEXTS))
def test_a_network_that_saw_no_label(method: str, data: Path, tmp_path: Path) -> None:
    """It has no source head; its accuracy is that of its nearest neighbours, well above chance, and its card says so."""
    recipe = replace(SMALL, name=f"resnet10t_8_{method}.digits_32", method=method, epochs=6)
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    card = json.loads(pretrain_recipe(tmp_path / "recipe.json", data, tmp_path / "out", say=lambda text: None).read_text())
    assert card["num_classes"] == 0
    assert "source_accuracy" not in card
    assert card["validation"]["what"] == "test images of digits, named by their 20 nearest training images"
    assert card["validation"]["top1"] > 0.4
    add_folder(tmp_path / "out")
    backbone = catalogue()[recipe.name]
    assert build(backbone)(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.num_features)


def test_embedded_networks_are_of_several_kinds() -> None:
    """Families and sources; and every network has its recipe."""
    embedded = [backbone for backbone in catalogue().values() if backbone.zoo == "embedded"]
    assert {backbone.family for backbone in embedded} >= {"resnet", "mobilenet", "convnext"}
    assert {backbone.source_dataset for backbone in embedded} >= {"tiny_imagenet", "omniglot_a", "fractals"}
    recipes = {path.stem: read_recipe(path) for path in RECIPES}
    assert {backbone.name for backbone in embedded} <= recipes.keys()
    folder = ROOT / "plugins" / "zoos" / "networks"
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 25e6


def trained(path: Path) -> bool:
    """A recipe may wait for somebody with a GPU."""
    return (ROOT / "plugins" / "zoos" / "networks" / path.name).exists()


@pytest.mark.parametrize("path", list(filter(trained, RECIPES)), ids=lambda path: path.stem)
def test_every_embedded_network_is_that_of_its_recipe(path: Path) -> None:
    recipe, backbone = read_recipe(path), catalogue()[path.stem]
    card = json.loads((ROOT / "plugins" / "zoos" / "networks" / path.name).read_text())
    assert card["recipe"].items() <= asdict(recipe).items()
    assert backbone.source_dataset == recipe.source_dataset
    assert backbone.input_size == recipe.input_size
    assert (backbone.architecture, dict(backbone.kwargs)) == (recipe.build["timm"], recipe.build["kwargs"])


def test_a_recipe_that_is_none_and_a_source_without_test_images(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({**asdict(SMALL), "epoch": 3}))
    with pytest.raises(InputError, match="cannot read the recipe"):
        read_recipe(recipe)
    recipe.write_text(json.dumps(asdict(replace(SMALL, name="other"))))
    with pytest.raises(InputError, match="no test images; a card needs a measured accuracy"):
        pretrain_recipe(recipe, data / "train", tmp_path / "out", say=lambda text: None)
    with pytest.raises(InputError, match="is trained on the images of digits; say where they are with --data"):
        pretrain_recipe(recipe, None, tmp_path / "out", say=lambda text: None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "telepathy"}, r"'method': expected one of \['supervised', 'barlow-twins', 'vicreg'\], but got 'telepathy'"),
        ({"epochs": "ten"}, "'epochs': expected a whole number from 1 to 100000, but got 'ten'"),
        ({"batch_size": 0}, "'batch_size': expected a whole number from 2 to"),
        ({"rate": float("nan")}, "'rate': expected a number from 1e-09 to 10.0, but got nan"),
        ({"name": "../elsewhere"}, "name: '../elsewhere' cannot be the name of a file"),
        ({"name": 7}, "name: expected text, but got 7"),
        ({"build": {"timm": "resnet999"}}, "timm .* has no network 'resnet999'"),
        ({"build": {"timm": "resnet10t", "kwargs": {"pretrained": True}}}, "'pretrained' is not for a card to say"),
        ({"build": {"timm": "vit_tiny_patch16_224"}}, "vit_tiny_patch16_224 does not take images of"),
    ],
)
def test_a_recipe_is_checked_before_hours_of_training(wrong: dict[str, object], message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({**asdict(SMALL), **wrong}))
    with pytest.raises(InputError, match=f"cannot read the recipe .*{message}"):
        read_recipe(recipe)


def test_a_batch_larger_than_the_images_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(replace(SMALL, batch_size=321))))
    with pytest.raises(InputError, match=r"recipe\.json: batch_size 321 is more than the 320 training images of .*; lower it"):
        pretrain_recipe(recipe, data, tmp_path / "out", say=lambda text: None)
