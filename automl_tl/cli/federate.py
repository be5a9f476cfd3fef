"""Both sides of federated training: `federate …`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from automl_tl.errors import InputError

from .console import figure, print_json, print_table, say
from .options import AsJson, Images, Seed, location

group = typer.Typer(help="Train with images that stay where they are: one machine serves, the others join.", no_args_is_help=True)


@group.command("serve")
def federate_serve(
    images: Images,
    strategy: Annotated[str, typer.Option(help="A strategy that needs clients.")],
    backbone: Annotated[str, typer.Option(help="Network to train; clients take it from their own zoo.")],
    clients: Annotated[int, typer.Option(min=2, help="Wait for this many, and train with them.")],
    address: Annotated[str, typer.Option(help="HOST:PORT to listen on.")] = "127.0.0.1:8080",
    out: Annotated[Path, typer.Option(help="Folder of the model. The same command resumes it.")] = Path("runs/federated"),
    setting: Annotated[list[str] | None, typer.Option("--set", help="A hyperparameter, such as epochs=10 (repeatable).")] = None,
    tls: Annotated[Path | None, typer.Option(help="Encrypt, with ca.pem, server.pem and server.key from this folder.")] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Train with clients that join. IMAGES judge the model; their training images are public."""
    from automl_tl import remote

    served = remote.serve(
        location(images),
        strategy=strategy,
        backbone=backbone,
        clients=clients,
        address=address,
        out=out,
        hyperparameters=_settings(setting or ()),
        tls=tls,
        seed=seed,
    )
    if json:
        print_json(asdict(served) | {"folder": str(served.folder)})
        return
    rows = list(zip(map(str, range(1, len(served.scores) + 1)), map(figure, served.scores), served.notes, strict=True))
    print_table("Rounds", ("round", "validation accuracy", ""), rows)
    if served.test:
        print(f"Test accuracy: {figure(served.test['accuracy'])}")
    print(f"Model: {served.folder}")


@group.command("join")
def federate_join(
    address: Annotated[str, typer.Argument(help="HOST:PORT of the server.")],
    images: Images,
    strategy: Annotated[str, typer.Option(help="The strategy that you agree to; any other is refused.")],
    epsilon: Annotated[float | None, typer.Option(help="The most privacy that may be spent on your images.")] = None,
    public: Annotated[str | None, typer.Option(help="The server's public images, if the strategy uses them.")] = None,
    authority: Annotated[Path | None, typer.Option(help="Certificate (PEM) that the server's must be signed by.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for left.jsonl, the record of what was sent, and for answers that are given only once.")
    ] = Path("runs/joined"),
) -> None:
    """Take part with IMAGES, which stay here. left.jsonl lists everything that is sent."""
    from automl_tl import remote

    record = remote.join(
        address, location(images), strategy=strategy, out=out, epsilon=epsilon, public=public, authority=authority, say=say
    )
    print(f"Done. Everything that was sent: {record}")


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """ "epochs=10" as a name and a value."""
    import json

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, such as epochs=10, but got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
