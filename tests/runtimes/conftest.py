"""Bundles of tiny models and of the demo student, exported once for all tests of sessions."""

from __future__ import annotations

from functools import cache

import pytest

from linmu.demo import student_folder as demo_student
from tests.exports import export_bundle
from tests.folders import student_folder


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory):
    @cache
    def make(family: str, plain: bool = False, **settings):
        root = tmp_path_factory.mktemp(family)
        folder = student_folder(family, root, **settings)
        export_bundle(folder, root / "bundle", plain_ops=plain)
        return root / "bundle"

    return make


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(demo_student(), out)
    return out
