"""One process of lighteval's for the evaluations of these tests: its imports take ten seconds."""

import pytest

from spo_core.evaluate.lighteval.process import lighteval_shared
from tests.flows.conftest import EVALUATION_PYTHON


@pytest.fixture(scope="package", autouse=True)
def lighteval():
    if not EVALUATION_PYTHON.exists():
        yield
        return
    with lighteval_shared(EVALUATION_PYTHON):
        yield
