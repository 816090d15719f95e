"""The parts of a page: what was swept, what it cost, Holm's correction, charts, the choice of images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.evaluate.identity import describe_defense
from fastpure.evaluate.record import Course
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.intervals import wilson
from fastpure.purify import look_through
from fastpure.report import report
from fastpure.report.charts import listed, svg
from fastpure.report.data import ASCENDED, holm, open_entries, value_text
from fastpure.report.figures import sweep_chart, trace_charts
from fastpure.report.page import Options, collect
from fastpure.report.pictures import choose
from fastpure.report.rebuild import (
    CannotRebuild,
    find_defense,
    network_calls,
    rebuild_attack,
    rebuild_defense,
)
from fastpure.report.sweeps import sweeps
from fastpure.report.tables import count, duration, explain
from tests.evaluate.toys import SHAPE, Brightness, attack, dataset, defense, run_file
from tests.report.made import run


class Featured(Brightness):
    """With the features that some guidance wants."""

    def features_and_logits(self, u):
        return u.flatten(1), self(u)


def toy(t, steps, seed=0):
    made = defense(seed)
    method = fp.methods.coup(made.classifier, t=t, dt=t / steps, scale=1.0)
    return fp.Defense(made.purifier.with_method(method), made.classifier)


def find(paths):
    with ExitStack() as stack:
        return [(s.setting, [(c.label, [(x, e.name) for x, e in c.points]) for c in s.curves])
                for s in sweeps(open_entries(paths, stack))]  # fmt: skip


def test_sweeps_are_found_and_nothing_else_is(tmp_path):
    made = {}
    for t, steps in ((0.02, 2), (0.04, 2), (0.04, 4), (0.08, 2)):
        made[t, steps] = run(tmp_path / f"{t}-{steps}.sqlite", toy(t, steps), data=dataset(4))
    assert find([made[0.08, 2], made[0.02, 2]]) == [("t", [("", [(0.02, "0.02-2"), (0.08, "0.08-2")])])]
    assert find([made[0.04, 2], made[0.04, 4]]) == [("steps", [("", [(2.0, "0.04-2"), (4.0, "0.04-4")])])]
    # Twice the time in twice the steps is a sweep over t at the same dt.
    assert find([made[0.02, 2], made[0.04, 4]]) == [("t", [("", [(0.02, "0.02-2"), (0.04, "0.04-4")])])]
    assert find([made[0.02, 2]]) == []
    assert find([made[0.04, 4], made[0.08, 2]]) == [], "t, steps and dt all differ"
    both = dict(find(list(made.values())))
    assert sorted(both) == ["steps", "t"]
    assert len(both["t"]) == 2


def test_sweeps_of_attacks_and_two_settings_at_once(tmp_path):
    paths = []
    for n_iter in (2, 3):
        for eot_iter in (1, 2):
            path = tmp_path / f"{n_iter}-{eot_iter}.sqlite"
            paths.append(run(path, defense(), attack(n_iter=n_iter, eot_iter=eot_iter), data=dataset(4)))
    found = dict(find(paths))
    assert found["n_iter"] == [
        ("EOT draws of the attack 1", [(2.0, "2-1"), (3.0, "3-1")]),
        ("EOT draws of the attack 2", [(2.0, "2-2"), (3.0, "3-2")]),
    ]
    assert [label for label, _ in found["eot_iter"]] == ["attack iterations 2", "attack iterations 3"]
    other = run(tmp_path / "seed.sqlite", defense(), attack(n_iter=9, seed=1), data=dataset(4))
    assert find([paths[0], other]) == [], "another seed and another number of iterations"
    sized = [
        run(tmp_path / f"size-{size}.sqlite", defense(), attack(step_size=size), data=dataset(4))
        for size in (0.01, 0.02, None)
    ]
    assert find(sized) == [("step_size", [("", [(0.01, "size-0.01"), (0.02, "size-0.02")])])]
    with ExitStack() as stack:
        chart = sweep_chart(sweeps(open_entries(paths, stack))[0])
    ElementTree.fromstring(svg(chart))
    names = [one.name for one in chart.series]
    assert names == [*(f"robust, EOT draws of the attack {n}" for n in (1, 2)), "clean"], (
        "one defence, one clean curve"
    )
    assert chart.series[-1].x == (2.0, 3.0)
    assert chart.series[-1].style not in (0, 1)
    assert chart.counts


def test_curves_are_told_apart_by_kind_and_then_by_what_differs_within_it(tmp_path):
    data = dataset(4)
    moved = fp.attacks.Transfer(found=data.images, sample_ids=data.sample_ids, source="gdmp")
    kinds = enumerate((attack(), attack(gradient="bpda"), moved))
    paths = [
        run(tmp_path / f"{i}-{t}", toy(t, 2), kind, data=data) for i, kind in kinds for t in (0.02, 0.04)
    ]
    ((setting, curves),) = find(paths)
    assert setting == "t"
    assert {label for label, _ in curves} == {
        "PGD, gradient exact",
        "PGD, gradient bpda",
        "Transfer from gdmp",
    }


def test_network_calls_are_those_of_the_plan(tmp_path):
    for defended in (defense(), defense().classifier):
        for tried in (None, attack(n_iter=3, eot_iter=2)):
            protocol = fp.protocols.fresh(3)
            plan = fp.plan(defended, dataset(8), tried, protocol)
            path = run(tmp_path / "r.sqlite", defended, tried, protocol, dataset(8))
            with ExitStack() as stack:
                (entry,) = open_entries([path], stack)
                assert entry.calls == plan.network_calls
            path.unlink()


def test_what_is_rebuilt_is_what_was_stored():
    from fastpure.purify.description import plain

    for made in (
        attack(eps=8 / 255, batch_size=256),
        fp.attacks.APGDCE(n_iter=3),
        fp.attacks.AutoAttack(version="rand"),
    ):
        assert rebuild_attack(plain(made)) == made
    with pytest.raises(CannotRebuild, match="no attack Magic"):
        rebuild_attack({"name": "Magic", "settings": {}})
    described = describe_defense(defense())
    inner = defense().purifier.denoiser
    assert describe_defense(rebuild_defense(described, inner, defense().classifier)) == described
    for options in ({"seed": 5}, {"precision": "bf16"}, {"gradient_precision": "tf32"}):
        own = fp.Purifier(inner, defense().purifier.method, **options)
        stored = describe_defense(fp.Defense(own, defense().classifier))
        assert stored != described
        assert describe_defense(rebuild_defense(stored, inner, defense().classifier)) == stored
    other = Brightness().eval()
    other.register_buffer("mark", torch.zeros(1))
    with pytest.raises(CannotRebuild, match="not the defence of the run"):
        rebuild_defense(described, inner, other)
    changed = {**described, "method": {**described["method"], "steps": "0" * 64}}
    with pytest.raises(CannotRebuild, match="another step table"):
        rebuild_defense(changed, inner, defense().classifier)
    assert tuple(described["purifier"]["image_shape"]) == SHAPE


@pytest.mark.parametrize(
    "make",
    [
        lambda c: fp.methods.addt("ddim", n_steps=6, strength=0.02),
        lambda c: fp.methods.addt("ddim", n_steps=6, strength=0.02, classifier=c, scale=0.5),
        lambda c: fp.methods.adbm(t=0.02, n_steps=2),
        lambda c: fp.methods.agdm(c, t=0.02, dt=0.01, sampler="sde"),
        lambda c: fp.methods.coup(c, t=0.02, dt=0.01, label="input"),
        lambda c: fp.methods.ddim(t=0.02, n_steps=2),
        lambda c: fp.methods.gdmp(t=0.02, rounds=1),
    ],
)
def test_methods_come_back_from_their_settings(make):
    classifier, purifier = Featured().eval(), defense().purifier
    method = make(classifier)
    described = describe_defense(fp.Defense(purifier.with_method(method), classifier))
    again = rebuild_defense(described, purifier.denoiser, classifier)
    assert again.purifier.method.steps.digest == method.steps.digest
    assert describe_defense(again) == described
    identity = {"defense": described, "attack": None, "data": {}}
    assert network_calls(identity, fp.protocols.fresh(2), 10, 5) == 10 * method.steps.n_network_calls


def test_bundled_networks_are_found_by_themselves(tmp_path):
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    method = fp.methods.coup(classifier, t=0.1, dt=0.05)
    made = fp.Defense(fp.Purifier(denoiser, method, seed=2), classifier)
    data = load_dataset("digits", "test").subset(4)
    path = run(tmp_path / "r.sqlite", made, attack(n_iter=2), data=data)
    with ExitStack() as stack:
        entries = open_entries([path], stack)
        found = find_defense(entries[0].identity["defense"], (), None)
        assert describe_defense(found) == entries[0].identity["defense"]
        values = collect(entries, Options(traced=3))
    assert not values["not_rebuilt"]
    assert [chart.title for chart in values["walks"]] == [
        "Confidence in the most probable class",
        "Confidence in the true class",
        "Images classified right along the reverse process",
    ]
    with pytest.raises(CannotRebuild):
        find_defense({**entries[0].identity["defense"], "denoiser": {}}, (), None)


def test_a_bundled_guide_and_fine_tuned_denoiser_are_found_by_their_weights():
    classifier = fp.load_classifier("digits")
    for method in (
        fp.methods.agdm(fp.load_classifier("digits-aux"), t=0.1, dt=0.05, sampler="sde"),
        fp.methods.adbm(t=0.1, n_steps=2, classifier=classifier, scale=2.0),
    ):
        made = fp.Defense(fp.Purifier(fp.load_denoiser("digits-adbm"), method, precision="bf16"), classifier)
        described = describe_defense(made)
        assert describe_defense(find_defense(described, (), None)) == described
    assert find_defense(describe_defense(fp.load_classifier("digits-aux")), (), None)
    unknown = fp.Denoiser.from_config("ddpmpp-digits")
    described = describe_defense(fp.Defense(fp.Purifier(unknown, method), classifier))
    with pytest.raises(CannotRebuild, match="not the bundled ones"):
        find_defense(described, (), None)


def test_what_an_attack_saw_is_drawn_against_what_it_spent(tmp_path):
    """Two images by hand: the second is not looked at first, the first given up before the end."""
    nan = float("nan")
    courses = [
        Course(*(np.array(row, np.float32) for row in rows), spent)
        for rows, spent in (
            (([1.0, 0.5, nan], [2.0, 4.0, nan]), 4.0),
            (([nan, 0.75, 0.25], [nan, 3.0, 6.0]), 7.0),
            (([nan, nan, nan], [nan, nan, nan]), 0.5),  # wrong from the beginning: not attacked
        )
    ]
    with run_file(None, np.zeros((3, 2)), np.zeros((3, 2)), trace=np.ones((3, 3))).read() as made:
        records = [replace(record, course=c) for record, c in zip(made.records(), courses, strict=True)]
        identity = made.identity
    store = RunStore(tmp_path / "told.sqlite", identity)
    store.write(records, Seconds())
    store.close()
    with ExitStack() as stack:
        (entry,) = open_entries([tmp_path / "told.sqlite"], stack)
        chart, loss = trace_charts([entry])
        per = look_through(defense()).network_calls
        assert entry.calls == round(per * (12 + 2 * 11.5)), "what was done, no bound"
        assert entry.calls_per_gradient == 2 * per
        html = report([entry.run])
    assert (loss.name, chart.name) == ("attack-loss-ce", "attack-accuracy")
    (line,) = chart.series
    assert line.x == pytest.approx([(2 + 0) / 2, (4 + 3) / 2, (4 + 6) / 2])
    assert line.y == pytest.approx([(1 + 0.75) / 2, (0.5 + 0.75) / 2, (0.5 + 0.25) / 2])
    assert (line.low[-1], line.high[-1]) == (wilson(0.75, 2).low, wilson(0.75, 2).high)
    assert line.low[1] != line.low[1]
    assert "2 of 3 images" in chart.caption
    assert f"A gradient is {2 * per} network calls." in chart.caption
    ElementTree.fromstring(svg(chart))
    assert "Accuracy the attack saw" in html
    assert "4 gradients per image" in html
    assert f"{count(entry.calls)} calls" in html
    assert f"≤ {count(entry.calls)} calls" not in html


def test_the_same_loss_of_two_attacks_is_one_chart_and_all_have_one_axis(tmp_path):
    made = {
        "pgd": attack(n_iter=3),
        "apgd": fp.attacks.APGDCE(n_iter=5),
        "margin": attack(n_iter=4, loss="margin"),
    }
    paths = [run(tmp_path / f"{name}.sqlite", defense(), one, data=dataset(4)) for name, one in made.items()]
    with ExitStack() as stack:
        course, *losses = trace_charts(open_entries(paths, stack))
    assert course.name == "attack-accuracy"
    assert {line.name for line in course.series} == set(made), "what they have in common"
    assert [chart.name for chart in losses] == ["attack-loss-ce", "attack-loss-margin"]
    assert [line.name for line in losses[0].series] == ["pgd", "apgd"]
    longest = max(len(line.x) for chart in losses for line in chart.series)
    assert {chart.x_range for chart in losses} == {(1.0, float(longest))}
    assert all(chart.counts for chart in losses)
    names = {kind.__name__ for kind in fp.attacks.ATTACKS.values()}
    assert set(ASCENDED) <= names


def test_clean_accuracy_is_drawn_once_for_each_defence(tmp_path):
    paths = []
    for seed in (0, 1):
        for n in (2, 3):
            for gradient in ("exact", "bpda"):
                path = tmp_path / f"{seed}-{n}-{gradient}.sqlite"
                paths.append(
                    run(path, toy(0.02 * (seed + 1), 2), attack(n_iter=n, gradient=gradient), data=dataset(4))
                )
    with ExitStack() as stack:
        by_name = {sweep.setting: sweep_chart(sweep) for sweep in sweeps(open_entries(paths, stack))}
    lines = [one for one in by_name["n_iter"].series if one.name.startswith("clean")]
    assert len(lines) == 2, "two defences under two attacks each"
    assert len({one.name for one in lines}) == 2
    assert len({one.style for one in lines}) == 2
    assert all(one.hollow for one in lines)
    assert by_name["n_iter"].counts
    (line,) = (one for one in by_name["t"].series if one.name.startswith("clean"))
    assert line.x == (0.02, 0.04)
    assert not by_name["t"].counts


def test_attacks_that_say_nothing_have_no_such_chart(tmp_path):
    run_file(tmp_path / "silent.sqlite", np.zeros((3, 2)), np.zeros((3, 2)), trace=np.ones((3, 3))).close()
    with ExitStack() as stack:
        entries = open_entries([tmp_path / "silent.sqlite"], stack)
        assert [chart.name for chart in trace_charts(entries)] == ["attack-loss-ce"]


def test_attacks_say_what_they_saw_and_how_far_their_draws_agree(files):
    with ExitStack() as stack:
        entries = open_entries(files, stack)
        assert [chart.name for chart in trace_charts(entries)] == ["attack-accuracy", "attack-loss-ce"]
        agreement = entries[1].agreement
        assert agreement is not None
        assert -1 <= agreement <= 1
        assert f"gradients agree: {agreement:.2f}" in report([entry.run for entry in entries])
        assert entries[3].agreement is None


def test_confidence_ends_where_the_decision_is_taken(tmp_path):
    from fastpure.report.figures import walk, walk_charts
    from fastpure.report.pictures import states_of

    made = defense()
    path = run(tmp_path / "r.sqlite", made, attack())
    with ExitStack() as stack:
        (entry,) = open_entries([path], stack)
        found = walk(entry, look_through(made), 5)
        states = states_of(entry, look_through(made), "adversarial", entry.run.positions[:5].tolist())
        guesses = made.classify(states[-1]).argmax(1)
        assert torch.equal(guesses, torch.from_numpy(entry.run.predicted("adversarial")[:5, 0]))
        assert found.times[0] == pytest.approx(0.02)
        assert found.times[-1] == 0.0
        assert len(found.top["clean"]) == len(found.times) == 3, "the diffusion of the input is not drawn"
        last = made.classify(states[-1]).softmax(1)
        assert found.top["adversarial"][-1] == pytest.approx(float(last.amax(1).mean().detach()))
        right = torch.from_numpy(entry.run.correct("adversarial")[:5, 0])
        assert found.right["adversarial"][-1] == int(right.sum())
        chart = walk_charts([found])[-1]
        assert chart.series[0].y[-1] == pytest.approx(float(right.double().mean()))
        assert (chart.series[0].low[-1], chart.series[0].high[-1]) == (
            wilson(int(right.sum()), 5).low,
            wilson(int(right.sum()), 5).high,
        )
        assert "clean" not in walk(entry, look_through(made), 5, clean=False).top


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_images_of_every_kind_are_chosen_in_turn():
    kinds = ["both right"] * 5 + ["caught", "both right", "caused", "caught"]
    assert choose(kinds, 4) == [5, 8, 7, 0]
    assert choose(kinds, 99) == [5, 8, 7, 0, 1, 2, 3, 4, 6]
    assert choose(kinds, 0) == []


def test_words():
    assert value_text("eps", 8 / 255) == "8/255"
    assert value_text("eps", 0.2) == "0.2"
    assert value_text("dt", 8 / 255) == "0.0313725"
    assert [duration(s) for s in (3.21, 150, 3600 * 5 + 1200, 3600 * 60)] == [
        "3.2 s",
        "2 min",
        "5 h 20 min",
        "2 d 12 h",
    ]
    assert [count(n) for n in (12, 12800, 3_400_000, 1_200_000_000)] == [
        "12",
        "12\u202f800",
        "3.4 million",
        "1.2 billion",
    ]
    assert listed([1, 2, 3, 5]) == "1 to 3 and 5"
    assert listed([4]) == "4"
    assert listed([1, 2]) == "1 and 2"
    for made in fp.protocols.PROTOCOLS.values():
        assert explain(made()).endswith(".")
        assert "{" not in explain(made())
