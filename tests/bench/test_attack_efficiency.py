"""`bench.attack_efficiency`: points are runs, the table and the picture say what they say."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

import fastpure as fp
from bench import attack_efficiency as efficiency
from bench.points import Known, gradients, load, paired
from bench.published import PublishedRand
from bench.relatives import Means, Sizes, cosine
from bench.robustness import finished
from fastpure.data import Dataset
from fastpure.report.charts import picture
from tests.attacks.toys import Pixels, images, mixture_defense

SVG = "{http://www.w3.org/2000/svg}"
X = images(6)


def defense() -> fp.Defense:
    return mixture_defense(Pixels(), fp.methods.diffpure(t=0.003, dt=0.001))


with torch.no_grad():
    LABELS = defense()(X).argmax(1)
DATA = Dataset(X, LABELS, 3 * torch.arange(6) + 1, tuple("abcde"), "toy", "test")


def bench(**changes) -> efficiency.Bench:
    budgets = {
        "Adaptive": [(40,), (20,)],
        "APGD-CE": [(40, 8)],
        "PGD": [(3, 2), (2, 1)],
        "DiffHammer": [(2, 2)],
        "AutoAttack rand": [(2, 2)],
        "pyautoattack rand": [(2, 2)],
    }
    one = replace(
        efficiency.SMALL,
        defences={"a & b": defense, "c": defense},
        eps=0.05,
        budgets=budgets,
        reference="APGD-CE 40 x 8",
        n=6,
        batch_size=6,
        data=lambda row: DATA.select(list(range(row.n))),
        sizes=Sizes(images=3, draws=4, batch_size=64),
    )
    return replace(one, **changes)


def write(tmp_path, monkeypatch, *words: str) -> str:
    monkeypatch.setattr(efficiency, "SMALL", bench())
    efficiency.main(["--small", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *words])
    return (tmp_path / "out" / "attack_efficiency.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_points_are_run_once_and_said_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    assert "16 points are not finished yet" in write(tmp_path, monkeypatch, "--table-only")
    text = write(tmp_path, monkeypatch)
    assert "not finished" not in text
    found = finished(bench().rows(), tmp_path / "runs" / "trial")
    assert len(found) == 16
    for row, run in found.items():
        assert gradients(run) > 0, row
        report = fp.Report.of(run)
        assert f"| {row.defence} | {row.attack} | " in text
        assert str(report.robust).replace(" %", "") in text
    pairs = [line for line in text.splitlines() if line.startswith("| c | Adaptive") and "points" not in line]
    assert [line.split(" | ")[1] for line in pairs[:2]] == ["Adaptive 20", "Adaptive 40"]
    for name in ("a & b", "c"):
        own, *others = json.loads(efficiency.compared(tmp_path / "runs" / "trial", name).read_text())
        assert (own["relative"], own["cosine"], own["cosine attacked"]) == ("itself", 1.0, 1.0)
        assert others
        assert all(0 < one["cost"] < 1 for one in others)
    seconds = [run.seconds() for run in found.values()]
    assert write(tmp_path, monkeypatch) == text
    again = finished(bench().rows(), tmp_path / "runs" / "trial")
    assert [run.seconds() for run in again.values()] == seconds, "nothing was attacked twice"

    known = load(tmp_path / "out" / efficiency.KEPT)["trial"]
    runs = {row.attack: run for row, run in found.items() if row.defence == "c"}
    pair = fp.compare(runs["APGD-CE 40 x 8"], runs["Adaptive 20"])
    assert known.pairs[paired("c", "Adaptive 20", "APGD-CE 40 x 8")] == (
        pair.difference,
        pair.low,
        pair.high,
        pair.p_value,
    )
    shutil.rmtree(tmp_path / "runs")
    assert write(tmp_path, monkeypatch) == text, "what is known outlives the run files"
    assert not list((tmp_path / "runs").rglob("*.sqlite")), "and is not run again"
    monkeypatch.setattr(efficiency, "SMALL", bench(eps=0.04))
    with pytest.raises(SystemExit, match=r"'eps': 0.05.*the bench says.*'eps': 0.04.*--anew"):
        efficiency.main(["--small", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert "16 points are not finished yet" in write(tmp_path, monkeypatch, "--anew", "--table-only")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_picture_has_every_point_where_it_was_measured(tmp_path):
    from PIL import Image

    few = {"Adaptive": [(20,)], "PGD": [(3, 2), (2, 1)]}
    one = bench(budgets=few, sizes=Sizes(2, 2, 64))
    folder, known = tmp_path / "trial", Known()
    folder.mkdir()
    efficiency.run(one, folder, known)
    efficiency.gather(one, folder, known)
    first, _ = efficiency.charts(one, known)
    by_name = {series.name: series for series in first.series}
    assert by_name["PGD"].x == (2.0, 6.0)
    assert first.logarithmic
    assert by_name["Adaptive"].style != by_name["PGD"].style
    runs = {row: run for row, run in finished(one.rows(), folder).items() if row.defence == "a & b"}
    robust = [fp.Report.of(run).robust for row, run in runs.items() if row.attack.startswith("PGD")]
    assert sorted(zip(by_name["PGD"].y, by_name["PGD"].low, strict=True)) == sorted(
        (interval.estimate, interval.low) for interval in robust
    )
    assert "few images" in first.conditions, "warnings go with numbers"
    root = ElementTree.fromstring(picture(efficiency.charts(one, known)))
    assert root.find(f"{SVG}title").text == "a & b, digits, a trial; c, digits, a trial"
    lines = [group.find(f"{SVG}title") for group in root.iter(f"{SVG}g")]
    assert [line.text for line in lines if line is not None] == 2 * ["Adaptive", "PGD"]
    image = Image.open(io.BytesIO(picture(efficiency.charts(one, known), "png")))
    units = [float(root.attrib[name].removesuffix("pt")) for name in ("width", "height")]
    assert image.size == tuple(round(2 * unit) for unit in units), "144 pixels an inch"


def test_every_point_of_the_real_tables_names_what_exists_and_has_a_file_of_its_own():
    for one in (efficiency.DIGITS, efficiency.CIFAR10, efficiency.SMALL):
        rows = one.rows()
        assert len({row.file for row in rows}) == len(rows)
        study = replace(one, data=lambda row: DATA).study()
        assert {row.attack for row in rows} == set(study.attacks)
        for name, attack in study.attacks.items():
            made = attack()
            assert (made.norm, made.eps) == ("Linf", one.eps), name
        assert one.reference in study.attacks
        names = ["DiffPure", "COUP scale 1", "AGDM-style", "GDMP"]
        if one is not efficiency.SMALL:
            assert set(names) < set(one.defences)
            assert len(one.defences) == 5
            # At least as much as the reference spends, and half of it.
            largest, second, *_ = (budget for (budget,) in one.budgets["Adaptive"])
            n_iter, draws = map(int, one.reference.split()[1::2])
            assert largest >= n_iter * draws > second >= n_iter * draws / 2


def test_cosines_are_not_lowered_by_noise():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(400, 50, generator=generator, dtype=torch.float64)

    def noisy(scale: float) -> Means:
        one, two = (truth + scale * torch.randn(400, 50, generator=generator) for _ in range(2))
        return Means(one, two, 4)

    a, b = noisy(1.0), noisy(1.0)
    naive = torch.nn.functional.cosine_similarity(a.one, b.one).median()
    assert naive < 0.6
    assert float(cosine(a, b).nanmedian()) == pytest.approx(1.0, abs=0.05)
    # The variance of a mean over 4 draws is 50 pixels' worth of 1; of one draw 4 times as much.
    assert float(a.signal.median()) == pytest.approx(1 / 4, rel=0.15)
    lost = cosine(Means(truth, -truth, 4), b)
    assert bool(lost.isnan().all())


def test_the_published_attack_stays_in_the_ball_counts_and_moves_no_generator():
    pytest.importorskip("pyautoattack")
    attack = PublishedRand(eps=0.05, n_iter=3, eot_iter=2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (attack(defense(), X, DATA.labels, sample_ids=DATA.sample_ids) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.x_adv, two.x_adv)
    assert (one.x_adv - X).abs().max() <= 0.05 + 1e-6
    # Of the images that no look has got wrong, 3 iterations and a start under 2 draws; half of it for each look.
    assert 4 <= float(one.spent.mean()) <= 2 * (4 * 2 + 3)
    assert set(one.spent.tolist()) == {float(one.spent[0])}, "the package counts for all images together"
