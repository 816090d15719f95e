"""The command `fastpure`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from ..errors import FastpureError
from ..heap import keep_freed
from ..openmp import choose_policy
from ..version import __version__
from . import (
    attack,
    bench,
    certify,
    convert,
    demo,
    diagnose,
    doctor,
    download,
    evaluate,
    listing,
    purify,
    report,
    reproduce,
    runs,
    sweep,
    train,
)
from .settings import register

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Diffusion-based adversarial purification: purify, differentiate exactly, attack, evaluate.",
    epilog="Start with: fastpure demo",
)
register(app, "demo", demo.demo, {"--images": "--data-path", "--eval-draws": "--draws"})
register(app, "purify", purify.purify, bare=purify.BARE)
register(app, "attack", attack.attack)
register(app, "evaluate", evaluate.evaluate)
register(app, "sweep", sweep.sweep)
register(app, "compare", runs.compare)
register(app, "merge", runs.merge)
register(app, "report", report.report, {"--images": "--shown"})
register(app, "diagnose", diagnose.diagnose)
register(app, "reproduce", reproduce.reproduce)
register(app, "certify", certify.certify, {"--images": "--n", "--n": "--draws", "--n0": "--draws0"})
app.add_typer(train.app, name="train")
register(app, "download", download.download)
register(app, "convert", convert.convert, {"--config": "--model-config"})
register(app, "list", listing.listing)
register(app, "doctor", doctor.doctor, {"--checkpoint": "--denoiser", "--config": "--model-config"})
register(app, "bench", bench.bench, {"--batch": "--batch-size"})


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastpure {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error; also behind a command. FASTPURE_DEBUG=1 too."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Diffusion-based adversarial purification: purify, differentiate exactly, attack, evaluate."""


def main() -> None:
    """Run the command line: whatever goes wrong is one sentence on stderr, and its traceback only where asked for.

    Exit codes: 2 for a mistake, or for something missing, that the sentence says how to mend; 1 for anything that
    was not foreseen; 130 for Ctrl-C.
    """
    # Runtimes read how threads wait when they are loaded, and torch loads one: no command may import it up here.
    if "torch" not in sys.modules:
        choose_policy()
    keep_freed()
    words, debug = _without_debug(sys.argv[1:])
    try:
        app(words)
    except KeyboardInterrupt:
        print("fastpure: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sentence, code = _explained(error)
        print(f"fastpure: {sentence}", file=sys.stderr)
        sys.exit(code)


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words of the command line without ``--debug``, wherever it stands, and whether it stood there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    asked = len(kept) < end or os.environ.get("FASTPURE_DEBUG", "") not in ("", "0")
    return kept + words[end:], asked


def _explained(error: Exception) -> tuple[str, int]:
    """(what to say, exit code)."""
    words = " ".join(str(error).split())
    if isinstance(error, FastpureError):
        return str(error), 2
    if isinstance(error, OSError):
        reason = error.strerror or words or type(error).__name__
        return (f"{error.filename}: {reason}" if error.filename else reason), 2
    if isinstance(error, MemoryError):
        return "the memory is not enough. Try a smaller --batch-size, or fewer images", 1
    if isinstance(error, ValueError | TypeError) and words and not isinstance(error, UnicodeError):
        return str(error), 2
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return (
        f"something that was not foreseen, {what[:500]}. --debug shows where it happened; please report it",
        1,
    )


if __name__ == "__main__":
    main()
