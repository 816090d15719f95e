"""`reproduce` end to end on digits: a table, a figure of each kind, a kill anywhere, and refusals."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from fastpure.errors import DataError, ResumeError
from fastpure.evaluate import Run, evaluate
from fastpure.intervals import wilson
from fastpure.presets import DataSpec
from fastpure.reproduce import MISSING, SMALL, Full, Images, Small, cost, reproduce, run, times
from fastpure.reproduce.curves import Bars, ConfidenceAlong, Sweep
from fastpure.reproduce.galleries import SideBySide
from fastpure.reproduce.gaussians import Flips
from fastpure.reproduce.made import Kept
from fastpure.reproduce.parts import Row
from fastpure.reproduce.planes import Landscape, Paths, Plane
from fastpure.reproduce.relatives import DW_ALL, DW_ALL_RULE
from fastpure.reproduce.tables import robust_of
from fastpure.reproduce.times import Times

from .tiny import GUIDED, PGD, PLAIN, RULE, UNGUIDED, experiment, rows


def make(one, folder, **options):
    return reproduce(one, Small(), folder, progress=False, **options)


def content(folder):
    """Everything but the page, which tells times, by name; runs by the digest of their results."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".sqlite":
            with Run.open(path) as run:
                found[name] = run.content_digest()
        elif path.is_file() and path.name != "report.html" and "pieces" not in name:
            found[name] = path.read_bytes()
    return found


def test_a_table_has_the_papers_numbers_beside_ours(tmp_path):
    written = make(experiment(Bars("bars")), tmp_path)
    assert {path.name for path in written} == {"bars.png", "report.html", "table.md", "table.json"}
    text = (tmp_path / "table.md").read_text()
    assert f"Ours: {SMALL}." in text
    assert "robust % (digits)" in text
    plain, guided = (line for line in text.splitlines() if "PGD-2" in line)
    assert plain.count(MISSING) == 2
    assert "90.04 | 73.05 (AutoAttack; COUP Table 1 [P])" in guided
    values = json.loads((tmp_path / "table.json").read_text())
    assert values["setting"]["small"]
    with Run.open(tmp_path / values["rows"][1]["files"]["PGD-2"]) as run:
        robust = 100 * run.values("adversarial").mean()
        assert run.identity["attack"]["settings"]["n_iter"] == 2
    assert values["rows"][1]["robust"]["estimate"] == pytest.approx(robust, abs=1e-3)
    assert values["rows"][1]["published"][0]["robust"] == 73.05
    assert SMALL in html.unescape((tmp_path / "report.html").read_text())


def test_killed_anywhere_the_same_call_ends_with_the_same_content(tmp_path):
    one = experiment(
        Flips("flips", scales=(2.0,), noises=(0.0,), points=64),
        Paths("paths", rows()[0], (GUIDED,), most=1, places=5),
    )
    make(one, tmp_path / "whole")

    class Killed(BaseException):
        pass

    for stop in ("run 2 of 2", "drawing flips", "ways of COUP", "pictures of run"):

        def say(text, stop=stop):
            if stop in text:
                raise Killed

        with pytest.raises(Killed):
            make(one, tmp_path / "part", say=say)
        assert not (tmp_path / "part" / "table.md").exists()
    make(one, tmp_path / "part")
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_the_time_left_is_told_and_finished_runs_count_for_nothing(tmp_path):
    said: list[str] = []
    make(experiment(), tmp_path, say=said.append)
    runs = [text for text in said if text.startswith("run ")]
    assert re.search(r"run 2 of 2: COUP, PGD-2; about \d+:\d\d:\d\d left for all runs", runs[1])
    said.clear()
    make(experiment(), tmp_path, say=said.append)
    assert not any("left for all runs" in text for text in said)


def test_of_two_attacks_the_one_that_leaves_less_counts(tmp_path):
    weak = replace(PGD, small=(("eps", 0.001), ("n_iter", 1), ("eot_iter", 1)), small_label="weak")
    strong = replace(PGD, small=(("eps", 0.9), ("n_iter", 8), ("eot_iter", 1)), small_label="strong")
    bare = replace(PLAIN, bare=True)
    make(experiment(rows=(Row(bare, (weak, strong), RULE),)), tmp_path)
    row = json.loads((tmp_path / "table.json").read_text())["rows"][0]
    assert row["counts"] == "strong"
    assert set(row["files"]) == {"weak", "strong"}
    assert row["robust"]["estimate"] < row["clean"]["estimate"]


def test_curves_and_confidences(tmp_path):
    found = Row(UNGUIDED, (replace(PGD, small=(("eps", 0.9), ("n_iter", 4), ("eot_iter", 1))),), RULE)
    guided = tuple(Row(GUIDED.changed(f"scale {scale:g}", scale=scale), (PGD,), RULE) for scale in (0.5, 2.0))
    one = experiment(
        Sweep("sweep", "scale"), ConfidenceAlong("confidence", found, (GUIDED,)), rows=(found, *guided)
    )
    make(one, tmp_path)
    for name in ("sweep", "confidence"):
        text = (tmp_path / f"{name}.svg").read_text()
        ElementTree.fromstring(text)
        assert "not the paper" in text
    assert "true class" in text
    assert len(list((tmp_path / "pieces").iterdir())) == 2


def test_the_lower_of_two_attacks_has_an_interval_that_holds_for_both():
    """As `evaluate.smaller_of` tells it: Bonferroni's intervals, from the lowest lower to the lowest upper bound."""
    row = replace(rows()[0], attacks=(PGD, replace(PGD, label="PGD-100")))
    first, second = row.runs

    def entry(right: int) -> SimpleNamespace:
        return SimpleNamespace(summary=SimpleNamespace(robust=wilson(right, 16, 0.95)))

    assert robust_of(row, {first: entry(9)}) is None, "not before all are there"
    found = robust_of(row, {first: entry(9), second: entry(8)})
    assert found.estimate == 0.5
    assert found.low == wilson(8, 16, 0.975).low < wilson(8, 16, 0.95).low
    assert found.high == wilson(8, 16, 0.975).high
    single = rows()[0]
    assert robust_of(single, {single.runs[0]: entry(9)}) == wilson(9, 16, 0.95)


def test_pictures_of_several_methods(tmp_path):
    found = Row(UNGUIDED, (PGD,), RULE)
    lines = (found, found.moved(GUIDED))
    one = experiment(SideBySide("images", lines, most=3), SideBySide("lost", lines, ("lost",)), rows=lines)
    make(one, tmp_path)
    with Image.open(tmp_path / "images.png") as picture:
        assert picture.size[0] > 300
    with (
        Run.open(tmp_path / "runs" / lines[0].runs[0].file(True)) as a,
        Run.open(tmp_path / "runs" / lines[1].runs[0].file(True)) as b,
    ):
        assert np.array_equal(a.images("adversarial"), b.images("adversarial"))
        assert b.identity["attack"]["name"] == "Transfer"
    assert "of 4 attacked images, rescued" in (tmp_path / "table.md").read_text()


def test_planes_and_landscapes(tmp_path):
    stochastic = Row(PLAIN, (PGD,), RULE)
    known = Row(PLAIN, (replace(DW_ALL, small=(("eps", 0.2), ("n_iter", 2))),), DW_ALL_RULE)
    drawn = Landscape("loss", stochastic, known, most=1, places=3, draws=2)
    one = experiment(drawn, rows=(stochastic, known))
    make(one, tmp_path)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size[0] > 200
    (piece,) = (tmp_path / "pieces").iterdir()
    with np.load(piece) as saved:
        assert saved["mean_loss"].shape == saved["known_right"].shape == (3, 3)
        assert set(np.unique(saved["known_right"])) <= {0.0, 1.0}
        assert np.isfinite(saved["mean_loss"]).all()
    assert "on fresh noise" in (tmp_path / "table.md").read_text()


def test_a_plane_holds_its_three_points_and_its_grid_is_where_it_says():
    origin, one, two = (
        torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(i)) * 0.2 + 0.4 for i in range(3)
    )
    plane = Plane.through(origin, one, two)
    x, y = plane.place(torch.stack([origin, one, two]))
    assert x[:2] == pytest.approx([0, 1], abs=1e-6)
    assert y[:2] == pytest.approx([0, 0], abs=1e-6)
    again = origin.flatten().double() + plane.along * x[2] + plane.across * y[2]
    assert torch.allclose(again.float(), two.flatten(), atol=1e-6)
    grid = plane.grid(np.array([0.0, 1.0]))
    assert torch.allclose(grid[1], one, atol=1e-6), "the first axis varies fastest"
    line = Plane.through(origin, one, origin + 2 * (one - origin))
    assert abs(float(line.along @ line.across)) < 1e-9


def test_times_and_closed_forms_need_no_runs(tmp_path):
    columns = (("t = 0.1", (PLAIN, GUIDED)),)
    times = Times("seconds", columns, (("DiffPure", 3.056, "on a V100"), ("COUP", None, "")), batch=2)
    one = experiment(times, rows=())
    make(one, tmp_path)
    values = json.loads((tmp_path / "seconds.json").read_text())
    assert all(value[0] > 0 for value in values["seconds_per_image"].values())
    text = (tmp_path / "table.md").read_text()
    assert "3.056 (on a V100)" in text
    assert MISSING in text
    again = dict(content(tmp_path))
    make(one, tmp_path)
    assert content(tmp_path) == again, "what was measured is kept"


def test_seconds_of_another_machine_are_measured_anew_and_said(tmp_path, monkeypatch):
    columns = (("t = 0.1", (PLAIN,)),)
    one = experiment(Times("seconds", columns, (("DiffPure", None, ""),), batch=2), rows=())

    def machine(name):
        monkeypatch.setattr(times, "_machine", lambda device: name)
        make(one, tmp_path)
        return json.loads((tmp_path / "seconds.json").read_text()), (tmp_path / "table.md").read_text()

    first, text = machine("a slow processor")
    assert first["machine"] == "a slow processor"
    assert "on a slow processor" in text
    assert machine("a slow processor") == (first, text)
    other, text = machine("a fast processor")
    assert other["machine"] == "a fast processor"
    assert other["seconds_per_image"] != first["seconds_per_image"]
    assert (
        "Seconds had been measured on a slow processor; all were measured anew on a fast processor." in text
    )


def test_what_an_earlier_session_did_makes_this_one_no_faster(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    half, whole = (row.runs[0] for row in rows())
    clock = run._Clock({half: 50.0, whole: 100.0})
    now[0] = 60.0
    clock.done(half)
    assert "about 0:02:00 left" in clock.left()


def test_the_rest_of_a_reproduction_costs_less(tmp_path):
    one, setting = experiment(Bars("bars")), Small()
    whole = [calls for _, _, calls in cost(one, setting).plans]
    first, second = one.jobs
    run.claim(tmp_path, one, setting)
    for job, shard in ((first, None), (second, (1, 2))):
        evaluate(
            setting.defence(job.row.defence),
            setting.dataset(one.images),
            setting.attack(job.attack, job.row.defence),
            job.row.protocol,
            tmp_path / run.RUNS / job.file(True),
            batch_size=2,
            progress=False,
            shard=shard,
        )
    before = content(tmp_path)
    found = cost(one, setting, tmp_path)
    assert [calls for _, _, calls in found.plans] == [0, whole[1] // 2]
    assert "PGD-2: finished" in str(found)
    assert content(tmp_path) == before, "nothing is written"
    with pytest.raises(ResumeError, match="seed"):
        cost(one, Small(seed=1), tmp_path)


def test_what_is_drawn_costs_nothing_more(tmp_path):
    one = experiment(Times("seconds", (("t = 0.1", (PLAIN,)),), (("DiffPure", None, ""),), batch=2), rows=())
    assert cost(one, Small(), tmp_path / "new").drawn > 0
    make(one, tmp_path / "done")
    assert cost(one, Small(), tmp_path / "done").network_calls == 0


def test_what_needs_no_network_needs_no_file(tmp_path):
    one = experiment(Flips("flips", scales=(0.0,), noises=(0.0,), points=64), rows=())
    reproduce(one, Full(), tmp_path, progress=False)
    ElementTree.fromstring((tmp_path / "flips.svg").read_text())
    assert "closed form, no network" in (tmp_path / "table.md").read_text()
    make(one, tmp_path / "small")
    assert "digits" not in (tmp_path / "small" / "table.md").read_text()


def test_what_it_costs(tmp_path):
    one = experiment(Landscape("loss", *rows(), most=1, places=3, draws=2))
    found = cost(one, Small())
    runs = 4 * 2 * (2 * 2 + 2 * 3)  # images x steps x (2 gradients, forward and backward, and 6 judgements)
    assert [calls for _, _, calls in found.plans] == [runs, runs]
    assert found.drawn == 1 * 9 * 3 * 2
    assert found.network_calls == 2 * runs + found.drawn
    assert found.hours > 0
    assert f"{found.network_calls:,}" in str(found)
    assert SMALL in str(found)


def test_a_folder_is_for_one_setting(tmp_path):
    one = experiment(rows=(), images=2)
    make(one, tmp_path / "a")
    with pytest.raises(ResumeError, match="seed"):
        reproduce(one, Small(seed=1), tmp_path / "a", progress=False)
    with pytest.raises(ResumeError, match="another reproduction"):
        make(replace(one, name="other"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(ResumeError, match="not empty"):
        make(one, tmp_path / "b")
    with pytest.raises(NotADirectoryError):
        make(one, tmp_path / "b" / "mine.txt")


def test_networks_that_are_not_given_or_do_not_fit(tmp_path):
    one = experiment()
    with pytest.raises(ValueError, match=r"--denoiser FILE: .*checkpoint_8"):
        reproduce(one, Full(), tmp_path / "x", progress=False)
    bundled = {"denoiser": "digits", "classifier": "digits"}
    with pytest.raises(ValueError, match="--data-path"):
        reproduce(one, Full(files=bundled), tmp_path / "x", progress=False)
    with pytest.raises(DataError, match=r"nothing\.tar\.gz: no such file"):
        reproduce(
            one, Full(files=bundled, data_path=tmp_path / "nothing.tar.gz"), tmp_path / "x", progress=False
        )
    with pytest.raises(FileNotFoundError, match=r"--denoiser missing\.pth: no such file"):
        Full(files={"denoiser": "missing.pth"})
    with pytest.raises(ValueError, match="role"):
        Full(files={"nobody": "digits"})
    assert not (tmp_path / "x").exists()


def test_rows_without_networks_are_left_out_and_shapes_are_checked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "two.npz", x=pixels, y=np.array([0, 9]))
    quick = replace(PGD, full=(("norm", "Linf"), ("eps", 8 / 255), ("n_iter", 1), ("eot_iter", 1)))
    lines = (
        Row(replace(PLAIN, label="bare", bare=True), (quick,), RULE),
        Row(replace(PLAIN, classifier="wide"), (quick,), RULE),
    )
    one = replace(experiment(Bars("bars"), rows=lines), images=Images(DataSpec("arrays", None)))
    given = {"classifier": "cifar10-small"}
    reproduce(one, Full(files=given, data_path=tmp_path / "two.npz"), tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "not run: needs --denoiser FILE, --network wide=FILE" in text
    assert "digits" not in text
    assert "the paper's setting, as far as it is known" in text
    more = {**given, "denoiser": "cifar10-small", "wide": "cifar10-small"}
    few = replace(
        one, rows=(lines[0], replace(lines[1], defence=replace(lines[1].defence, recipe=PLAIN.small)))
    )
    reproduce(few, Full(files=more, data_path=tmp_path / "two.npz"), tmp_path / "out", progress=False)
    assert "not run" not in (tmp_path / "out" / "table.md").read_text(), "what was missing came later"
    other = Full(files={**more, "classifier": "cifar10-aux"}, data_path=tmp_path / "two.npz")
    with pytest.raises(ResumeError, match="classifier"):
        reproduce(few, other, tmp_path / "out", progress=False)
    wrong = Full(files={**more, "denoiser": "digits"}, data_path=tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"must be of images \(1, 8, 8\)"):
        reproduce(few, wrong, tmp_path / "y", progress=False)
    assert not (tmp_path / "y").exists(), "found out before anything was run"


def test_kept_arrays_come_back_and_a_damaged_file_is_computed_again(tmp_path):
    kept, asked = Kept(tmp_path), []

    def compute():
        asked.append(1)
        return {"a": np.arange(3)}

    for _ in range(2):
        assert kept.arrays({"x": 1}, compute)["a"].tolist() == [0, 1, 2]
    assert len(asked) == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    kept.arrays({"x": 1}, compute)
    assert len(asked) == 2
    kept.arrays({"x": 2}, compute)
    assert len(asked) == 3
