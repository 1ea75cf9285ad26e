"""Verification beside the student: every rounding of a target followed, logits and states compared step by step."""
