"""`fastpure evaluate --preset NAME --protocol published`: a paper's number by the paper's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from . import options as o
from .experiment import PUBLISHED, attack_changes, build_published, digest_of


def evaluate_by_rule(
    wanted: o.Request,
    draws: int | None,
    out: Path | None,
    batch_size: int,
    dry_run: bool,
    shard: str | None,
    how: dict[str, Any],
) -> None:
    """Run every attack that the preset's rule names, a file each, and print the smallest accuracy of them."""
    from ..evaluate import evaluate_published, plan, protocol_of
    from ..evaluate.shards import parse_shard

    part = None if shard is None else parse_shard(shard)
    preset, experiments = build_published(wanted)
    rules = protocol_of(preset, draws, **wanted.extra["protocol"])
    first = experiments[0]
    if dry_run:
        for one in experiments:
            cost = plan(one.defense, one.dataset, one.attack, rules, batch_size=batch_size)
            typer.echo(f"{one.label}\n{cost}\n")
        return
    folder = out or Path("runs") / f"{preset.name}-{PUBLISHED}-{digest_of(experiments, rules, batch_size)}"
    if how["progress"]:
        typer.echo(
            f"{len(experiments)} runs into {folder}; Ctrl-C stops, the same command continues", err=True
        )
    with o.interruptible():
        told = evaluate_published(
            preset,
            first.defense,
            first.dataset,
            folder,
            changes=attack_changes(wanted),
            protocol=rules,
            shard=part,
            batch_size=batch_size,
            **how,
        )
    typer.echo(str(told))
