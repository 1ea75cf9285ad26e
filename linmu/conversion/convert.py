"""Teacher -> student, in place: one forward pass of the teacher on a probe prompt seeds every block on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.config import MMateConfig
from linmu.conversion.decoder_rules import require_decoder
from linmu.conversion.seeding import LayerReport, choose_scales, inherit
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
                vars(layer) | {"hidden_nmse": h} for layer, h in zip(self.layers, self.hidden_nmse, strict=True)
            ],
        }


def convert(
    teacher: PreTrainedModel,
    mmate: MMateConfig | None = None,
    probe: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreTrainedModel:
    """Turn a teacher into its student, in place: weights are moved, not copied, and the teacher is used up.

    probe: keyword arguments of the teacher's forward (input_ids, pixel_values, …) on which initial scales are chosen;
    default: random tokens. The result's `.conversion_report` holds what was measured.
    Raises InputError for an unsupported family, or a decoder of which a student would drop something.
    """
    mmate = mmate or MMateConfig()
    family = get_family(teacher.config.model_type)
    teacher.eval()
    require_decoder(teacher)
    record = record_teacher(teacher, family)
    probe = probe if probe is not None else _random_probe(teacher)
    layout = _probe_layout(teacher, family, mmate, probe)
    reference, reports = _seed_layers(teacher, family, mmate, layout, probe, progress)
    student = _become_student(teacher, family, mmate)
    check_student(student, record)
    student.conversion_report = _compare(student, probe, reference, reports)
    return student


def _random_probe(teacher: PreTrainedModel) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    vocab = teacher.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocab, (1, 64), generator=generator)
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
def _seed_layers(teacher, family, mmate, layout, probe, progress) -> tuple[dict[str, Any], list[LayerReport]]:
    """Run the teacher once; each attention is replaced as soon as it has done its work."""
    layers = decoder_layers(teacher)
    reports: list[LayerReport] = []
    blocks: list[MMateAttention] = []
    heads_out: dict[int, Tensor] = {}
    handles = []

    def on_heads(index: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            heads_out[index] = args[0]

        return hook

    def on_attention(index: int):
        def hook(attention: nn.Module, _: tuple, kwargs: dict[str, Any], output: tuple[Tensor, Any]) -> None:
            u = kwargs["hidden_states"]
            dims = attention_sizes(attention, u.shape[-1], attention.head_dim)
            with torch.device("meta"):
                block = MMateAttention(dims, mmate, index, not family.text_only)
            inherit(block, attention)
            valid = last_valid(probe.get("attention_mask"), u.shape[1])
            reports.append(
                choose_scales(block, u, kwargs["position_embeddings"], heads_out.pop(index), output[0], valid, layout)
            )
            blocks.append(block.eval())
            if progress is not None:
                progress(index + 1, len(layers))

        return hook

    for index, layer in enumerate(layers):
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(on_heads(index)))
        handles.append(layer.self_attn.register_forward_hook(on_attention(index), with_kwargs=True))
    arguments = {name: value for name, value in probe.items() if name != "linmu_media"}
    output = teacher(**arguments, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, block in zip(layers, blocks, strict=True):
        layer.self_attn = block
    return {"hidden": output.hidden_states, "tokens": output.logits.argmax(-1)}, reports


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
def _compare(student, probe, reference, reports) -> ConversionReport:
    output = student(**probe, output_hidden_states=True, use_cache=False)
    pairs = zip(output.hidden_states[1:], reference["hidden"][1:], strict=True)
    nmse = tuple(float((s.float() - t.float()).square().sum() / t.float().square().sum()) for s, t in pairs)
    agreement = float((output.logits.argmax(-1) == reference["tokens"]).float().mean())
    return ConversionReport(tuple(reports), nmse, agreement, int(probe["input_ids"].numel()))
