"""Teacher -> student, in place: three passes of the teacher over probe prompts seed every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.config import MMateConfig, converted_with
from linmu.conversion.decoder_rules import require_decoder
from linmu.conversion.layer_call import LayerCall
from linmu.conversion.seeding import BlockSeeding, LayerReport, inherit
from linmu.conversion.structure_probe import check_student
from linmu.conversion.teacher_record import record_teacher
from linmu.families import Family, get_family
from linmu.layout import PromptRules
from linmu.model.attention import MMateAttention, last_valid
from linmu.model.modeling import (
    LinMUModel,
    attention_sizes,
    decoder_layers,
    student_class,
    teacher_config,
    use_linmu_attention,
)
from linmu.model.rotary import use_exact_angles


@dataclass(frozen=True)
class ConversionReport:
    """What conversion measured: per layer with the teacher's inputs, and the whole student running on its own."""

    layers: tuple[LayerReport, ...]
    hidden_nmse: tuple[float, ...]  # after every layer, the student fed by its own layers
    token_agreement: float  # share of probe positions where the most likely token is the teacher's
    probe_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "probe_tokens": self.probe_tokens,
            "token_agreement": self.token_agreement,
            "layers": [
                asdict(layer) | {"hidden_nmse": h} for layer, h in zip(self.layers, self.hidden_nmse, strict=True)
            ],
        }


@dataclass
class Reference:
    """What the teacher said: hidden states of the first prompt, the likeliest tokens of all."""

    hidden: tuple[Tensor, ...] = ()
    tokens: list[Tensor] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether no prompt was read yet."""
        return not self.tokens

    def add(self, output: Any) -> None:
        """One prompt's output."""
        self.hidden = self.hidden or output.hidden_states
        self.tokens.append(output.logits.argmax(-1))


def convert(
    teacher: PreTrainedModel,
    mmate: MMateConfig | None = None,
    probe: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreTrainedModel:
    """Turn a teacher into its student, in place: weights are moved, not copied, and the teacher is used up.

    mmate: None stands for `linmu.config.converted_with({})`, with a text window.
    probe: keyword arguments of the teacher's forward (input_ids, pixel_values, …), of one prompt or several, on which
    initial values are measured; default: random tokens. progress(done, total) counts passes of the teacher. The
    result's `.conversion_report` holds what was measured.
    Raises InputError for an unsupported family, or a decoder of which a student would drop something.
    """
    mmate = mmate or converted_with({})
    family = get_family(teacher.config.model_type)
    teacher.eval()
    require_decoder(teacher)
    record = record_teacher(teacher, family)
    prompts = [probe] if isinstance(probe, dict) else list(probe or [_random_probe(teacher, 64 + mmate.text_slots)])
    layouts = [_probe_layout(teacher, family, mmate, prompt) for prompt in prompts]
    reference, reports = _seed_layers(teacher, family, mmate, list(zip(prompts, layouts, strict=True)), progress)
    student = _become_student(teacher, family, mmate)
    check_student(student, record)
    student.conversion_report = _compare(student, prompts, reference, reports)
    return student


def _random_probe(teacher: PreTrainedModel, tokens: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    vocab = teacher.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocab, (1, tokens), generator=generator)
    special = [getattr(teacher.config, f"{name}_token_id", None) for name in ("image", "video")]
    for token in special:
        ids[ids == token] = 0 if token != 0 else 1
    return {"input_ids": ids.to(teacher.device)}


def _probe_layout(teacher: PreTrainedModel, family: Family, mmate: MMateConfig, probe: dict[str, Any]):
    if family.text_only:
        return None
    shell = object.__new__(student_class(family.name))
    nn.Module.__init__(shell)
    shell.mmate, shell._prompt_rules = mmate, PromptRules.from_config(teacher_config(teacher.config))
    return LinMUModel.layout_tensors(
        shell, probe["input_ids"], probe.get("attention_mask"), probe.get("linmu_media"), probe
    )


@torch.no_grad()
def _seed_layers(teacher, family, mmate, probes, progress) -> tuple[Reference, list[LayerReport]]:
    """Run the teacher twice over all prompts: for what its heads do, for the distance; then replace its attentions.

    Nothing of a prompt is kept but sums: memory does not grow with their number.
    """
    layers = decoder_layers(teacher)
    seedings: list[BlockSeeding] = []
    for index, layer in enumerate(layers):
        hidden = layer.self_attn.q_proj.in_features
        sizes = attention_sizes(layer.self_attn, hidden, layer.self_attn.head_dim)
        with torch.device("meta"):
            block = MMateAttention(sizes, mmate, index, not family.text_only)
        inherit(block, layer.self_attn)
        seedings.append(BlockSeeding(block.eval()))
    done, reference = 0, Reference()
    for turn in ("look", "judge"):
        visits = [getattr(seeding, turn) for seeding in seedings]
        for prompt, layout in probes:
            output = _visited(teacher, prompt, layout, visits, reference.empty)
            if turn == "look":
                reference.add(output)
            done += 1
            if progress is not None:
                progress(done, 2 * len(probes))
        if turn == "look":
            for seeding in seedings:
                seeding.start()
    for layer, seeding in zip(layers, seedings, strict=True):
        layer.self_attn = seeding.block
    return reference, [seeding.settle() for seeding in seedings]


def _visited(teacher, prompt, layout, visits, with_hidden: bool):
    """The teacher's output for one prompt, while every attention's call is shown to its visit(call, layout)."""
    heads_out: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for index, (layer, visit) in enumerate(zip(decoder_layers(teacher), visits, strict=True)):

            def on_heads(_: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
                heads_out.setdefault(index, args[0])

            def on_attention(_: nn.Module, __: tuple, kwargs: dict, output: tuple, index: int = index, visit=visit):
                u, valid = kwargs["hidden_states"], last_valid(prompt.get("attention_mask"), output[0].shape[1])
                heads = heads_out[index]
                visit(LayerCall(u, kwargs["position_embeddings"], heads, output[0], valid), layout)
                heads_out[index] = heads[:0]  # the block's own W_O is the same module: its calls are not the teacher's

            for handle in (
                layer.self_attn.o_proj.register_forward_pre_hook(on_heads),
                layer.self_attn.register_forward_hook(on_attention, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        arguments = {name: value for name, value in prompt.items() if name != "linmu_media"}
        return teacher(**arguments, output_hidden_states=with_hidden, use_cache=False)


def _become_student(teacher: PreTrainedModel, family: Family, mmate: MMateConfig) -> PreTrainedModel:
    cls = student_class(family.name)
    rules = None if family.text_only else PromptRules.from_config(teacher_config(teacher.config))
    teacher.__class__ = cls
    teacher.config.__class__ = cls.config_class
    teacher.config.linmu = mmate.to_json()
    teacher.mmate, teacher._prompt_rules = mmate, rules
    use_linmu_attention(teacher)
    use_exact_angles(teacher.get_decoder(), family)
    return teacher


@torch.no_grad()
def _compare(student, prompts, reference: Reference, reports) -> ConversionReport:
    """Hidden states of the first prompt, likeliest tokens of all."""
    equal = tokens = 0
    hidden: tuple[float, ...] = ()
    for number, (prompt, expected) in enumerate(zip(prompts, reference.tokens, strict=True)):
        output = student(**prompt, output_hidden_states=number == 0, use_cache=False)
        if number == 0:
            pairs = zip(output.hidden_states[1:], reference.hidden[1:], strict=True)
            hidden = tuple(float((s.float() - t.float()).square().sum() / t.float().square().sum()) for s, t in pairs)
        equal += int((output.logits.argmax(-1) == expected).sum())
        tokens += expected.numel()
    return ConversionReport(tuple(reports), hidden, equal / tokens, tokens)
