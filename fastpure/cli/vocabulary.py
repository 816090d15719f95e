"""The words of a command line: old spellings of options go on working, and foreign ones are told ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

Former = Mapping[str, str]
"""Old spellings of options -> the new ones."""

SETTINGS_FILES = (".toml", ".yaml", ".yml")


class Vocabulary(TyperCommand):
    """A command that reads the old spellings of its options, each with a line on stderr that says the new one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        from ..words import did_you_mean

        former: Former = getattr(getattr(self.callback, "about", None), "former", {})
        words = list(_renamed(args, former, silent=ctx.resilient_parsing))
        try:
            return super().parse_args(ctx, words)
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":
                raise
            options = [word for param in self.params for word in (*param.opts, *param.secondary_opts)]
            meant = did_you_mean(str(error.option_name), options)  # type: ignore[attr-defined]
            if meant:
                error.message, error.possibilities = f"{error.message}. {meant}", None  # type: ignore[attr-defined]
            raise


def _means_another(name: str, value: str, former: Former, options: set[str]) -> bool:
    """Whether an old spelling that is also a new one has its new meaning: nothing else on the line is an old one."""
    if name == "--config":
        return value.lower().endswith(SETTINGS_FILES)
    taken_by = _taken_by(name, former)
    if not taken_by or taken_by & options:
        return False
    # What it was is on the line under its new name already, or no option has the spelling of that time.
    return former[name] in options or not (former.keys() - set(former.values())) & options


def _taken_by(name: str, former: Former) -> set[str]:
    """The old spellings of what ``name`` is now."""
    return {old for old, now in former.items() if now == name}


def _renamed(args: list[str], former: Former, silent: bool) -> Iterator[str]:
    read = args[: args.index("--")] if "--" in args else args
    options = {word.partition("=")[0] for word in read if word.startswith("--")}
    for position, word in enumerate(args):
        name, equals, value = word.partition("=")
        now = former.get(name) if position < len(read) else None
        following = value if equals else " ".join(args[position + 1 : position + 2])
        if now is None or _means_another(name, following, former, options):
            others = sorted(_taken_by(name, former))
            if not silent and now is not None and others and now not in options:
                typer.echo(
                    f"fastpure: {name} is {others[0].strip('-')}; {now.strip('-')} are {now}", err=True
                )
            yield word
            continue
        if not silent:
            typer.echo(f"fastpure: {name} is now called {now}", err=True)
        yield now + equals + value
