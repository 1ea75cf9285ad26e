"""Servers of tiny bundles, one a family for all tests that do not need their own settings."""

from __future__ import annotations

import pytest

from linmu.serving.request import Limits
from tests.runtimes.conftest import bundle_of
from tests.serving.api.servers import served

__all__ = ["bundle_of"]


@pytest.fixture(scope="session")
def vision(bundle_of):
    with served(bundle_of("smolvlm"), Limits(max_sessions=4)) as server:
        yield server


@pytest.fixture(scope="session")
def text(bundle_of):
    with served(bundle_of("llama"), Limits(max_sessions=4)) as server:
        yield server
