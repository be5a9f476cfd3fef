"""How the embedded networks came to be, on a small scale."""

from __future__ import annotations

import json
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


def test_interrupted_and_gone_on_is_the_same_network(tmp_path: Path) -> None:
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32)).convert("RGB")) for image in arrays(128)[0]])
    labels = np.array(arrays(128)[1])
    train, test = (images[:96], labels[:96]), (images[96:], labels[96:])
    whole, facts = pretrain(SMALL, train, test, checkpoint=tmp_path / "a.pt", say=lambda text: None)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pretrain(SMALL, train, test, checkpoint=tmp_path / "b.pt", say=interrupt)
    resumed, again = pretrain(SMALL, train, test, checkpoint=tmp_path / "b.pt", say=lambda text: None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    accuracy = [value for key, value in facts.items() if "accuracy" in key]
    assert accuracy == [value for key, value in again.items() if "accuracy" in key]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_embedded_network_has_its_recipe(path: Path) -> None:
    recipe, backbone = read_recipe(path), catalogue()[path.stem]
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
