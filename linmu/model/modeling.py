"""The student inside transformers: the teacher's own class with every decoder self-attention replaced."""

from __future__ import annotations

from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import AttentionInterface

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.families import STUDENT_PREFIX, Family, get_family
from linmu.formats.model_files import read_student_config
from linmu.layout import MediaGrid, PromptRules, media_of_batch, prompt_layout, stack_layouts
from linmu.model.attention import ATTENTION_NAME, LAYOUT_ARGUMENT, MMateAttention
from linmu.model.mmate import AttentionSizes
from linmu.model.rotary import use_exact_angles


class LinMUModel:
    """What all students share; mixed in before the teacher's class. `from_pretrained` finds the family by itself."""

    _is_stateful = True  # transformers then refuses assisted decoding, which would have to rewind the state
    linmu_family: Family

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.mmate = MMateConfig.from_json(dict(config.linmu))
        self._prompt_rules = None if self.linmu_family.text_only else PromptRules.from_config(teacher_config(config))
        replace_attention(self, self.mmate, self.linmu_family)
        use_linmu_attention(self)
        use_exact_angles(self.get_decoder(), self.linmu_family)  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Load a student folder; raises InputError when it is none or lacks weights. Arguments as in transformers."""
        if "linmu_family" not in cls.__dict__:
            config = read_student_config(Path(folder))
            return student_class(config["model_type"].removeprefix(STUDENT_PREFIX)).from_pretrained(
                folder, *args, **kwargs
            )
        kwargs.pop("trust_remote_code", None)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        student, info = super().from_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"{folder} lacks weights of the student",
                got=f"no {missing[0]} ({len(missing)} missing)",
                fix="copy the folder again or convert the teacher again",
            )
        return (student, info) if wants_info else student

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, MMateAttention):
            module.seed()

    def forward(self, input_ids: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """The teacher's forward; `linmu_media` (a list of MediaGrid per sample) overrides what the grids tell."""
        media = kwargs.pop("linmu_media", None)
        layout = None
        if input_ids is not None:
            grids = {name: kwargs.get(name) for name in GRID_ARGUMENTS}
            layout = self.layout_tensors(input_ids, kwargs.get("attention_mask"), media, grids)
        elif kwargs.get("inputs_embeds") is None:
            raise InputError("the student got no input_ids", expected="input_ids, or inputs_embeds of text only")
        return super().forward(input_ids, *args, **kwargs, **{LAYOUT_ARGUMENT: layout})  # type: ignore[misc]

    def layout_tensors(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        media: list[tuple[MediaGrid, ...]] | None = None,
        grids: dict[str, Any] | None = None,
    ) -> dict[str, torch.Tensor] | None:
        """Index tensors of a batch of prompts [B,S] (left padding allowed); None when it holds no vision token."""
        rules = self._prompt_rules
        if rules is None or input_ids.shape[1] < 2:
            return None
        ids = input_ids.detach().cpu().numpy()
        vision_ids = [i for i in (rules.image_token_id, rules.video_token_id) if i is not None]
        if not np.isin(ids, vision_ids).any():
            return None
        offsets = [0] * len(ids)
        if attention_mask is not None and attention_mask.ndim == 2:
            padding = attention_mask[:, -ids.shape[1] :] == 0
            if bool((padding[:, 1:] & ~padding[:, :-1]).any()):
                raise InputError(
                    "padding behind or inside a prompt with images",
                    expected="padding on the left",
                    fix='set padding_side="left" in the tokenizer',
                )
            offsets = padding.sum(1).tolist()
        rows = [row[pad:] for row, pad in zip(ids, offsets, strict=True)]
        if media is None:
            media = media_of_batch(rules, rows, *(_numpy((grids or {}).get(name)) for name in GRID_ARGUMENTS))
        media = [media[i * len(media) // len(rows)] for i in range(len(rows))]  # beams share their prompt's media
        frames = self.mmate.max_span_frames
        layouts = [prompt_layout(rules, row, grid, frames) for row, grid in zip(rows, media, strict=True)]
        arrays = stack_layouts(layouts, offsets, ids.shape[1], self.mmate)
        return {name: torch.from_numpy(array).to(input_ids.device) for name, array in arrays.items()}

    def _maybe_prepare_encoder_kwargs_for_generation(self, inputs_tensor, model_kwargs, *args: Any) -> dict[str, Any]:
        """Keep what the grids say: generate() encodes images ahead of the prompt and drops the grids with them."""
        grids, rules = [_numpy(model_kwargs.get(name)) for name in GRID_ARGUMENTS], self._prompt_rules
        if rules is not None and any(grid is not None for grid in grids) and model_kwargs.get("linmu_media") is None:
            ids, mask = inputs_tensor.cpu(), model_kwargs.get("attention_mask")
            keep = torch.ones_like(ids) if mask is None else mask.cpu()
            rows = [row[valid.bool()].numpy() for row, valid in zip(ids, keep, strict=True)]
            model_kwargs["linmu_media"] = media_of_batch(rules, rows, *grids)
        prepare = super()._maybe_prepare_encoder_kwargs_for_generation  # type: ignore[misc]
        return prepare(inputs_tensor, model_kwargs, *args)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        others = {name: value for name, value in model_kwargs.items() if name != "linmu_media"}
        super()._validate_model_kwargs(others)  # type: ignore[misc]

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The teacher's, with `linmu_media` kept for the prompt only."""
        media = kwargs.pop("linmu_media", None)
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        ids = inputs.get("input_ids")
        return inputs | {"linmu_media": media} if media is not None and ids is not None and ids.shape[1] > 1 else inputs


GRID_ARGUMENTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def _numpy(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)


class LinMUForConditionalGeneration(LinMUModel):
    """A student with a vision tower; `from_pretrained(folder)` returns a subclass of the teacher's class too."""


class LinMUForCausalLM(LinMUModel):
    """A text-only student; `from_pretrained(folder)` returns a subclass of the teacher's class too."""


@cache
def student_class(model_type: str) -> type[PreTrainedModel]:
    """The student class of a family, made from the teacher's class; raises InputError for an unknown family."""
    family = get_family(model_type)
    teacher = getattr(transformers, family.model_class)
    base = LinMUForCausalLM if family.text_only else LinMUForConditionalGeneration
    config_class = type(
        "LinMU" + teacher.config_class.__name__,
        (teacher.config_class,),
        {"model_type": STUDENT_PREFIX + model_type, "__module__": __name__},
    )

    @wraps(teacher.forward)  # generate() checks its arguments against this signature
    def forward(self: LinMUModel, *args: Any, **kwargs: Any) -> Any:
        return LinMUModel.forward(self, *args, **kwargs)

    body = {"linmu_family": family, "config_class": config_class, "forward": forward, "__module__": __name__}
    return type("LinMU" + teacher.__name__, (base, teacher), body)


def teacher_config(config: PreTrainedConfig) -> dict[str, Any]:
    """A student's config as its teacher's plain dict (all defaults filled in)."""
    data = config.to_dict()
    data["model_type"] = str(data["model_type"]).removeprefix(STUDENT_PREFIX)
    data.pop("linmu", None)
    return data


def attention_sizes(attention: nn.Module, hidden: int, head_dim: int) -> AttentionSizes:
    """Sizes of a teacher's self-attention, read from its projections."""
    norm = getattr(attention, "q_norm", None)
    return AttentionSizes(
        hidden=hidden,
        heads=attention.q_proj.out_features // head_dim,
        kv_heads=attention.k_proj.out_features // head_dim,
        head_dim=head_dim,
        qkv_bias=attention.q_proj.bias is not None,
        o_bias=attention.o_proj.bias is not None,
        qk_norm=norm is not None,
        qk_norm_eps=norm.variance_epsilon if norm is not None else 1e-6,
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the language decoder of any supported model."""
    return model.get_decoder().layers


def replace_attention(model: nn.Module, mmate: MMateConfig, family: Family) -> None:
    """Put an M-MATE block in the place of every decoder self-attention (uninitialised weights)."""
    for index, layer in enumerate(decoder_layers(model)):
        old = layer.self_attn
        dims = attention_sizes(old, old.q_proj.in_features, old.head_dim)
        if getattr(old, "sliding_window", None):
            raise InputError(
                "the teacher uses sliding-window attention",
                got=f"layer {index}",
                fix="set use_sliding_window to false in its config.json",
            )
        new = MMateAttention(dims, mmate, index, not family.text_only)
        layer.self_attn = new.to(device=old.q_proj.weight.device, dtype=old.q_proj.weight.dtype)


def use_linmu_attention(model: PreTrainedModel) -> None:
    """Let transformers hand blocks the 2-D padding mask instead of building an S x S one."""
    AttentionMaskInterface.register(ATTENTION_NAME, flash_attention_mask)
    AttentionInterface.register(ATTENTION_NAME, AttentionInterface._global_mapping["sdpa"])
    model.get_decoder().config._attn_implementation_internal = ATTENTION_NAME
