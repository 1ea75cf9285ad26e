"""Bundles of tiny models, exported once for all tests of the server."""

from __future__ import annotations

from tests.runtimes.conftest import bundle_of

__all__ = ["bundle_of"]
