"""`fastpure download`: published networks, fetched by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def download(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name of the list, or hf:OWNER/REPOSITORY[@REVISION][:FILE]. (default: show the list)"
        ),
    ] = None,
    dest: Annotated[
        Path | None,
        typer.Option(help="Folder to put it in. (default: FASTPURE_CACHE, or fastpure in the user's cache)"),
    ] = None,
) -> None:
    """Fetch a published network (needs fastpure\\[hub]), or list those that are known, with source and licence.

    What an interrupted download left is continued. The checksum is recorded at the first download and compared ever
    after. Nothing else in fastpure downloads a listed network.

    Example: fastpure download guided-diffusion-imagenet-256
    """
    from .. import hub

    if name is None:
        typer.echo(_listed())
        return
    card = hub.CARDS.get(name)
    if card is not None:
        typer.echo(f"{name}: {card.architecture} on {card.data}, arXiv {card.paper}")
        typer.echo(f"from {card.source}, licence {card.licence}, size {card.size_in_words}")
    path = hub.download(name, dest)
    kind = card.kind if card is not None else "denoiser or classifier"
    typer.echo(f"{path}, checksum recorded in {hub.RECORD} beside it")
    typer.echo(f"as {kind}: {name if dest is None else path}")


def _listed() -> str:
    """The table of all cards."""
    from .. import hub

    rows = [("name", "kind", "data", "licence", "size", "here", "source")]
    for name, card in hub.CARDS.items():
        here = "yes" if hub.is_here(name) else "by hand" if card.by_hand else "no"
        rows.append((name, card.kind, card.data, card.licence, card.size_in_words, here, card.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    lines.append(f"kept in {hub.cache_folder()}; fetch one with: fastpure download NAME")
    lines.append(
        "any other: fastpure download hf:OWNER/REPOSITORY (networks of diffusers, timm and fastpure)"
    )
    return "\n".join(lines)
