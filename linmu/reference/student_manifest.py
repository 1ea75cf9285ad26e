"""A student's facts as a manifest has them, and a manifest of the student alone: what players need to place prompts."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from linmu.formats.manifest import Manifest, ModelFacts, state_bytes
from linmu.formats.model_files import read_json_object
from linmu.formats.precision import Precision
from linmu.formats.weights_hash import student_weights_hash
from linmu.layout.rules import PromptRules
from linmu.model.folders import CONVERSION_FILE
from linmu.specs import GraphSpec
from linmu.step.call_specs import manifest_states, prefill_inputs
from linmu.step.form import DecoderForm
from linmu.version import __version__


def model_facts(student: Path, model: PreTrainedModel, form: DecoderForm) -> ModelFacts:
    """What a manifest says about a student's decoder."""
    text = model.config.get_text_config()
    report = student / CONVERSION_FILE
    name = read_json_object(report).get("teacher") if report.is_file() else None
    rules = model._prompt_rules
    return ModelFacts(
        name=str(name or student.resolve().name),
        family=form.family.name,
        hidden_size=form.hidden,
        layers=form.layers,
        heads=form.heads,
        kv_heads=form.kv_heads,
        head_dim=form.head_dim,
        vocab_size=form.vocab,
        parameters=sum(weight.numel() for weight in model.parameters()),
        intermediate_size=text.intermediate_size,
        weights_hash=student_weights_hash(student),
        mmate=form.mmate,
        prompt_rules=PromptRules(form.family.name) if rules is None else rules,
        rope_parameters=dict(text.to_dict()["rope_parameters"]),
    )


def student_manifest(student: Path, model: PreTrainedModel, form: DecoderForm) -> Manifest:
    """A manifest of a student that was not exported: its facts, states, and the inputs of a prefill call."""
    states = manifest_states(form)
    return Manifest(
        created_with={"linmu": __version__},
        model=model_facts(student, model, form),
        target="student",
        backends=("torch",),
        precision=Precision(),
        graphs={"prefill": GraphSpec("", tuple(prefill_inputs(form)), ())},
        state=states,
        state_bytes=state_bytes(states),
    )
