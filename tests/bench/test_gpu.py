"""The run on a GPU: its order and limits, on stages that need none."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from bench import gpu
from bench.gpu import ROWS, Stage, run
from bench.rows import append, read


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def stage(name: str, code: str, seconds: float = 20.0, **more: object) -> Stage:
    return Stage(name, seconds, {name: python(code)}, **more)  # type: ignore[arg-type]


def outcomes(out) -> dict[str, str]:
    return {row["stage"]: row["outcome"] for row in read(out / ROWS) if "outcome" in row}


NOTE = (
    "from pathlib import Path; from bench.rows import append; append(Path('{rows}'), dict(figure='{name}'))"
)


def test_stages_run_in_order_and_one_that_fails_loses_only_itself(tmp_path, capfd):
    stages = [
        stage("first", NOTE.replace("{name}", "first")),
        stage("broken", "raise ValueError('this is the traceback')"),
        stage("last", NOTE.replace("{name}", "last")),
    ]
    assert run(stages, tmp_path, 60) == 1
    written = [row.get("figure", row.get("stage")) for row in read(tmp_path / ROWS)]
    assert written == ["first", "first", "broken", "last", "last"]
    assert outcomes(tmp_path) == {"first": "ok", "broken": "failed with 1", "last": "ok"}
    assert "Traceback" in (tmp_path / "broken.log").read_text()
    assert "this is the traceback" in capfd.readouterr().out
    assert run(stages[:1], tmp_path, 60) == 0


def test_a_failed_gate_ends_the_run(tmp_path, capfd):
    stages = [stage("smoke", "raise ValueError('no smoke')", gate=True), stage("after", "pass")]
    assert run(stages, tmp_path, 60) == 1
    assert outcomes(tmp_path) == {"smoke": "failed with 1", "after": "not run: smoke failed"}
    assert "no smoke" in capfd.readouterr().out
    assert not (tmp_path / "after.log").exists()


def test_a_failure_that_does_not_count(tmp_path):
    assert run([stage("memcheck", "raise SystemExit(9)", counts=False)], tmp_path, 20) == 0
    assert outcomes(tmp_path) == {"memcheck": "failed with 9"}


def test_one_that_hangs_is_killed_with_its_children_and_the_next_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    begin = time.monotonic()
    assert run([stage("hanging", code, 10.0), stage("next", "pass", 10.0)], tmp_path, 20) == 1
    assert time.monotonic() - begin < 20
    assert outcomes(tmp_path) == {"hanging": "killed: its time was over", "next": "ok"}
    child = int((tmp_path / "hanging.log").read_text())
    for _ in range(100):  # whoever inherits it has to collect it
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "inherited", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"]
)
def test_all_that_are_stopped_have_the_time_to_say_where_they_were(tmp_path, monkeypatch, request, inherited):
    before = signal.signal(signal.SIGINT, inherited)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(gpu, "GRACE", 60.0)  # a loaded machine may take many seconds to end a process
    slow = python("import time\ntry:\n    time.sleep(600)\nfinally:\n    time.sleep(0.4)\n    print('tidy')")
    assert run([Stage("slow", 22, {"a": slow, "b": slow})], tmp_path, 100) == 1
    assert signal.getsignal(signal.SIGINT) is inherited
    for row in read(tmp_path / ROWS):
        assert row["outcome"] == "stopped: its time was over"
        log = (tmp_path / f"{row['process']}.log").read_text()
        assert "KeyboardInterrupt" in log
        assert "tidy" in log


def test_time_that_a_stage_does_not_need_goes_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    seconds = NOTE.replace("'{name}'", "float('{seconds}')")
    assert run([stage("quick", "pass", 30), stage("long", seconds, 10)], tmp_path, 40) == 0
    (found,) = (row["figure"] for row in read(tmp_path / ROWS) if "figure" in row)
    assert 30 < found < 40  # 10 s were planned, nearly all of the 30 before were left over


def test_processes_of_a_stage_run_side_by_side_and_report_their_tests(tmp_path):
    test = tmp_path / "test_one.py"
    test.write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    meet = (
        "import sys, time; from pathlib import Path; Path('{out}', sys.argv[1]).touch()\n"
        "other = Path('{out}', sys.argv[2]); end = time.monotonic() + 20\n"
        "while not other.exists():\n    assert time.monotonic() < end; time.sleep(0.02)"
    )
    pytest_words = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml={out}/unit.xml",
    )
    both = Stage(
        "tests",
        60,
        {
            "a": (*python(meet), "a", "b"),
            "b": (*python(meet), "b", "a"),
            # Names begin at its root, which otherwise depends on where the checkout lies.
            "unit": (*pytest_words, f"--rootdir={tmp_path}", str(test)),
        },
    )
    assert run([both], tmp_path, 60) == 1
    rows = {row["process"]: row for row in read(tmp_path / ROWS)}
    assert rows["a"]["outcome"] == rows["b"]["outcome"] == "ok"
    assert (rows["unit"]["tests"], rows["unit"]["failures"]) == (2, 1)
    assert rows["unit"]["failed"] == ["test_one::test_bad"]


def test_rows_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / ROWS
    append(path, {"figure": "a"})
    with path.open("ab") as file:
        file.write(b'{"figure": "b", "med')
    assert read(path) == [{"figure": "a"}]
    append(path, {"figure": "c"})
    assert read(path) == [{"figure": "a"}, {"figure": "c"}]


def test_what_make_gpu_runs(monkeypatch):
    found = gpu.stages("python", "abc")
    assert [stage.name for stage in found][:4] == ["environment", "smoke", "headlines", "tests"]
    assert [stage.name for stage in found if stage.gate] == ["smoke"]
    names = [name for stage in found for name in stage.commands]
    assert len(names) == len(set(names))  # their logs
    for stage_ in found:
        for words in stage_.commands.values():
            assert all(word.format(seconds=1, rows="r", out="o") for word in words)
            for word in words:
                path = word.removeprefix("--ignore=")
                if path.startswith("tests/") and not path.endswith("that_fail.py"):
                    assert (gpu.ROOT / path).exists(), path
    memcheck = {stage.name: stage for stage in found}.get("memcheck")
    if memcheck is not None:
        assert found[-1] is memcheck
        assert not memcheck.counts
    assert "abc" in found[0].commands["environment"]


def test_a_stage_that_does_not_exist_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "--stages", "smoke,headline"])
    assert "got headline" in capsys.readouterr().err


def test_the_commit_is_that_of_the_tree():
    if not (gpu.ROOT / ".git").exists():
        pytest.skip("not a checkout")
    commit = gpu.commit_here()
    assert commit is not None
    assert len(commit) == 40
