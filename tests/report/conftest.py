from __future__ import annotations

import pytest

from fastpure.report import report
from tests.report.made import runs


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def html(files):
    """A page without networks: nothing bundled fits these runs."""
    return report(files)
