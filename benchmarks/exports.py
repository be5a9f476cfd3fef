"""Same predictions from safetensors, timm, ONNX, torch.export and HTTP: the largest difference of a probability.

Each network gets a linear probe on photographs (sign_digits of ../shared where it is, else scikit-learn's digits), is
exported in every form, and every form classifies images that were not trained on, through the same call that `automl-tl predict`
makes. Networks: the embedded ones and, where ../shared is, real ones of other people. HTTP: a real server trains a linear probe
and classifies; the model that it gives away as an archive classifies the same images here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _report import SHARED, arguments, table, unpacked, write

FORMS = ("timm", "onnx", "torch")
REAL = ("mobilenetv2_035s.in1k_128", "mobilenetv1_025.vww_96", "resnet20.cifar10_32", "squeezenet1_1.in1k_227")


def main() -> None:
    options = arguments(__doc__, "two embedded networks only").parse_args()
    rows: list[tuple[object, ...]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOML_TL_HOME"] = str(Path(folder) / "home")
        for row, measured in measure(Path(folder), quick=options.quick):
            rows.append(row)
            figures |= measured
            figures["largest_difference_in_millionths"] = max(value for key, value in figures.items() if "difference" in key)
            write(options.json, figures)  # after each network: a run that is cut short keeps what it has measured
        difference = over_http(Path(folder))
        figures |= {"http.difference_in_millionths": 1e6 * difference}
        write(options.json, figures)
        print(f"over HTTP: largest difference {difference:.1e}")
    columns = ("network", "images", *(f"{form}: largest difference" for form in FORMS), *(f"{form}: kB" for form in FORMS))
    table("Probabilities against those of the run itself (safetensors)", columns, rows)


def measure(folder: Path, *, quick: bool) -> Iterator[tuple[tuple[object, ...], dict[str, float]]]:
    """A row a network, and the same as figures."""
    from automl_tl import Candidate, export, load_task, model, predict
    from automl_tl.backbones import catalogue
    from automl_tl.cards import add_folder
    from automl_tl.errors import InputError
    from automl_tl.trials import run_trial

    names = [name for name, backbone in catalogue().items() if backbone.zoo == "embedded"]
    if quick:
        names = names[:2]
    elif SHARED.is_dir():
        add_folder(SHARED / "weights")
        names = [*names[:2], *(name for name in REAL if name in catalogue()), *names[2:]]
    task = load_task(_images(folder), name="photographs", seed=0)
    held_out = [task.images[i] for i in task.part("validation")]
    for name in names:
        run, backbone, candidate = folder / name, catalogue()[name], Candidate(name, "linear-probe")
        trial, fitted = run_trial(task, candidate, backbone, seed=0, folder=folder / "trial" / name)
        assert fitted is not None, trial.error
        model.save(run, fitted.model, backbone, candidate, task.classes, {})
        expected = predict(run, held_out)
        figures: dict[str, float] = {}
        differences, sizes = [], []
        for form in FORMS:
            start = time.perf_counter()
            try:
                files = export(run, to=form).files
            except InputError as error:
                print(f"{name}: no {form} form: {error}")
                differences.append("no")
                sizes.append("")
                continue
            figures[f"{name}.{form}.seconds"] = time.perf_counter() - start
            found = predict(run / "exports" / form, held_out)
            assert found.labels == expected.labels, f"{name}: the {form} form classifies differently"
            difference = float(np.abs(found.probabilities - expected.probabilities).max())
            figures[f"{name}.{form}.difference_in_millionths"] = 1e6 * difference
            differences.append(f"{difference:.1e}")
            sizes.append(f"{sum(files.values()) / 1000:.0f}")
        row = (name, len(held_out), *differences, *sizes)
        print(*row, flush=True)
        yield row, figures


def over_http(folder: Path) -> float:
    """Largest difference of a probability between what a server says and what the model says that it gave away."""
    import io
    import secrets
    import zipfile

    import httpx
    from service import photos, start

    from automl_tl import predict

    token = secrets.token_urlsafe(24)
    server, url = start(folder / "server", token)
    try:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=600) as client:
            archive = photos()
            dataset = client.post("/api/datasets", files={"archive": ("digits.zip", archive)}).json()["id"]
            request = {"kind": "fit", "images": {"dataset": dataset}, "budget": "1 trials", "strategies": ["linear-probe"]}
            job = client.post("/api/jobs", json=request).raise_for_status().json()["id"]
            while (state := client.get(f"/api/jobs/{job}").json()["state"]) not in ("finished", "failed", "cancelled"):
                time.sleep(0.5)
            assert state == "finished", client.get(f"/api/jobs/{job}").text
            with zipfile.ZipFile(io.BytesIO(archive)) as digits:
                pictures = {Path(name).name: digits.read(name) for name in digits.namelist()[:64]}
            sent = [("images", (name, data)) for name, data in pictures.items()]
            told = client.post(f"/api/models/{job}/predictions", files=sent).raise_for_status().json()
            given = client.get(f"/api/models/{job}/archive").raise_for_status().content
    finally:
        server.terminate()
        server.wait()
    with zipfile.ZipFile(io.BytesIO(given)) as model:
        model.extractall(folder / "given")
    run = next((folder / "given").rglob("model.json")).parent
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    found = predict(run, [folder / name for name in pictures]).probabilities
    over = np.array([one["probabilities"] for one in told["predictions"]])
    return float(np.abs(found - over).max())


def _images(folder: Path) -> tuple[list[object], list[object]]:
    """Every tenth photograph of hands, or some handwriting."""
    if SHARED.is_dir():
        from automl_tl.data import read_listing

        listing = read_listing(unpacked("sign_digits", folder))
        return list(listing.images[::10]), list(listing.labels[::10])
    from sklearn.datasets import load_digits

    digits = load_digits()
    return [np.uint8(image * 15) for image in digits.images[:200]], digits.target[:200].tolist()


if __name__ == "__main__":
    main()
