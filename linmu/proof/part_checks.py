"""The checks of what the paths' logits and states hardly show: vision features, and every position of the prompt."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from linmu.model.hf_inputs import hf_inputs
from linmu.proof.student_reference import Reference
from linmu.runtimes.base import Runner
from linmu.verification.compare import Meter, Tolerance, logits_error, logits_noise
from linmu.verification.hidden import hidden_runner, hidden_states, whole_prompt
from linmu.verification.levels import guarded
from linmu.verification.report import Check, metered

EVERY = "every position of the prompt"
VISION = "student's tower -> vision graph"


def vision_check(reference: Reference, runner: Runner, base: Tolerance) -> Check:
    """The vision graph on the prompt's own pixels against the student's tower."""
    return guarded("bisect", runner.backend, VISION, partial(_vision, reference, runner, base))


def positions_check(reference: Reference, runner: Runner, base: Tolerance) -> Check:
    """Hidden states of every position of the prompt: the step form's against the student's, the backend's against both.

    Logits of the last token and states hardly show what becomes of vision tokens in the last layers. The backend gets
    the step form's own vision features: what towers differ by would hide more than the decoder's own noise does.
    """
    return guarded("student", runner.backend, EVERY, partial(_positions, reference, runner, base))


def _vision(reference: Reference, runner: Runner, base: Tolerance) -> Check:
    meter = Meter()
    for number, call in enumerate(reference.inputs.vision_calls):
        wanted, features = reference.runner.encode(call), runner.encode(call)
        for name in ("embeddings", "deepstack"):
            expected, got = getattr(wanted, name), getattr(features, name)
            if expected is None:
                continue
            limit = base
            if quantum := reference.runner.vision_quantum:
                twin = getattr(reference.twin.encode(call), name)
                limit = base.widened((logits_noise(expected, twin, quantum), 0.0))
            got = np.zeros(0, np.float32) if got is None else got
            meter.add(logits_error(got, expected, limit, name=f"{name} of call {number}"))
    return metered("bisect", runner.backend, VISION, meter)


@torch.no_grad()
def _positions(reference: Reference, runner: Runner, base: Tolerance) -> Check:
    manifest, meter, quantum = reference.bundle.manifest, Meter(), reference.runner.quantum
    prompt, twin_prompt = (whole_prompt(it, reference.inputs, manifest) for it in (reference.runner, reference.twin))
    eager = hidden_states(reference.runner, prompt)
    twin, twin_with_features = (hidden_states(reference.twin, pieces) for pieces in (prompt, twin_prompt))
    if not reference.runner.lossy:
        arguments = hf_inputs(reference.inputs, reference.student._prompt_rules)
        output = reference.student(**arguments, output_hidden_states=True, use_cache=False)
        limit = base.widened((logits_noise(eager, twin_with_features, quantum), 0.0))
        wanted = output.hidden_states[-1][0].float().numpy()
        meter.add(logits_error(eager, wanted, limit, name="hidden states of the step form"))
    with hidden_runner(reference.bundle, runner) as shown:
        if shown is not None:
            limit = base.widened((logits_noise(eager, twin, quantum), 0.0))
            meter.add(logits_error(hidden_states(shown, prompt), eager, limit, name="hidden states"))
        note = "" if shown is not None else "this backend shows none"
    return (
        metered("student", runner.backend, EVERY, meter, note)
        if meter.worst
        else Check("student", runner.backend, EVERY, True, note=note)
    )
