"""The HTML report: everything that comes from a bundle is text there, and only the plots are markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from linmu.verification.compare import Worst
from linmu.verification.report import LEVELS, Check, Curve, VerifyReport
from linmu.verification.report_html import report_html

HOSTILE = "<script>alert('1')</script>&\""


class Page(HTMLParser):
    def __init__(self, document: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_what_a_bundle_says_is_text():
    first, second = list(LEVELS)[:2]
    checks = (
        Check(first, HOSTILE, HOSTILE, True, note=HOSTILE),
        Check(second, "b", "check of level two", False, Worst(2.0, 1.0, HOSTILE, 3)),
    )
    curves = (Curve(second, HOSTILE, HOSTILE, 1e-3, {1: 1e-5, 2: float("nan")}),)
    page = Page(report_html(VerifyReport(HOSTILE, HOSTILE, (HOSTILE,), checks, curves, HOSTILE)))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 4 + 3 + 1 + 3  # of the report, its first check, its second, the plot
    assert page.tags.count("svg") == 1 and page.tags.count("table") == 2 and page.tags.count("tr") == 4
    assert "does not agree" in page.text and "✕" in page.text


def test_every_level_is_shown_and_no_check_has_another():
    checks = tuple(Check(level, "b", f"a check of {level}", True) for level in reversed(LEVELS))
    page = Page(report_html(VerifyReport("bundle", "golden", ("b",), checks)))
    assert page.tags.count("h2") == page.tags.count("table") == len(LEVELS)
    assert all(f"a check of {level}" in page.text for level in LEVELS)
    with pytest.raises(ValueError, match="'stcok' is none of the levels contract, .*stock"):
        Check("stcok", "b", "misspelt", True)


def test_levels_without_checks_are_left_out():
    page = Page(report_html(VerifyReport("bundle", "golden", ("a", "b"), (Check("contract", "", "files", True),))))
    assert page.tags.count("h2") == 1 and "svg" not in page.tags
    assert "Backends: a, b." in page.text and " agrees with its reference" in page.text
