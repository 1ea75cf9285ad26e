"""Presets and one calibration record -> one quantized step form: integers and scales that every target shares."""
