"""No private or preshared key that any test has used is found anywhere."""

import os
from pathlib import Path

import pytest

from support import leaks
from support.leaks import SESSION
from support.stage import Stage

pytestmark = pytest.mark.last


def test_no_key_of_the_suite_is_anywhere(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inputs = (tmp_path_factory.getbasetemp(), Path(os.environ["WG4NETNSD_STAGE"]))
    assert SESSION.needles.count >= 2 * len(stage.clients)
    assert SESSION.needles.search(leaks.everywhere(SESSION, inputs)) == []
