"""Same predictions from safetensors, timm, ONNX, torch.export and HTTP: the largest difference of a probability.

A real server trains a linear probe on each network and gives it away as an archive. What the archive's safetensors say here is
compared with what the server answers, and with every form that the archive is exported to, on images that the server never had
for training. Images are photographs (sign_digits of ../shared where it is, else scikit-learn's digits); networks are the embedded
ones and, where ../shared is, some of other people.
"""

from __future__ import annotations

import io
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
from _report import SHARED, arguments, table, unpacked, write
from PIL import Image
from service import start

FORMS = ("timm", "onnx", "torch")
REAL = ("mobilenetv2_050.mlkit_224", "mobilenetv2_100.in1k_224")
MOST = 128
"""Images that are classified."""


def main() -> None:
    from automl_tl.backbones import catalogue
    from automl_tl.cards import add_folder

    options = arguments(__doc__, "two embedded networks only").parse_args()
    figures: dict[str, float] = {}
    rows: list[tuple[object, ...]] = []
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["AUTOML_TL_HOME"] = str(folder / "server" / "home")  # the server's, so that both know the same networks
        networks = sorted(name for name, backbone in catalogue().items() if backbone.zoo == "embedded")
        if options.quick:
            networks = networks[:2]
        elif SHARED.is_dir():
            add_folder(SHARED / "weights")
            networks += REAL
        archive, unseen = images(folder)
        server, url = start(folder / "server", token)
        try:
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=600) as client:
                dataset = client.post("/api/datasets", files={"archive": ("images.zip", archive)}).raise_for_status().json()["id"]
                for network in networks:
                    run, over = trained(client, dataset, network, unseen, folder / "given" / network)
                    row, measured = compared(run, network, unseen, over)
                    rows.append(row)
                    print(*row, flush=True)
                    figures |= measured
                    figures["largest_difference_in_millionths"] = max(value for key, value in figures.items() if "differ" in key)
                    write(options.json, figures)  # after each network: a run that is cut short keeps what it has measured
        finally:
            server.terminate()
            server.wait()
    columns = ("network", "images", *FORMS, "HTTP", *(f"{form}, kB" for form in FORMS))
    table("Largest difference of a probability from those of the model's safetensors; sizes", columns, rows)


def images(folder: Path) -> tuple[bytes, dict[str, Path]]:
    """A zip to train on, and others of the same kind: name → file."""
    pictures: list[tuple[str, Path]] = []
    if SHARED.is_dir():
        from automl_tl.data import read_listing

        listing = read_listing(unpacked("sign_digits", folder))
        pictures = [(str(label), Path(str(image))) for image, label in zip(listing.images, listing.labels, strict=True)]
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        (folder / "digits").mkdir()
        for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            Image.fromarray(np.uint8(image * 15)).save(folder / "digits" / f"{number}.png")
            pictures.append((str(label), folder / "digits" / f"{number}.png"))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (label, path) in enumerate(pictures[::4]):
            archive.write(path, f"{label}/{number}{path.suffix}")
    others = pictures[1::4]
    few = others[:: max(len(others) // MOST, 1)][:MOST]
    return file.getvalue(), {f"{number}{path.suffix}": path for number, (_, path) in enumerate(few)}


def trained(
    client: httpx.Client, dataset: str, network: str, unseen: Mapping[str, Path], folder: Path
) -> tuple[Path, np.ndarray]:
    """The server's linear probe on a network, unpacked into `folder`, and what the server says: images × classes."""
    request = {"kind": "fit", "images": {"dataset": dataset}, "budget": "1 trials", "strategies": ["linear-probe"]}
    job = client.post("/api/jobs", json={**request, "backbones": [network]}).raise_for_status().json()["id"]
    while (state := client.get(f"/api/jobs/{job}").json()["state"]) not in ("finished", "failed", "cancelled"):
        time.sleep(0.5)
    assert state == "finished", client.get(f"/api/jobs/{job}").text
    sent = [("images", (name, path.read_bytes())) for name, path in unseen.items()]
    told = client.post(f"/api/models/{job}/predictions", files=sent).raise_for_status().json()["predictions"]
    given = client.get(f"/api/models/{job}/archive").raise_for_status().content
    with zipfile.ZipFile(io.BytesIO(given)) as model:
        model.extractall(folder)
    run = next(folder.rglob("model.json")).parent
    return run, np.array([one["probabilities"] for one in told])


def compared(
    run: Path, network: str, unseen: Mapping[str, Path], over: np.ndarray
) -> tuple[tuple[object, ...], dict[str, float]]:
    """A row of the table, and the same as figures."""
    from automl_tl import export, predict
    from automl_tl.errors import InputError

    pictures = list(unseen.values())
    expected = predict(run, pictures)
    figures: dict[str, float] = {f"{network}.images": len(pictures)}
    differences, sizes = [], []
    for form in FORMS:
        began = time.perf_counter()
        try:
            files = export(run, to=form, out=run.parent / form).files
        except InputError as error:
            print(f"{network}: no {form} form: {error}")
            differences.append("no")
            sizes.append("")
            continue
        figures[f"{network}.{form}.seconds"] = time.perf_counter() - began
        found = predict(run.parent / form, pictures)
        assert found.labels == expected.labels, f"{network}: the {form} form classifies differently"
        difference = float(np.abs(found.probabilities - expected.probabilities).max())
        figures[f"{network}.{form}.difference_in_millionths"] = 1e6 * difference
        differences.append(f"{difference:.1e}")
        sizes.append(f"{sum(files.values()) / 1000:.0f}")
    assert (over.argmax(1) == expected.probabilities.argmax(1)).all(), f"{network}: the server classifies differently"
    difference = float(np.abs(over - expected.probabilities).max())
    figures[f"{network}.http.difference_in_millionths"] = 1e6 * difference
    return (network, len(pictures), *differences, f"{difference:.1e}", *sizes), figures


if __name__ == "__main__":
    main()
