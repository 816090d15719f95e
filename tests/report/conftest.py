from __future__ import annotations

import pytest

from fastpure.report import Options, report, write_figures
from tests.evaluate.toys import attack, defense
from tests.report.made import run, runs


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def html(files):
    """A page without networks: nothing bundled fits these runs."""
    return report(files)


@pytest.fixture(scope="session")
def swept(tmp_path_factory, files):
    """Two runs over the attack's iterations, and one under the other attack of the page; all with one defence."""
    folder = tmp_path_factory.mktemp("swept")
    more = run(folder / "coup=longer.sqlite", defense(), attack(eps=0.1, n_iter=14))
    return [files[1], files[2], more]


@pytest.fixture(scope="session")
def written(swept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "new" / "folder"
    return write_figures(swept, folder, defense=defense(), options=Options(images=5, traced=6))
