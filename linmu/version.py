"""The version: a file of its own, so that what writes it into files does not import the public API."""

from __future__ import annotations

__version__ = "0.1.0"
