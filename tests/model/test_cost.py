"""Cost counted, not timed: prefill is linear in the prompt, a step does not know how long the context is."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from linmu.config import MMateConfig
from linmu.layout import MediaGrid
from tests.layout.prompts import layout_of
from tests.model.blocks import batch_tensors, random_block, random_inputs, tables
from tests.model.students import shared_student


class Memory(TorchDispatchMode):
    """Bytes written by all operators, and of the largest single result."""

    def __init__(self):
        super().__init__()
        self.total, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                size = x.numel() * x.element_size()
                self.total, self.largest = self.total + size, max(self.largest, size)
        return out


def cost(call) -> tuple[int, int, int]:
    """(FLOPs, bytes written, largest tensor) of a call; attention as plain matmuls, which the counter knows."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as flops:
            call()
        with Memory() as memory:
            call()
    return flops.get_total_flops(), memory.total, memory.largest


def assert_doubles(small, large) -> None:
    for low, high in zip(small, large, strict=True):
        assert 0 < low < high <= 2.1 * low


@pytest.mark.parametrize("settings", [{}, {"text_window": 16}, {"decay": "kv_head"}])
@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_prefill_of_text_is_linear_and_a_step_constant(family, settings):
    model, _ = shared_student(family, **settings)
    prefills, steps = [], []
    for length in (192, 384, 768):
        ids = 5 + torch.arange(length)[None] % 200
        prefills.append(cost(lambda ids=ids: model(input_ids=ids, use_cache=False)))
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        one = {"input_ids": ids[:, :1], "past_key_values": cache, "use_cache": True}
        steps.append(cost(lambda one=one: model(**one)))
    assert_doubles(prefills[0], prefills[1])
    assert_doubles(prefills[1], prefills[2])
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("settings", [{}, {"text_window": 8}])
def test_prefill_of_twice_as_many_images_or_frames_costs_twice(settings):
    block = random_block(1, **settings)

    def prefill(*parts):
        layout = layout_of(*parts)
        index = batch_tensors([layout], [0], layout.length, block.mmate)
        u, positions = random_inputs(layout.length), tables(torch.arange(layout.length)[None])
        return cost(lambda: block(u, positions, None, None, index))

    images = [3, (1, 6, 7)] * 4
    assert_doubles(prefill(*images), prefill(*images, *images))
    frames = [(2, 6, 7)] * 4
    assert_doubles(prefill(2, *frames), prefill(2, *frames, *frames))
    assert_doubles(prefill(1, (1, 12, 14)), prefill(1, (1, 24, 14)))


def test_a_long_video_costs_what_its_frames_cost():
    model, _ = shared_student("qwen3_vl", max_span_frames=4)
    rules = model._prompt_rules
    sizes = []
    for frames in (16, 32):
        ids = torch.full((1, frames * 6), rules.video_token_id)
        media = [(MediaGrid("video", ((frames, 2, 3),)),)]
        found = model.layout_tensors(ids, None, media)
        sizes.append({name: value.numel() for name, value in found.items()})
    assert all(sizes[0][name] < sizes[1][name] <= 2.1 * sizes[0][name] for name in sizes[0])
    assert model.mmate == MMateConfig.from_json(model.config.linmu)
