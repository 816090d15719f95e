"""The command `fastpure`."""

from __future__ import annotations

import sys

import typer

from ..errors import FastpureError
from . import attack, bench, certify, convert, demo, doctor, evaluate, purify, runs, sweep, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Diffusion-based adversarial purification: purify, differentiate exactly, attack, evaluate.",
    epilog="Start with: fastpure demo",
)
app.command("bench")(bench.bench)
app.command("convert")(convert.convert)
app.command("certify")(certify.certify)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("attack")(attack.attack)
app.command("evaluate")(evaluate.evaluate)
app.command("sweep")(sweep.sweep)
app.command("compare")(runs.compare)
app.command("merge")(runs.merge)
app.command("purify")(purify.purify)
app.add_typer(train.app, name="train")


def main() -> None:
    """Run the command line; a mistake or a missing piece is one sentence on stderr, not a traceback."""
    try:
        app()
    except (FastpureError, ValueError, TypeError, OSError) as error:
        print(f"fastpure: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("fastpure: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
