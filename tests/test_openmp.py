"""Who says how threads wait: the command line before torch is loaded, the user before the command line, no import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastpure.openmp import POLICIES, SPINS, choose_policy, policy, user_chose

OURS = {"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": "1"}


def test_a_policy_is_chosen_where_there_is_none():
    environ: dict[str, str] = {"OMP_NUM_THREADS": "2"}
    assert policy(environ) == "the runtime's default"
    choose_policy(environ)
    assert environ == {"OMP_NUM_THREADS": "2", **OURS}
    assert policy(environ).endswith("(set by the command line)")
    assert not user_chose(environ)


@pytest.mark.parametrize("name", POLICIES)
def test_what_the_user_said_stays(name):
    environ = {name: "7"}
    choose_policy(environ)
    assert environ == {name: "7"}
    assert policy(environ) == f"{name}=7 (set by the user)"
    assert user_chose(environ)


def answers(code: str, **environ: str) -> str:
    """What a fresh interpreter prints, in which nobody has said how threads wait."""
    clean = {name: value for name, value in os.environ.items() if name not in POLICIES}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environ}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


LOOK = """
import os, sys
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print({n: os.environ[n] for n in %r if n in os.environ})
            os._exit(0)
sys.meta_path.insert(0, Look())
""" % (POLICIES,)  # noqa: UP031


@pytest.mark.parametrize("module", ["fastpure", "fastpure.cli.main"])
def test_the_command_line_says_it_before_torch_is_loaded(module):
    run = (
        f"import runpy\nsys.argv = ['fastpure', 'doctor']\nrunpy.run_module({module!r}, run_name='__main__')"
    )
    assert answers(LOOK + run) == str(OURS)
    assert answers(LOOK + run, OMP_WAIT_POLICY="passive") == str({"OMP_WAIT_POLICY": "passive"})


@pytest.mark.parametrize(
    "line",
    [
        "import fastpure",
        "import fastpure as fp; fp.Purifier, fp.evaluate, fp.attacks",
        "import fastpure.cli.main",
    ],
)
def test_an_import_says_nothing(line):
    told = "print({n: os.environ[n] for n in %r if n in os.environ})" % (POLICIES,)  # noqa: UP031
    assert answers(f"import os\n{line}\n{told}") == "{}"


@pytest.mark.parametrize("module", ["fastpure", "fastpure.cli.main", "fastpure.openmp"])
def test_an_import_does_not_load_torch(module):
    assert answers(f"import sys, {module}\nprint('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "first", ["", "import sklearn.utils._openmp_helpers as h; h._openmp_effective_n_threads()\n"]
)
def test_the_runtime_is_the_one_that_torch_computes_with(first):
    """Not one that another package brought under the same name."""
    code = (
        f"{first}import torch\nfrom fastpure.openmp import gnu_runtime\n"
        "runtime, before = gnu_runtime(), torch.get_num_threads()\n"
        "if runtime is not None:\n    runtime.omp_set_num_threads(before + 3)\n"
        "print(runtime is None or torch.get_num_threads() == before + 3)"
    )
    assert answers(code) == "True"
