"""Tables of runs as CSV and Parquet: runs, comparisons, images, draws, quality; and those for a paper as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import MissingExtra
from ..evaluate import Run
from ..files import Unfinished, unfinished
from .data import Entry, matrices, open_entries
from .latex import LATEX, latex_tables
from .page import refuse_existing
from .quality import Quality, quality_table
from .tables import Table, comparison_table, draw_table, image_table, run_table

TABLES = ("runs", "comparisons", "images", "draws", "quality")
"""Names of the files, without their endings."""

TEXT = "string"
WHOLE = "int64"
REAL = "float64"
COLUMNS: dict[str, dict[str, str]] = {
    "runs": {
        **dict.fromkeys(("run", "name", "experiment", "result_sha256", "defense", "attack"), TEXT),
        **dict.fromkeys(("protocol", "data", "data_checksum"), TEXT),
        **dict.fromkeys(("images", "images_total"), WHOLE),
        **dict.fromkeys(("clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high"), REAL),
        **dict.fromkeys(("transfer", "transfer_low", "transfer_high"), REAL),
        "warnings": TEXT,
        "network_calls_at_most": WHOLE,
        **dict.fromkeys(("seconds_clean", "seconds_attack", "seconds_judging", "seconds_store"), REAL),
    },
    "comparisons": {
        **dict.fromkeys(("input", "first", "second"), TEXT),
        "images": WHOLE,
        **dict.fromkeys(("difference", "low", "high"), REAL),
        **dict.fromkeys(("first_better", "second_better"), WHOLE),
        **dict.fromkeys(("p_mcnemar", "p_holm"), REAL),
    },
    "images": {
        "run": TEXT,
        **dict.fromkeys(("position", "sample_id", "label"), WHOLE),
        "label_name": TEXT,
        **dict.fromkeys(("clean", "robust"), REAL),
        **dict.fromkeys(("clean_draws", "clean_right", "adversarial_draws", "adversarial_right"), WHOLE),
        **dict.fromkeys(("transfer_draws", "transfer_right"), WHOLE),
        **dict.fromkeys(("distance", "zero_gradient", "gradient_agreement"), REAL),
        **dict.fromkeys(("gradients_spent", "verdict"), REAL),
    },
    "draws": {
        "run": TEXT,
        "position": WHOLE,
        "input": TEXT,
        **dict.fromkeys(("draw", "predicted", "correct"), WHOLE),
        "loss": REAL,
    },
    "quality": {
        **dict.fromkeys(("run", "images"), TEXT),
        "n": WHOLE,
        **dict.fromkeys(("l2", "linf", "psnr", "ssim", "lpips", "compression"), REAL),
        "moved": WHOLE,
    },
}
"""Table -> its columns in order with their types; the same in CSV and Parquet, also where a table is empty."""


def write_csv(
    runs: Sequence[Run | str | Path],
    folder: str | Path,
    *,
    measured: Sequence[Quality] = (),
    force: bool = False,
    within: Unfinished | None = None,
) -> list[Path]:
    """Write runs.csv, comparisons.csv, images.csv, draws.csv and quality.csv into ``folder``; returns their paths.

    UTF-8, comma, a header line; floats with all their digits, so that reading them gives the same numbers; what does
    not apply is empty. ``measured`` fills quality.csv, a row per run and kind of images: it is what `report` hands to
    its own ``measured``, since images must be purified for that.

    Raises:
        FileExistsError: one of them exists and ``force`` is not given; nothing is written then.
        Others: as for `report`.
    """

    def encode(table: Table, columns: dict[str, str]) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return text.getvalue().encode()

    return _write(runs, Path(folder), _encoded("csv", encode, measured), force, within)


def write_parquet(
    runs: Sequence[Run | str | Path],
    folder: str | Path,
    *,
    measured: Sequence[Quality] = (),
    force: bool = False,
    within: Unfinished | None = None,
) -> list[Path]:
    """As `write_csv`, in Parquet.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pyarrow = require_pyarrow()

    def encode(table: Table, columns: dict[str, str]) -> bytes:
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in columns.items()])
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, schema=schema), sink)
        return bytes(sink.getvalue().to_pybytes())

    return _write(runs, Path(folder), _encoded("parquet", encode, measured), force, within)


def write_latex(
    runs: Sequence[Run | str | Path],
    folder: str | Path,
    *,
    force: bool = False,
    within: Unfinished | None = None,
) -> list[Path]:
    """Write headlines.tex, results.tex and comparisons.tex into ``folder``; returns their paths.

    Each is a ``tabular`` for ``\\input`` that needs the package booktabs. Numbers with warnings are marked, and a line
    below says which. Errors as for `write_csv`.
    """

    def made(entries: Sequence[Entry]) -> list[bytes]:
        return [text.encode() for text in latex_tables(entries).values()]

    return _write(runs, Path(folder), ([f"{name}.tex" for name in LATEX], made), force, within)


def require_pyarrow() -> Any:
    """The package pyarrow with its module parquet.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "Parquet export") from error
    return pyarrow


Made = Callable[[Sequence[Entry]], list[bytes]]


def _encoded(
    ending: str, encode: Callable[[Table, dict[str, str]], bytes], measured: Sequence[Quality]
) -> tuple[list[str], Made]:
    """Names of the files of all tables, and how they are made."""

    def made(entries: Sequence[Entry]) -> list[bytes]:
        tables = {**_tables(entries), "quality": quality_table(measured)}
        return [encode(tables[name], COLUMNS[name]) for name in TABLES]

    return [f"{name}.{ending}" for name in TABLES], made


def _write(
    runs: Any, folder: Path, files: tuple[list[str], Made], force: bool, within: Unfinished | None
) -> list[Path]:
    names, made = files
    paths = [folder / name for name in names]
    with ExitStack() as stack:
        batch = stack.enter_context(unfinished(paths, within))
        refuse_existing(paths, force, batch)
        contents = made(open_entries(runs, stack))
        return [batch.write(path, content) for path, content in zip(paths, contents, strict=True)]


def _tables(entries: Sequence[Entry]) -> dict[str, Table]:
    return {
        "runs": run_table(entries),
        "comparisons": comparison_table(matrices(entries)[0]),
        "images": image_table(entries),
        "draws": draw_table(entries),
    }
