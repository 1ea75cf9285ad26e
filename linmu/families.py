"""What differs between model families: one literal table, read by conversion, layout, export and devices (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from linmu.errors import InputError

STUDENT_PREFIX = "linmu_"  # of a student's `model_type`, in front of its teacher's


@dataclass(frozen=True)
class Family:
    """Facts of one `model_type`.

    `rope`: "plain", "mrope" (contiguous sections) or "mrope_interleaved".
    `vision`: "none", "grid" (any image size, Qwen) or "tiles" (square tiles of a fixed number of tokens).
    """

    name: str
    model_class: str
    rope: str = "plain"
    vision: str = "none"
    deepstack: bool = False

    @property
    def text_only(self) -> bool:
        """Whether the family has no vision tower."""
        return self.vision == "none"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", rope="mrope", vision="grid"),
        Family("qwen3_vl", "Qwen3VLForConditionalGeneration", rope="mrope_interleaved", vision="grid", deepstack=True),
        Family("smolvlm", "SmolVLMForConditionalGeneration", vision="tiles"),
        Family("idefics3", "Idefics3ForConditionalGeneration", vision="tiles"),
        Family("internvl", "InternVLForConditionalGeneration", vision="tiles"),
        Family("llava", "LlavaForConditionalGeneration", vision="tiles"),
        Family("llama", "LlamaForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM"),
        Family("qwen3", "Qwen3ForCausalLM"),
    )
}


def get_family(model_type: str) -> Family:
    """The family of a `model_type`; raises InputError that names every supported one."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"model family {model_type!r} is not supported",
            expected="one of " + ", ".join(sorted(FAMILIES)),
            fix="convert a model of one of these families",
        )
    return FAMILIES[model_type]
