"""What is sent and what comes back, checked and with examples. Records of the engine come back as they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from automl_tl.facts import TaskFacts
from automl_tl.records import Candidate, Profile, Ranked, Trial

PROFILE: dict[str, Any] = {
    "task": "digits",
    "fingerprint": "0123456789abcdef",
    "meta": {"images": 1154, "classes": 10, "images_per_class": 115.4, "imbalance": 1.06, "side": 8, "colourfulness": 0},
    "distances": {"tiny_imagenet": {"frechet": 164.9, "mmd2": 0.547}, "omniglot_a": {"frechet": 149.5, "mmd2": 0.775}},
    "transferability": {},
}
TRIAL: dict[str, Any] = {
    "id": "9a68e551ceba2889",
    "task": "0123456789abcdef",
    "candidate": {
        "backbone": "resnet10t_24.omniglot_a_64",
        "strategy": "linear-probe",
        "hyperparameters": {"penalty": 0.01},
    },
    "seed": 0,
    "status": "finished",
    "validation": {"accuracy": 0.93, "log_loss": 0.25},
    "seconds": 3.2,
}
TASK: dict[str, Any] = {
    "fingerprint": "0123456789abcdef",
    "name": "our letters",
    "source_dataset": "our letters",
    "classes": 26,
    "train": 800,
    "validation": 200,
    "test": 0,
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Count = Annotated[float, Field(ge=1, le=1e9, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="Decides the split, the ranking, the training.")]
Names = Annotated[list[Name], Field(min_length=1, max_length=1000)]
Identity = Annotated[str, StringConstraints(pattern="^[0-9a-f]{12,16}$")]


class Asked(BaseModel):
    """A body with a field that nobody knows is refused: it is a slip of the pen."""

    model_config = ConfigDict(extra="forbid")


class Upload(Asked):
    """Images of an archive that was sent to /api/datasets."""

    dataset: Identity = Field(examples=["9f86d081884c7d65"])


class Folder(Asked):
    """Images that the server has already."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        examples=["photos"], description="A folder or a manifest below the server's root."
    )


class OnImages(Asked):
    """What every job is told."""

    images: Upload | Folder = Field(examples=[{"dataset": "9f86d081884c7d65"}, {"path": "photos"}])
    seed: Seed = 0
    zoo: Name | None = Field(None, description="Also consider the networks of this zoo, such as 'timm'.")


class Chosen(Asked):
    """What advice may be narrowed to."""

    strategies: Names | None = Field(None, examples=[["linear-probe", "fine-tuning"]])
    backbones: Names | None = Field(None, examples=[None])


class ProfileJob(OnImages):
    """The data in numbers."""

    kind: Literal["profile"]


class RecommendJob(OnImages, Chosen):
    """Advice on images, with a look through the best networks; nothing is trained."""

    kind: Literal["recommend"]
    top: Annotated[int, Field(ge=1, le=1000)] = 20


class FitJob(OnImages, Chosen):
    """Find, train and explain the best classifier within a budget."""

    kind: Literal["fit"]
    budget: Annotated[str, StringConstraints(max_length=100)] = Field(
        "10m", examples=["10m"], description="90s, 10m, 1h, '5 trials', '60 epochs', or several joined by +."
    )


NewJob = Annotated[ProfileJob | RecommendJob | FitJob, Field(discriminator="kind")]


class Resumed(Asked):
    """How a job goes on."""

    budget: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None, examples=["20m"], description="Of a fit: the new budget, in which what was spent already counts."
    )


class Meta(BaseModel):
    """Meta-features; those that are missing count as unknown."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]

    images: Count = Field(description="Training images.")
    classes: Count


class ProfileFacts(Asked):
    """A profile, as `automl-tl profile --json` and profile jobs give it. Only `meta.images` and `meta.classes` must be there."""

    task: Name = "unnamed"
    fingerprint: Annotated[str, StringConstraints(max_length=64)] = Field(
        "", description="Trials of the history on this very task are left out of the advice."
    )
    meta: Meta
    distances: dict[str, dict[str, Number]] = Field({}, description="source dataset → metric → value")
    transferability: dict[str, dict[str, Number]] = Field({}, description="backbone → metric → value")
    seconds: Number = 0
    warnings: list[str] = []


class Question(Chosen):
    """A profile to rank candidates for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"profile": PROFILE, "top": 5}]})

    profile: ProfileFacts
    top: Annotated[int, Field(ge=1, le=1000)] = 20
    zoo: Name | None = Field(None, description="Also consider the networks of this zoo, such as 'timm'.")


class Answer(BaseModel):
    """Candidates, best first."""

    profile: Profile
    basis: str = Field(examples=["542 trials over 31 tasks"])
    stage: int = Field(description="1: from numbers alone; 2: after a look through the images.")
    candidates: int = Field(description="How many were ranked.")
    ranking: list[Ranked]


class DatasetShape(BaseModel):
    """An uploaded archive."""

    id: str = Field(examples=["9f86d081884c7d65"])
    name: str = Field(examples=["photos"])
    images: int
    classes: dict[str, int] = Field(description="Images of each class.")
    bytes: int
    passed_over: int = Field(description="Files of the archive that are neither images nor manifests.")


class JobShape(BaseModel):
    """One piece of work on images."""

    id: str = Field(examples=["5f3a9c0d12ab"])
    kind: Literal["profile", "recommend", "fit"]
    state: Literal["queued", "running", "cancelling", "finished", "cancelled", "failed"]
    name: str = Field(description="Of the images.", examples=["photos"])
    before: int | None = Field(description="Jobs that come first; nothing unless it is queued.")
    request: dict[str, Any]
    created: float = Field(description="Seconds since 1970.")
    started: float | None
    ended: float | None
    error: str
    model: bool = Field(description="Whether there is a model of this id.")
    report: bool


class JobResult(JobShape):
    """A job with what came of it."""

    result: dict[str, Any] | None


class JobPage(BaseModel):
    """Newest first."""

    total: int
    items: list[JobShape]


class ModelCard(BaseModel):
    """A trained model; it is named as its job is."""

    id: str
    task: str | None
    fingerprint: str | None
    classes: list[str]
    backbone: dict[str, Any]
    candidate: Candidate
    validation: dict[str, float] | None
    test: dict[str, float] | None


class Prediction(BaseModel):
    """Of one image."""

    name: str = Field(examples=["three.png"])
    label: str = Field(examples=["digit 3"])
    confidence: float = Field(examples=[0.97])
    probabilities: list[float] = Field(description="In the order of `classes`.")


class PredictionsShape(BaseModel):
    """Of all images that were sent, in their order."""

    classes: list[str]
    predictions: list[Prediction]


class TrialPage(BaseModel):
    """Newest first."""

    total: int
    items: list[Trial]


class TaskList(BaseModel):
    """The tasks of the history."""

    total: int
    items: list[TaskFacts]


class NewFacts(Asked):
    """Facts in the form of `automl-tl history export`: a line there is an object here. All are added, or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tasks": [TASK], "trials": [TRIAL]}]})

    tasks: list[dict[str, Any]] = Field([], max_length=100_000)
    backbones: list[dict[str, Any]] = Field([], max_length=100_000)
    profiles: list[dict[str, Any]] = Field([], max_length=100_000)
    trials: list[dict[str, Any]] = Field([], max_length=100_000)


class Added(BaseModel):
    """What was new or known."""

    tasks: int
    backbones: int
    profiles: int
    trials: int = Field(description="Those that were not known.")


class Summary(BaseModel):
    """Counts."""

    tasks: int
    backbones: int
    trials: int
    integrity: list[str] = Field(description="What is wrong with the database; nothing if all is well.")


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"] = "ok"
    version: str
