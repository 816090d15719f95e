"""Tables on disk hold the numbers of the runs, to the last bit."""

from __future__ import annotations

import csv
import re
import sys
from contextlib import ExitStack

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import MissingExtra
from fastpure.report import write_csv, write_latex, write_parquet
from fastpure.report.data import open_entries
from fastpure.report.export import COLUMNS, TABLES
from fastpure.report.latex import LATEX, escaped


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_gives_the_runs_back(files, tmp_path):
    paths = write_csv(files, tmp_path / "new" / "tables")
    assert [path.name for path in paths] == [f"{name}.csv" for name in TABLES]
    tables = dict(zip(TABLES, map(read, paths), strict=True))
    for name, path in zip(TABLES, paths, strict=True):
        assert path.read_text().split("\n", 1)[0] == ",".join(COLUMNS[name])
    assert tables["quality"] == [], "nothing was purified for it"
    for number, path in enumerate(files, 1):
        with fp.Run.open(path) as run:
            summary = fp.Report.of(run)
            (row,) = [row for row in tables["runs"] if row["run"] == str(number)]
            assert row["name"] == path.stem
            assert row["result_sha256"] == summary.digest
            assert (float(row["clean"]), float(row["clean_low"])) == (
                summary.clean.estimate,
                summary.clean.low,
            )
            assert row["robust"] == ("" if summary.robust is None else repr(summary.robust.estimate))
            images = [row for row in tables["images"] if row["run"] == str(number)]
            assert [int(row["sample_id"]) for row in images] == run.sample_ids.tolist()
            assert [float(row["clean"]) for row in images] == run.values("clean").tolist()
            for which in ("clean", "adversarial"):
                draws = [row for row in tables["draws"] if (row["run"], row["input"]) == (str(number), which)]
                assert [int(row["predicted"]) for row in draws] == run.predicted(which).ravel().tolist()
                assert [float(row["loss"]) for row in draws] == run.losses(which).ravel().tolist()
                assert [int(row[f"{which}_right"]) for row in images] == run.correct(which).sum(1).tolist()
            if run.identity["attack"] is not None:
                assert np.array_equal([float(row["distance"]) for row in images], run.distances)
    with fp.Run.open(files[0]) as a, fp.Run.open(files[1]) as b:
        with pytest.raises(ValueError, match="protocol"):
            fp.compare(a, b, protocol=fp.protocols.fresh(9))
        result = fp.compare(b, a)
    (row,) = [
        r for r in tables["comparisons"] if (r["input"], r["first"], r["second"]) == ("adversarial", "1", "2")
    ]
    assert (float(row["difference"]), float(row["p_mcnemar"])) == (result.difference, result.p_value)
    assert float(row["p_holm"]) >= float(row["p_mcnemar"])


def test_nothing_is_written_over_or_half(files, tmp_path):
    (tmp_path / "draws.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"draws\.csv"):
        write_csv(files[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["draws.csv"]
    write_csv(files[:1], tmp_path, force=True)
    assert len(list(tmp_path.iterdir())) == len(TABLES)
    first = (tmp_path / "runs.csv").read_bytes()
    write_csv(files[:1], tmp_path, force=True)
    assert (tmp_path / "runs.csv").read_bytes() == first


def test_parquet_without_pyarrow_names_the_extra(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fastpure\[parquet\]'"):
        write_parquet(files, tmp_path)
    assert not list(tmp_path.iterdir())


def test_parquet_equals_csv(files, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for path, other in zip(write_parquet(files, tmp_path), write_csv(files, tmp_path), strict=True):
        rows = parquet.read_table(path).to_pylist()
        assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == read(other)


def test_latex_tables_hold_the_numbers_and_are_balanced(files, tmp_path):
    paths = write_latex(files, tmp_path / "tables")
    assert [path.name for path in paths] == [f"{name}.tex" for name in LATEX]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    for text in texts.values():
        (columns,) = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)
        body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
        for line in body:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line))
        assert text.count(r"\begin{") == text.count(r"\end{") == 1
        assert text.isascii()
    with ExitStack() as stack:
        entries = open_entries(files, stack)
        lines = texts["results"].split("\\midrule\n")[1].splitlines()
        for entry, line in zip(entries, lines, strict=False):
            for interval in (entry.summary.clean, entry.summary.robust):
                if interval is not None:
                    low, high = (f"{100 * value:.1f}" for value in (interval.low, interval.high))
                    assert f"{100 * interval.estimate:.1f} {{\\footnotesize [{low}, {high}]}}" in line
            assert ("$^{*}$" in line) == bool(entry.summary.warnings)
        assert escaped(entries[1].name) in texts["comparisons"]
    assert len(texts["headlines"].split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()) == 2
    with pytest.raises(FileExistsError, match=r"headlines\.tex exists"):
        write_latex(files[:1], tmp_path / "tables")


def test_what_is_a_command_in_latex_is_printed():
    said = escaped("a_b & 5 % of $x^2$ {~} \\ #1 ε\n")
    assert said == (
        r"a\_b \& 5 \% of \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{} \#1 $\varepsilon$ "
    )
