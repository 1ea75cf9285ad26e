"""Whole bundles: what every target writes, and the reference vectors in it."""
