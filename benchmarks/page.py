"""docs/benchmarks.md from the figures in benchmarks/results: each with its bar and its command, and where it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _report import arguments

HERE = Path(__file__).resolve().parent
SPEED, FAULTS = "benchmarks/speed.py --only", "benchmarks/hostile.py"
KILLED = {"fit": "fit", "build": "history build", "import": "history import", "merge": "history merge", "serve": "serve"}
# Part → its command, and its figures: name, what it is, the bar.
TABLES: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "loop": (
        f"{SPEED} loop",
        (
            ("loop_over_plain", "training epoch against a plain loop on decoded images, caltech101", "≥ 0.97"),
            ("loop_over_plain_rsscn7", "the same, rsscn7", "≥ 0.97"),
            ("loop_over_plain_brain_tumor", "the same, brain_tumor (larger files) and a mobile network", "≥ 0.97"),
            ("loop_over_plain_photographs", "the same, 102 of the enlarged photographs: an epoch of 0.2 s", "≥ 0.97"),
            ("loop_over_decoding", "against the same loop decoding each epoch, caltech101", "≥ 2"),
            ("loop_over_decoding_rsscn7", "the same, rsscn7", "≥ 2"),
            ("loop_over_decoding_brain_tumor", "the same, brain_tumor (larger files) and a mobile network", "≥ 2"),
            (
                "loop_over_decoding_photographs",
                "the same, 204 of caltech101's enlarged to 1,600 pixels",
                "≥ 2",
            ),
            ("loop_over_decoding_run_photographs", "the same over 15 epochs, our one decoding counted", "≥ 2"),
            ("loop_over_decoding_run", "the same over 15 epochs, our one decoding counted, caltech101", ""),
            ("loop_over_timm", "against timm's loader and defaults (another recipe), caltech101", ""),
            ("loop_images_a_second", "images a second, validation and checkpoint included, caltech101", ""),
        ),
    ),
    "probe": (
        f"{SPEED} probe",
        (
            ("probe_speedup", "linear probe against training a head in a loop to the same accuracy, sign_digits", "≥ 10"),
            ("probe_speedup_caltech101", "the same, caltech101", "≥ 10"),
            ("probe_accuracy", "test accuracy of ours, sign_digits", ""),
            ("probe_accuracy_plain", "test accuracy of the peer, sign_digits", ""),
        ),
    ),
    "frechet": (
        f"{SPEED} frechet",
        (
            ("frechet_speedup_512", "Fréchet distance against scipy's sqrtm, 512 features", "≥ 8"),
            ("frechet_speedup_1280", "the same, 1280 features", "≥ 8"),
            ("frechet_speedup_2048", "the same, 2048 features", "≥ 8"),
            ("frechet_over_torchmetrics_2048", "against torchmetrics' eigenvalues, 2048 features", ""),
            ("frechet_lowrank_speedup", "500 images meeting a stored source, against sqrtm", "≥ 50"),
            ("frechet_relative_error", "largest relative difference to a peer's value", "≤ 1e-6"),
        ),
    ),
    "transfer": (
        f"{SPEED} transfer",
        (
            ("mmd2_speedup", "MMD against the whole Gram matrix", "> 1"),
            ("logme_speedup", "LogME against the reference formula", "> 1"),
            ("leep_speedup", "LEEP against the reference formula", "> 1"),
            ("h_score_speedup", "H-score against scikit-learn's Ledoit-Wolf and an inverse", "> 1"),
            ("knn_speedup", "k-NN against scikit-learn's brute force", "> 1"),
            ("mmd_50000_gb", "GB beyond the features for the MMD of 50,000 × 2048", ""),
            ("mmd_50000_gram_gb", "GB that its Gram matrix would take", ""),
        ),
    ),
    "start": (
        f"{SPEED} start",
        (
            ("help_seconds", "automl-tl --help, seconds", "< 0.3"),
            ("import_seconds", "import automl_tl, seconds", ""),
            ("python_seconds", "Python alone, seconds", ""),
            ("import_torch_seconds", "import torch, seconds", ""),
        ),
    ),
    "advice": (
        f"{SPEED} advice",
        (
            ("recommend_cold_seconds", "first advice on 1,000 images, an empty home, seconds", "< 60"),
            ("recommend_warm_seconds", "again, seconds", "< 5"),
            *(
                figure
                for count in ("100", "10000", "100000")
                for figure in (
                    (f"recommend_cold_seconds_{count}", f"first advice on {int(count):,} images, seconds", ""),
                    (f"recommend_warm_seconds_{count}", "again, seconds", ""),
                )
            ),
            *(
                figure
                for count in ("3", "14")
                for figure in (
                    (
                        f"recommend_cold_seconds_{count}_networks",
                        f"first advice among {count} networks, seconds",
                        "",
                    ),
                    (f"recommend_warm_seconds_{count}_networks", "again, seconds", ""),
                )
            ),
        ),
    ),
    "gpu": (
        f"{SPEED} gpu",
        tuple(
            (f"gpu_{network}_{what}", f"{told}, {network}", bar)
            for network in ("resnet50", "resnet50_compiled", "vit_small_patch16_224", "vit_small_patch16_224_compiled")
            for what, told, bar in (
                ("share", "training: share of the throughput on images that lie on the device", "≥ 0.9"),
                ("images_a_second", "training: images a second", ""),
                ("fit_share", "the same with validation and checkpoints", ""),
                ("mb", "training: MB of the device", ""),
                ("features_share", "features: share of the throughput on images that lie on the device", "≥ 0.9"),
                ("features_images_a_second", "features: images a second", ""),
            )
        ),
    ),
    "hostile": (
        FAULTS,
        (
            ("hostile_inputs", "hostile inputs tried", ""),
            ("hostile_inputs_guided", "of these led by coverage (atheris)", ""),
            ("crashes", "crashes", "0"),
            ("hangs", "hangs", "0"),
            ("escapes", "escapes", "0"),
        ),
    ),
    "faults": (
        "benchmarks/faults.py",
        (
            ("kills", "kill -9 at random moments", ""),
            *(
                figure
                for name, command in KILLED.items()
                for figure in (
                    (f"kills_{name}", f"of `{command}`", ""),
                    (f"kills_{name}_begun", "of these past its start-up", ""),
                )
            ),
            ("lost_trials", "trials that were there before a kill and not after, or with a shorter curve", "0"),
            ("corrupt_databases", "databases that fail their check", "0"),
            ("lost_jobs", "jobs or results that a client was told of and that are gone", "0"),
            ("half_taken", "imports and merges that are there in part", "0"),
            ("ends_compared", "runs that went on to their end and were compared with one that was left alone", ""),
            ("different_ends", "of these with another outcome", "0"),
            ("left_running", "processes that outlived the killed command by a minute", "0"),
            ("partial_files", "half-written files that kills left (one is laid beside each whole file as well)", ""),
            ("late_kills", "kills that came too late and were tried again", ""),
        ),
    ),
}


def page(known: Mapping[str, Any]) -> str:
    """The document."""
    lines = [(HERE / "_page.md").read_text(encoding="utf-8")]
    for part, (command, figures) in TABLES.items():
        where = known["measured"].get(part)
        lines += [f"## {part.capitalize()}", "", f"`python {command}`", ""]
        if where is None:
            lines += ["Not measured yet.", ""]
            continue
        if not any(name in known for name, _, _ in figures):
            lines += [f"Nothing to measure on the machine of {where['date'][:10]} ({where['machine']}).", ""]
            continue
        lines += ["| figure | what | value | bar |", "| --- | --- | --- | --- |"]
        lines += [f"| `{name}` | {what} | {_value(known, name)} | {bar} |" for name, what, bar in figures if name in known]
        lines += ["", f"{where['date'][:10]}, {where['machine']}, {where['threads']} threads; {where['versions']}.", ""]
    return "\n".join(lines)


def _value(known: Mapping[str, Any], name: str) -> str:
    text = f"{known[name]:.4g}"
    if f"{name}_q1" in known:
        text += f" ({known[f'{name}_q1']:.3g}–{known[f'{name}_q3']:.3g}, {known[f'{name}_rounds']:.0f} rounds)"
    return text


def main() -> None:
    arguments(__doc__, "the same").parse_args()
    known: dict[str, Any] = {"measured": {}}
    for name in ("speed", "faults"):
        path = HERE / "results" / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known |= {**found, "measured": known["measured"] | found.get("measured", {})}
    (HERE.parent / "docs" / "benchmarks.md").write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    main()
