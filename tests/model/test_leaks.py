"""Who sees whom in whole students, from every token perturbed in turn on its way into the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linmu.layout import media_from_grids, prompt_layout
from linmu.model.modeling import decoder_layers
from tests.model.students import prompt_of

CASES = [("qwen3_vl", "video"), ("qwen3_vl", "two_images"), ("qwen2_5_vl", "two_images"), ("llava", "two_images")]
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def layout_of_inputs(model, inputs):
    rules = model._prompt_rules
    grids = [inputs[name].tolist() if torch.is_tensor(inputs.get(name)) else inputs.get(name) for name in GRIDS]
    media = media_from_grids(rules, inputs["input_ids"][0].numpy(), *grids)
    return media, prompt_layout(rules, inputs["input_ids"][0].numpy(), media, model.mmate.max_span_frames)


def dependence(model, inputs) -> np.ndarray:
    """[S,S]: how much the last layer's output i changes with the decoder's input j."""
    media, layout = layout_of_inputs(model, inputs)
    layers, seen = decoder_layers(model), {}

    def remember(_, args, kwargs):
        seen.setdefault("first", (args[0], kwargs))

    with torch.inference_mode():
        handle = layers[0].register_forward_pre_hook(remember, with_kwargs=True)
        model(**inputs, use_cache=False)
        handle.remove()
        hidden, kwargs = seen["first"]
        length = layout.length
        rows = hidden.repeat(length + 1, 1, 1)
        rows[torch.arange(length), torch.arange(length)] += torch.randn(
            hidden.shape[1:], generator=torch.Generator().manual_seed(0)
        )
        ids = inputs["input_ids"].repeat(length + 1, 1)
        kwargs = {
            **kwargs,
            "linmu_layout": model.layout_tensors(ids, None, [media] * (length + 1)),
            "position_embeddings": tuple(t.repeat(length + 1, 1, 1) for t in kwargs["position_embeddings"]),
        }
        for layer in layers:
            rows = layer(rows, **kwargs)
    return (rows[:-1] - rows[-1]).abs().amax(-1).T.numpy()


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_no_token_sees_the_future_outside_its_span(family, kind):
    model, _, inputs = prompt_of(family, kind)
    found = dependence(model, inputs)
    _, layout = layout_of_inputs(model, inputs)
    allowed = np.tril(np.ones_like(found, dtype=bool))
    for span in layout.spans:
        first, last = span.positions[0], span.positions[-1]
        assert found[first, last] > 1e-4  # bidirectional
        allowed[first : last + 1, first : last + 1] = True
    assert len(layout.spans) == (2 if kind == "two_images" else 1)
    assert found[~allowed].max() < 1e-5 < 1e-4 < np.median(found[allowed])


def test_timestamps_between_frames_learn_of_later_frames():
    model, _, inputs = prompt_of("qwen3_vl", "video")
    (span,) = layout_of_inputs(model, inputs)[1].spans
    inside = sorted(set(range(span.positions[0], span.positions[-1])) - set(span.positions.tolist()))
    assert inside and dependence(model, inputs)[inside[0], span.positions[-1]] > 1e-4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_dinov2"])
def test_a_later_image_changes_no_logit_before_it(family):
    model, _, both = prompt_of(family, "two_images")
    start = int(layout_of_inputs(model, both)[1].spans[1].positions[0])
    one = {name: x[:, :start] if x.shape[:2] == both["input_ids"].shape else x[:1] for name, x in both.items()}
    if "image_grid_thw" in both:
        one["pixel_values"] = both["pixel_values"][: int(both["image_grid_thw"][0].prod())]
    with torch.inference_mode():
        expected, found = model(**one).logits, model(**both).logits[:, :start]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
