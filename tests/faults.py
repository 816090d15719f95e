"""Kills and full disks at every I/O call of the commands that write, and what the same command then makes of it.

`fault_counts()` does it for all of them, ``python -m tests.faults`` prints the counts as a table, for every call. The
tests try every third one (`tests.thirds`).

Each trial is a forked process in a folder of its own. A *kill* ends it before its n-th call (a write is cut in half),
as SIGKILL would: nothing is flushed, rolled back or released. A *full disk* refuses every call that needs space from
the n-th on. Afterwards the same command runs once without faults.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import gc
import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch._dynamo  # now: its first import looks for a temporary folder, which a full disk does not give

from fastpure import files
from fastpure.errors import FastpureError, RunDamaged
from fastpure.evaluate import Run, merge
from fastpure.evaluate.work import Worker

COUNTS = ("kills", "full disks", "differences", "damaged", "refused", "tracebacks")
COMPLETED, SURVIVED, OURS, THEIRS, KILLED = 0, 3, 4, 5, 137
MOST_CALLS = 2000

GROWING_SQL = (
    "INSERT",
    "UPDATE",
    "CREATE",
    "COMMIT",
    "PRAGMA JOURNAL",
    "PRAGMA WAL",
    "PRAGMA APPL",
    "PRAGMA USER",
)


@dataclass(frozen=True)
class Job:
    """A command that writes.

    Fields:
        run: it, into a folder that may hold what an earlier attempt left.
        content: of the files under their final names, what must not depend on faults; raises where one is damaged.
    """

    run: Callable[[Path], object]
    content: Callable[[Path], dict[str, Any]]


class Faults:
    """Counts the I/O calls of this process, and ends or refuses them from the ``at``-th on."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.left, self.struck = kind, at, False

    def call(self, growing: bool, half: Callable[[], object] = lambda: None) -> None:
        """One call is about to be made; ``half`` does a part of it."""
        if self.kind == "full" and not growing:
            return
        self.left -= 1
        if self.left > 0 or (self.struck and self.kind == "kill"):
            return
        self.struck = True
        half()
        if self.kind == "kill":
            os._exit(KILLED)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """Watch this process, which is a fork made for it, for the rest of its life."""
        for name in ("replace", "rename", "fsync", "mkdir", "truncate", "ftruncate", "link", "symlink"):
            self._wrap(os, name, growing=True)
        for name in ("unlink", "remove", "rmdir", "chmod", "utime"):
            self._wrap(os, name, growing=False)
        self._wrap_open(os, "open", lambda path, flags, *rest: flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
        for module in (io, builtins):
            self._wrap_open(module, "open", lambda file, mode="r", *rest: set(mode) & set("wax+"))
        self._wrap_write()
        self._wrap_sqlite()

    def _wrap(self, module: Any, name: str, growing: bool) -> None:
        real = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            self.call(growing)
            return real(*arguments, **named)

        setattr(module, name, called)

    def _wrap_open(self, module: Any, name: str, writes: Callable[..., object]) -> None:
        real = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            mode = {"mode": named["mode"]} if module is not os and "mode" in named else {}
            if not isinstance(arguments[0], int) and writes(*arguments, **mode):
                self.call(growing=True)
            return real(*arguments, **named)

        setattr(module, name, called)

    def _wrap_write(self) -> None:
        real = files.Watched.write

        def write(file: files.Watched, data: Any) -> int:
            try:
                self.call(True, lambda: real(file, bytes(data)[: len(data) // 2]))
            except OSError as error:
                file.error = error
                raise
            return real(file, data)

        files.Watched.write = write  # type: ignore[method-assign]

    def _wrap_sqlite(self) -> None:
        real, faults = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            read_only = False

            def execute(self, query: str, *values: Any) -> Any:
                if not self.read_only:  # what only reads leaves the disk as the next call finds it
                    faults.statement(query)
                return super().execute(query, *values)

            def executemany(self, query: str, *values: Any) -> Any:
                faults.statement(query)
                return super().executemany(query, *values)

            def close(self) -> None:
                if not self.read_only:
                    faults.call(growing=False)
                super().close()

        def connect(name: Any, *arguments: Any, **named: Any) -> Connection:
            connection = real(name, *arguments, factory=Connection, **named)
            connection.read_only = "immutable" in str(name)
            return connection

        sqlite3.connect = connect  # type: ignore[assignment]

    def statement(self, query: str) -> None:
        """A statement of SQLite, whose own calls of the system cannot be seen from here."""
        try:
            self.call(query.upper().startswith(GROWING_SQL))
        except OSError as error:
            raise sqlite3.OperationalError("database or disk is full") from error


def attempt(job: Job, folder: Path, kind: str = "full", at: int = sys.maxsize) -> tuple[int, str]:
    """Run the job in a fork, with a fault; how it ended, and what it said."""
    said = folder.parent / "said"
    child = os.fork()
    if child == 0:
        ended, text = THEIRS, ""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            warnings.simplefilter("ignore")
            faults = Faults(kind, at)
            opened = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            faults.install()
            try:
                job.run(folder)
                ended = SURVIVED if faults.struck else COMPLETED
            except FastpureError as error:
                ended, text = OURS, str(error)
            except BaseException:
                text = traceback.format_exc()
            os.write(opened, text.encode())
        finally:
            os._exit(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text() if code in (OURS, THEIRS) else ""


def every_fault(
    job: Job,
    place: Path,
    say: Callable[[str], None] = lambda text: None,
    tried: tuple[int, int] = (1, 0),
) -> dict[str, int]:
    """Both kinds of fault at every I/O call of ``job``; how many there were, and what they spoilt.

    ``tried`` (n, k): only at every n-th call, from the (k + 1)-th on.
    """
    step, first = tried
    counts = dict.fromkeys(COUNTS, 0)
    gc.collect()
    gc.freeze()  # forks then share their memory
    (place / "whole").mkdir(parents=True)
    code, text = attempt(job, place / "whole")
    assert code == COMPLETED, text
    whole, names = job.content(place / "whole"), _names(place / "whole")
    for kind, counted in (("kill", "kills"), ("full", "full disks")):
        for at in range(1 + first, MOST_CALLS, step):
            folder = place / f"{kind}-{at}"
            folder.mkdir()
            code, text = attempt(job, folder, kind, at)
            if code == COMPLETED:
                shutil.rmtree(folder)
                break
            counts[counted] += 1
            if code == THEIRS:
                counts["tracebacks"] += 1
                say(f"{kind} at call {at}: {text}")
            try:
                job.content(folder)
            except Exception as error:
                counts["damaged"] += 1
                say(f"{kind} at call {at}: damaged: {error!r}")
            code, text = attempt(job, folder)
            if code != COMPLETED:
                counts["refused"] += 1
                say(f"{kind} at call {at}: the same command ends with {code}: {text}")
            elif job.content(folder) != whole or _names(folder) != names:
                counts["differences"] += 1
                say(f"{kind} at call {at}: {_names(folder) ^ names or 'other content'}")
            shutil.rmtree(folder)
        else:
            raise AssertionError("no end of I/O calls")
    return counts


def _names(folder: Path) -> set[str]:
    """Every file, hidden ones too: leftovers are a difference."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _run_content(path: Path) -> dict[str, Any]:
    """A run file's digest; nothing where it is not there, or did not begin."""
    try:
        with Run.open(path) as run:
            return {path.name: run.content_digest()} if run.complete else {}
    except FileNotFoundError:
        return {}
    except RunDamaged as error:
        if "interrupted before it began" in str(error):
            return {}
        raise


def _bytes_of(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _remembered(owner: Any, name: str, key: Callable[..., Any]) -> None:
    """Compute what a method returns once, and take it from memory in all forks: what is tried is the files."""
    real, known = getattr(owner, name), {}

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        if key(self, *arguments) not in known:
            known[key(self, *arguments)] = real(self, *arguments, **named)
        return known[key(self, *arguments)]

    setattr(owner, name, method)


def _once_each(module: Any, name: str) -> None:
    """The same for a function whose first argument, or what is in that list, stays alive."""
    real, known = getattr(module, name), {}

    def function(argument: Any, *rest: Any) -> Any:
        alive = argument[0] if isinstance(argument, list) else argument
        if (id(alive), rest) not in known:
            known[id(alive), rest] = real(argument, *rest), alive
        return known[id(alive), rest][0]

    setattr(module, name, function)


def evaluation(inputs: Path) -> Job:
    from tests.evaluate import toys

    def run(folder: Path) -> None:
        toys.evaluate(folder / "run.sqlite", n=4, batch_size=2)

    _remembered(Worker, "block", lambda self, positions, *rest: tuple(positions))
    toys.evaluate(None, n=4, batch_size=2)
    return Job(run, lambda folder: _run_content(folder / "run.sqlite"))


def merging(inputs: Path) -> Job:
    from tests.evaluate import toys

    shards = [inputs / f"{i}.sqlite" for i in (1, 2)]
    for i, shard in enumerate(shards, 1):
        toys.evaluate(shard, n=4, batch_size=2, shard=(i, 2))
    before = _bytes_of(inputs)

    def content(folder: Path) -> dict[str, Any]:
        assert _bytes_of(inputs) == before, "a shard was changed"
        if (folder / "all.sqlite").exists():
            with Run.open(folder / "all.sqlite") as run:
                assert run.complete, "a merged file is whole, or is not there"
        return _run_content(folder / "all.sqlite")

    return Job(lambda folder: merge(folder / "all.sqlite", shards), content)


def training(inputs: Path) -> Job:
    import torch

    from fastpure.classifiers import CONFIGS
    from fastpure.classifiers.resnet import ResNetConfig
    from fastpure.cli.convert import _content
    from fastpure.train import CLASSIFIER_RECIPES, train_classifier
    from tests.train.helpers import few_digits

    # A small network: what is tried is the files. Not of fewer than eight channels: for those oneDNN's gradient of a
    # strided 1x1 convolution writes beyond its memory on processors without AVX-512 (torch 2.13).
    small = ResNetConfig((1, 8, 8), classes=10, widths=(8, 8), mean=(0.5,), std=(0.5,))
    recipe = CLASSIFIER_RECIPES["digits"]
    CONFIGS[recipe.network] = small
    short = replace(recipe.train, steps=3, batch_size=4, log_every=2, score_every=2)
    recipe, data = replace(recipe, train=short), few_digits(8)

    def content(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        weights = folder / "classifier.safetensors"
        if weights.exists():
            found["weights"] = _content(weights)
            assert found["weights"] is not None
        if (folder / "metrics.csv").exists():
            rows = (folder / "metrics.csv").read_text().splitlines()
            found["metrics"] = [[cell for i, cell in enumerate(row.split(",")) if i != 3] for row in rows]
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            found["step"] = state["step"]
        if (folder / "result.json").exists():
            found["result"] = json.loads((folder / "result.json").read_text())["held_out"]
        return found

    def run(folder: Path) -> None:
        train_classifier(recipe, data, data, folder, save_every=2, progress=False)

    _once(run)  # what PyTorch imports late, it imports here
    return Job(run, content)


def purifying(inputs: Path) -> Job:
    from tests.cli.test_purify_kills import fake, mixed, small_run

    source = mixed(inputs)

    def run(folder: Path) -> None:
        task = small_run(source, folder / "out")
        with task.opened():
            task.execute(fake, lambda n: None)

    def content(folder: Path) -> dict[str, Any]:
        import numpy as np
        from PIL import Image

        for path in folder.rglob("*.png"):
            with Image.open(path) as image:
                image.load()
        for path in folder.rglob("*.np[yz]"):
            np.load(path)
        return _bytes_of(folder)

    return Job(run, content)


def reporting(inputs: Path) -> Job:
    from fastpure.cli.report import report
    from fastpure.report import export, page
    from fastpure.report import sheet as written
    from tests.evaluate import toys

    runs = [inputs / "a.sqlite", inputs / "b.sqlite"]
    for path, eps in zip(runs, (0.05, 0.1), strict=True):
        how = toys.fresh(2)
        toys.fp.evaluate(toys.defense(), toys.dataset(4), toys.attack(eps=eps), how, path, progress=False)

    def run(folder: Path) -> None:
        page, tables, pictures = folder / "report.html", folder / "tables", folder / "figures"
        report(runs, out=page, csv=tables, figures=pictures, shown=1, traced=0)

    def content(folder: Path) -> dict[str, Any]:
        found = _bytes_of(folder)
        for name, data in found.items():
            assert data.rstrip().endswith((b"</html>", b"</svg>")) or not name.endswith((".html", ".svg"))
        return found

    collect, tables = page.collect, export._tables
    known: dict[str, Any] = {}

    def collected(*arguments: Any) -> dict[str, Any]:
        if "values" not in known:
            known["values"] = collect(*arguments)
        arguments[-1](known["values"]["files"])  # what checks that none of them exists
        return known["values"]

    def tabled(entries: Any) -> Any:
        if "tables" not in known:
            known["tables"] = tables(entries)
        return known["tables"]

    page.collect, export._tables = collected, tabled
    for module, name in ((page, "render"), (written, "sheet"), (written, "picture")):
        _once_each(module, name)
    _once(run)
    for module in (page, export):  # the runs are only read: that is not tried here
        module.open_entries = lambda runs, stack: []  # type: ignore[attr-defined]
    return Job(run, content)


def converting(inputs: Path) -> Job:
    from fastpure.cli.convert import _content, convert
    from tests.golden import FOLDER

    def run(folder: Path) -> None:
        config = FOLDER / "score_sde_checkpoint_tiny.json"
        convert(FOLDER / "score_sde_checkpoint_tiny.pth", folder / "out.safetensors", config=config)

    def content(folder: Path) -> dict[str, Any]:
        if not (folder / "out.safetensors").exists():
            return {}
        found = _content(folder / "out.safetensors")
        assert found is not None
        return {"out.safetensors": found}

    return Job(run, content)


def demonstrating(inputs: Path) -> Job:
    from fastpure.attacks import PGD
    from fastpure.cli import demo, figures

    def draw(
        path: Path, data: Any, defenses: Any, attacked: dict[str, Any]
    ) -> None:  # matplotlib takes its time
        with files.replacing(path) as file:
            for images in attacked.values():
                file.write(images.numpy().tobytes())

    figures.demo = draw
    _remembered(
        PGD, "__call__", lambda self, defense, *rest: (repr(self), type(defense).__name__, _method(defense))
    )

    def run(folder: Path) -> None:
        demo.demo(folder / "demo.png", n=2, steps=2, n_iter=1, eot_iter=1, draws=1)

    _once(run)
    return Job(run, _bytes_of)


def _once(run: Callable[[Path], None]) -> None:
    """Compute what is remembered, and import what is imported late, before the forks."""
    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        run(Path(folder))


def _method(defense: Any) -> str:
    return str(getattr(getattr(defense, "purifier", None), "method", ""))


JOBS: dict[str, Callable[[Path], Job]] = {
    "evaluate": evaluation,
    "merge": merging,
    "train": training,
    "purify": purifying,
    "report": reporting,
    "convert": converting,
    "demo": demonstrating,
}


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files seen to a disk take their time."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


def fault_counts(
    names: tuple[str, ...] = tuple(JOBS),
    say: Callable[[str], None] = lambda text: None,
    tried: tuple[int, int] = (1, 0),
) -> dict[str, dict[str, int]]:
    """By command: {"kills": n, "full disks": n, "differences": 0, "damaged": 0, "refused": 0, "tracebacks": 0}.

    Every command is tried in a fork of its own, because what it computes is taken from memory there.
    """
    counts = {}
    for name in names:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                with memory_folder() as folder:
                    (folder / "inputs").mkdir()
                    found = every_fault(JOBS[name](folder / "inputs"), folder / "trials", say, tried)
                os.write(writer, json.dumps(found).encode())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        assert text, f"{name}: the trials themselves failed"
        counts[name] = json.loads(text)
    return counts


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print("| command | " + " | ".join(COUNTS) + " |\n|---|" + "---:|" * len(COUNTS))
    for one in sys.argv[1:] or JOBS:
        row = fault_counts((one,), say=lambda text: print(text, file=sys.stderr))[one]
        print(f"| {one} | " + " | ".join(str(row[name]) for name in COUNTS) + " |", flush=True)
