"""A student whose text attends to its last tokens, as a phone's program: pictures too, and the stock runner."""

from __future__ import annotations

import pytest

pytest.importorskip("executorch")

from linmu.export.phone.lowering import LEAST_SHARE  # noqa: E402
from linmu.formats.bundle import open_bundle  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from tests.export.phone.students import one_layer, phone_bundle, unequal_steps  # noqa: E402

WINDOW, SINKS = 5, 2

pytestmark = pytest.mark.slow  # lowering for phones takes a minute


@pytest.fixture(scope="module", params=[("smolvlm", "query_head"), ("qwen2", "kv_head")], ids="-".join)
def place(request, tmp_path_factory):
    """(student, bundle); in one of them query heads share states, too."""
    family, decay = request.param
    root = tmp_path_factory.mktemp(family)
    with pytest.MonkeyPatch.context() as patch:
        student = one_layer(family, root, patch, text_window=WINDOW, text_sinks=SINKS, decay=decay)
    return student, phone_bundle(student, root / "bundle")[0]


def test_it_agrees_with_its_reference_and_the_stock_runner(place):
    student, bundle = place
    manifest = open_bundle(bundle).manifest
    assert {spec.shape[2] for spec in manifest.state if spec.name.endswith((".key", ".value"))} == {WINDOW + SINKS}
    assert all(method["share"] >= LEAST_SHARE for method in manifest.program["methods"].values())
    report = verify(bundle, student=student, steps=3 * WINDOW)
    assert report.ok, report.to_text()
    assert {"rollout", "greedy", "stock", "student"} <= {check.level for check in report.checks}


def test_a_step_stays_next_to_what_the_stock_runner_gets(place):
    assert unequal_steps(place[1], 3 * WINDOW) == []
