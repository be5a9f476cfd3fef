"""Pretrained networks: `zoo …`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_json, print_table, say
from .options import AsJson, Images, ZooName, location

if TYPE_CHECKING:
    from automl_tl.backbones import Wanted

group = typer.Typer(help="The pretrained networks that can be used.", no_args_is_help=True)

MaxParams = Annotated[str | None, typer.Option(help="Networks with at most this many parameters, such as 5M.")]
Licences = Annotated[list[str] | None, typer.Option(help="Networks under this licence, such as apache-2.0 (repeatable).")]
SourceName = Annotated[str | None, typer.Option("--source", help="Networks whose source dataset has this in its name.")]
Domain = Annotated[str | None, typer.Option(help="Networks whose source shows this, such as medical.")]


@group.command("list")
def zoo_list(
    zoo: ZooName = None,
    max_params: MaxParams = None,
    licence: Licences = None,
    source: SourceName = None,
    domain: Domain = None,
    json: AsJson = False,
) -> None:
    """The pretrained networks that can be used; --zoo timm lists all of timm's, too."""
    from automl_tl.backbones import catalogue, narrowed

    found = narrowed(catalogue(zoo=zoo), _wanted(max_params, licence, source, domain))
    if json:
        print_json([asdict(backbone) for backbone in found.values()])
        return
    rows = [
        (
            b.name,
            b.zoo,
            b.source_dataset,
            b.source_domain,
            f"{b.input_size}",
            f"{b.params / 1e6:.2f}",
            f"{b.macs / 1e6:.0f}",
            b.licence,
        )
        for b in found.values()
    ]
    print_table("", ("backbone", "zoo", "source", "domain", "pixels", "M params", "M multiply-adds", "licence"), rows)


@group.command("search")
def zoo_search(
    words: Annotated[str, typer.Argument(help="Words to search for in the names on the hub; may be empty.")] = "",
    max_params: MaxParams = None,
    licence: Licences = None,
    source: SourceName = None,
    domain: Domain = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Ask for this many, the most downloaded first, before the filters apply.")
    ] = 50,
    json: AsJson = False,
) -> None:
    """Search the hub for networks; `zoo add NAME` adds one of them."""
    from automl_tl.backbones import search

    found = search(words, _wanted(max_params, licence, source, domain), limit=limit)
    if json:
        print_json([asdict(offer) for offer in found])
        return
    rows = [
        (
            o.name,
            o.source_dataset,
            o.source_domain,
            "" if o.params is None else f"{o.params / 1e6:.2f}",
            o.licence,
            f"{o.downloads or 0}",
        )
        for o in found
    ]
    print_table("", ("backbone", "source", "domain", "M params", "licence", "downloads"), rows)


@group.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="A backbone, as `zoo list` names it.")], zoo: ZooName = None) -> None:
    """Everything known about one network, as JSON."""
    from automl_tl.backbones import catalogue
    from automl_tl.registry import lookup

    print_json(asdict(lookup("backbone", name, catalogue(zoo=zoo))))


@group.command("add")
def zoo_add(
    what: Annotated[
        str, typer.Argument(help="A folder of cards (JSON) with their safetensors, or hf-hub:OWNER/NAME[@REVISION].")
    ],
) -> None:
    """Add a folder of networks, which stays where it is, or one network of the hub."""
    from automl_tl.backbones import add
    from automl_tl.cards import add_folder

    network = add(what)
    if network is not None:
        print(f"added {network.name}")
        return
    added = add_folder(Path(what))
    for name in added.names:
        print(f"added {name}")
    for name, reason in added.skipped.items():
        print(f"left out {name}: {reason}", file=sys.stderr)


@group.command("remove")
def zoo_remove(
    what: Annotated[str, typer.Argument(help="A folder, or hf-hub:OWNER/NAME[@REVISION], as it was added.")],
) -> None:
    """Forget a folder of networks, or one network of the hub; no file of theirs is touched."""
    from automl_tl.backbones import remove
    from automl_tl.cards import remove_folder

    if not remove(what):
        remove_folder(Path(what))
    print(f"removed {what}")


@group.command("pretrain")
def zoo_pretrain(
    recipe: Annotated[Path, typer.Argument(help="A recipe (JSON).")],
    out: Annotated[Path, typer.Option(help="Folder for the card and the safetensors file.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The source's images: train/CLASS/FILE and test/CLASS/FILE. Not for images made by formula."),
    ] = None,
) -> None:
    """Train a network of the embedded zoo anew, from its recipe."""
    from automl_tl.pretraining import pretrain_recipe

    print(pretrain_recipe(recipe, data, out, say=say))


@group.command("describe")
def zoo_describe(
    images: Images,
    name: Annotated[str, typer.Option(help="Name of the source dataset, as in the cards of its networks.")],
    encoder: Annotated[str, typer.Option(help="The reference encoder: the backbone on whose features distances are measured.")],
    out: Annotated[
        Path, typer.Option(help="Folder for NAME.source.safetensors: one that is added with `zoo add`, or a plugin's.")
    ],
) -> None:
    """Keep statistics of a source's images, so that tasks can be measured against it without the images."""
    from automl_tl.api import check_writable, load_task
    from automl_tl.backbones import catalogue
    from automl_tl.data import check_outside
    from automl_tl.errors import InputError
    from automl_tl.profiling import describe_source
    from automl_tl.registry import lookup
    from automl_tl.sources import write_source

    if Path(name).name != name:
        raise InputError(f"--name {name}: is the beginning of a file's name, so it cannot hold a path")
    check_writable(out)
    network = lookup("backbone", encoder, catalogue())
    task = load_task(location(images), name=name, validation=0.0)
    check_outside(out, task, ("", images))
    out.mkdir(parents=True, exist_ok=True)
    print(write_source(out, name, encoder, describe_source(task, network)))


def _wanted(max_params: str | None, licences: list[str] | None, source: str | None, domain: str | None) -> Wanted:
    from automl_tl.backbones import Wanted, parse_count

    return Wanted(None if max_params is None else parse_count(max_params), licences or (), source, domain)
