"""A history with known structure: the score depends on closeness of the source, quality of features, and data × strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from automl_tl.experience import Experience, Trials
from automl_tl.records import Backbone, Candidate, Profile
from automl_tl.space import Float, Int, Value, defaults, draw
from automl_tl.strategy import Strategy

SPEED = 1e10
DOMAINS = ("photographs", "characters", "textures", "scans")


class Probe(Strategy):
    name = "probe"
    space = {}

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return float(backbone.macs) * images


class Tuning(Strategy):
    name = "tuning"
    space = {"rate": Float(1e-4, 1e-1, 1e-3, log=True), "epochs": Int(2, 20, 8)}


class Scratch(Strategy):
    name = "scratch"
    space = {"rate": Float(1e-4, 1e-1, 1e-3, log=True), "epochs": Int(5, 40, 20)}


STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (Probe, Tuning, Scratch)}


def make_backbone(index: int) -> Backbone:
    """Sources take turns among the domains; the sizes grow."""
    domain = DOMAINS[index % len(DOMAINS)]
    size = 10 ** (5 + 0.15 * (index % 20))
    return Backbone(
        name=f"net{index:02}",
        zoo="synthetic",
        architecture="",
        family=("resnet", "mobile", "vit")[index % 3],
        source_dataset=f"{domain}-{index % 8}",
        source_domain=domain,
        input_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bilinear",
        crop_pct=1.0,
        params=int(size),
        macs=int(50 * size),
        num_features=64 + 32 * (index % 3),
        num_classes=100,
        source_accuracy=0.6,
    )


class World:
    """Tasks, each of a source dataset of one of the domains, and the truth about every candidate on them."""

    def __init__(self, *, sources: int = 10, tasks_each: int = 2, backbones: int = 12, trials: int = 30, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.backbones = {(b := make_backbone(i)).name: b for i in range(backbones)}
        self.profiles: dict[str, Profile] = {}
        self.hardness: dict[str, float] = {}
        self.source_of: dict[str, str] = {}
        columns: dict[str, list[object]] = {name: [] for name in Trials.__dataclass_fields__}
        for source in range(sources):
            domain = rng.permutation(len(DOMAINS))[0] if source >= len(DOMAINS) else source
            for part in range(tasks_each):
                profile = self._profile(f"task{source}-{part}", int(domain), rng)
                self.source_of[profile.fingerprint] = f"set{source}"
                for _ in range(trials):
                    self._try(profile, columns, rng)
        texts = {name: np.array(columns[name], dtype=object) for name in ("task", "source_dataset", "backbone", "strategy")}
        numbers = {name: np.array(columns[name], dtype=float) for name in ("score", "seconds", "memory_mb", "images", "speed")}
        trials_ = Trials(**texts, **numbers, hyperparameters=columns["hyperparameters"])  # type: ignore[arg-type]
        self.experience = Experience(trials_, self.profiles, self.backbones, f"world-{seed}-{len(trials_)}")

    def _profile(self, name: str, domain: int, rng: np.random.Generator) -> Profile:
        images, classes = int(10 ** rng.uniform(1.5, 4)), int(rng.integers(2, 40))
        meta = {"images": float(images), "classes": float(classes), "images_per_class": images / classes}
        meta["colourfulness"] = float(domain / 4 + rng.uniform(0, 0.2))
        distances = {}
        for backbone in self.backbones.values():
            same = backbone.source_domain == DOMAINS[domain]
            distances[backbone.source_dataset] = {"frechet": float(rng.uniform(10, 30) if same else rng.uniform(60, 120))}
        self.hardness[name] = float(rng.normal(0, 0.8))
        scores = {}
        for backbone in self.backbones.values():
            quality = self._quality(backbone, distances[backbone.source_dataset]["frechet"])
            separable = 1 / (1 + np.exp(-(quality - self.hardness[name] + rng.normal(0, 0.1))))
            scores[backbone.name] = {"linear-probe": float(separable), "logme": float(quality + rng.normal(0, 0.4))}
        profile = Profile(name, name, meta, distances, scores)
        self.profiles[name] = profile
        return profile

    @staticmethod
    def _quality(backbone: Backbone, frechet: float) -> float:
        return 1.2 - 0.02 * frechet + 0.25 * (np.log10(backbone.params) - 6)

    def truth(self, profile: Profile, candidate: Candidate) -> float:
        """The score without noise."""
        backbone = self.backbones[candidate.backbone]
        quality = self._quality(backbone, profile.distances[backbone.source_dataset]["frechet"])
        plenty = np.log10(profile.meta["images_per_class"]) - 1.5
        rate = float(candidate.hyperparameters.get("rate", 1e-3))
        gain = {"probe": 0.3, "tuning": 0.4 + 0.9 * plenty, "scratch": -1.2 + 1.2 * plenty - quality}[candidate.strategy]
        logit = quality - self.hardness[profile.fingerprint] + gain - 0.25 * (np.log10(rate) + 3) ** 2
        return float(1 / (1 + np.exp(-logit)))

    def _try(self, profile: Profile, columns: dict[str, list[object]], rng: np.random.Generator) -> None:
        backbone = self.backbones[str(rng.choice(list(self.backbones)))]
        strategy = STRATEGIES[str(rng.choice(list(STRATEGIES)))]
        seed = f"{rng.integers(1 << 40)}"
        values = defaults(strategy.space) if rng.random() < 0.4 else draw(strategy.space, seed)
        candidate = Candidate(backbone.name, strategy.name, values)
        truth = self.truth(profile, candidate)
        images, speed = profile.meta["images"], SPEED * rng.choice([1.0, 3.0])
        work = strategy.cost(backbone, int(images), values)
        row = {
            "task": profile.fingerprint,
            "source_dataset": self.source_of[profile.fingerprint],
            "backbone": backbone.name,
            "strategy": strategy.name,
            "hyperparameters": values,
            "score": float(np.clip(truth + rng.normal(0, 0.01), 0, 1)),
            "seconds": float(0.05 + 3 * work / speed * np.exp(rng.normal(0, 0.1))),
            "memory_mb": 300 + 16 * backbone.params / 2**20,
            "images": images,
            "speed": speed,
        }
        for name, value in row.items():
            columns[name].append(value)


def without(profile: Profile) -> Profile:
    """The profile before any backbone was looked at."""
    return replace(profile, transferability={})
