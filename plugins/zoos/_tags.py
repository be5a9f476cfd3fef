"""What a tag of timm says about where its weights come from."""

from __future__ import annotations

import re

UNKNOWN = "unknown"
# Part of a tag → the dataset. ImageNet-21k and -22k are two names of one collection, and its winter release is nearly the same.
# Methods that were only ever trained on ImageNet-1k stand for it where a tag names nothing else.
DATASETS = {
    "in1k": "imagenet-1k",
    "in12k": "imagenet-12k",
    "in21k": "imagenet-21k",
    "in22k": "imagenet-21k",
    "inw21k": "imagenet-21k",
    "mae": "imagenet-1k",
    "fcmae": "imagenet-1k",
    "dino": "imagenet-1k",
    "bamboo": "bamboo",
    "m30m": "merged-30m",
    "m38m": "merged-38m",
    "merged2b": "merged-2b",
    "jft": "jft-300m",
    "ig1b": "instagram-1b",
    "seer": "instagram-1b",
    "swag": "instagram-3.6b",
    "yfcc15m": "yfcc-15m",
    "yfcc100m": "yfcc-100m",
    "cc12m": "cc-12m",
    "laiona": "laion-aesthetic",
    "laion400m": "laion-400m",
    "laion2b": "laion-2b",
    "datacomp1b": "datacomp-1b",
    "datacompxl": "datacomp-1b",
    "mclip": "datacomp-dr-1b",
    "dfndr2b": "dfndr-2b",
    "dfn2b": "dfn-2b",
    "dfn5b": "dfn-5b",
    "metaclip_400m": "metaclip-400m",
    "metaclip_2pt5b": "metaclip-2.5b",
    "metaclip_altogether": "metaclip-altogether",
    "metaclip2_worldwide": "metaclip2-worldwide",
    "openai": "openai-wit-400m",
    "webli": "webli",
    "florence2": "fld-5b",
    "lvd142m": "lvd-142m",
    "lvd1689m": "lvd-1689m",
    "sat493m": "sat-493m",
    "sa1b": "sa-1b",
}
# Words in the name or tags of a repository → what its network's images show; at the start of a word there.
_DOMAIN_WORDS = {
    "medical": (
        *(
            "medical",
            "medicine",
            "patholog",
            "histolog",
            "histopatholog",
            "radiolog",
            "dermatolog",
            "ophthalm",
            "retina",
            "fundus",
        ),
        *("xray", "x-ray", "chest", "mri", "ct-scan", "tumor", "tumour", "cancer", "lunit", "biomed", "ultrasound", "endoscop"),
    ),
    "satellite images": ("satellite", "remote-sensing", "aerial", "sentinel", "bigearthnet", "earth-observation"),
    "plants and animals": ("inat", "plant", "bird", "insect", "species", "animal"),
}
_NATURAL = {"imagenet-1k", "imagenet-12k", "imagenet-21k", "bamboo"}
_PARTS = re.compile(rf"(?<![^_])(?:{'|'.join(sorted(DATASETS, key=len, reverse=True))})(?![^_])")


def training_sets(tag: str) -> tuple[str, ...]:
    """The datasets that the weights were trained on, in that order; none where the tag does not say.

    >>> training_sets("clip_laion2b_augreg_ft_in12k_in1k_384")
    ('laion-2b', 'imagenet-12k', 'imagenet-1k')
    """
    found: list[str] = []
    for part in _PARTS.findall(tag):
        if found[-1:] != [DATASETS[part]]:
            found.append(DATASETS[part])
    return tuple(found)


def source_dataset(tag: str) -> str:
    """The dataset that the weights saw last, which is that of the source head."""
    return (training_sets(tag) or (UNKNOWN,))[-1]


def source_domain(dataset: str) -> str:
    """What the images of a dataset show; of one that is none of `DATASETS`, such as somebody's own, nobody knows."""
    if dataset not in DATASETS.values():
        return UNKNOWN
    if dataset == "sat-493m":
        return "satellite images"
    return "natural objects" if dataset in _NATURAL else "web images"


def domain_of_words(text: str) -> str:
    """What the images show, by the words that somebody named a network with.

    >>> domain_of_words("1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms")
    'medical'
    """
    for domain, words in _DOMAIN_WORDS.items():
        if re.search(rf"(?<![a-z])(?:{'|'.join(words)})", text.lower()):
            return domain
    return UNKNOWN
