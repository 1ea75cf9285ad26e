"""Gradients reach every new parameter, with checkpointing too; the layout follows each batch; padding."""

from __future__ import annotations

import pytest
import torch

from linmu.errors import InputError
from tests.model.students import fresh_student, new_parameters, shared_student
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

SETTINGS = {"skip": True, "text_window": 3}


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    """Of the new parameters, from the loss on the prompt itself."""
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    return {name: value.grad.clone() for name, value in new_parameters(model).items() if value.grad is not None}


@pytest.mark.parametrize(
    ("family", "rule"),
    [*((name, "gated") for name in FAMILY_NAMES), ("smolvlm", "gated_delta"), ("qwen2", "gated_delta")],
)
def test_every_new_parameter_learns_with_and_without_checkpointing(family, rule):
    model, tokenizer = fresh_student(family, **SETTINGS, rule=rule)
    inputs = tiny_inputs(family, model, tokenizer, "two_images" if family in VISION_NAMES else "text")
    model.train()
    plain = gradients(model, inputs)
    assert plain.keys() == new_parameters(model).keys()
    for name, value in plain.items():
        assert value.isfinite().all() and value.any(), name
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):
        model.gradient_checkpointing_enable()
    again = gradients(model, inputs)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", VISION_NAMES)
def test_checkpointing_recomputes_a_prompt_with_its_own_layout(family):
    model, tokenizer = fresh_student(family, **SETTINGS)
    two, one, text = (tiny_inputs(family, model, tokenizer, kind) for kind in ("two_images", "image", "text"))
    model.train()
    expected = gradients(model, two)
    model.activation_checkpointing_enable()
    for other in (one, text):
        model.zero_grad()
        loss = model(**two, labels=two["input_ids"], use_cache=False).loss
        model(**other, use_cache=False)  # a second forward pass before the first one's backward pass
        loss.backward()
        for name, value in new_parameters(model).items():
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", VISION_NAMES)
def test_a_decoder_by_itself_is_refused(family):
    model, tokenizer = shared_student(family)
    text = tiny_inputs(family, model, tokenizer, "text")
    with pytest.raises(InputError, match="no layout of the prompt.*call the whole student"):
        model.get_decoder()(input_ids=text["input_ids"])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_the_layout_of_one_prompt_does_not_stay_for_the_next(family):
    model, tokenizer = shared_student(family)
    text, image = (tiny_inputs(family, model, tokenizer, kind) for kind in ("text", "image"))
    with torch.inference_mode():
        first = model(**text).logits
        embedded = model.get_input_embeddings()(text["input_ids"])
        model(**image)
        assert torch.equal(model(**text).logits, first)
        model(**image)
        again = model(inputs_embeds=embedded, attention_mask=text["attention_mask"]).logits
    torch.testing.assert_close(again, first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", VISION_NAMES)
@pytest.mark.parametrize("hole", [-1, 2])
def test_padding_that_is_not_on_the_left_is_refused(family, hole):
    model, tokenizer = shared_student(family)
    inputs = tiny_inputs(family, model, tokenizer, "image")
    inputs["attention_mask"][0, hole] = 0
    with pytest.raises(InputError, match="padding on the left; fix: set padding_side") as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_right_padded_text_is_the_text(family):
    model, tokenizer = shared_student(family)
    inputs = tiny_inputs(family, model, tokenizer, "text")
    length = inputs["input_ids"].shape[1]
    padded = {name: torch.nn.functional.pad(x, (0, 4)) for name, x in inputs.items()}
    with torch.inference_mode():
        torch.testing.assert_close(model(**padded).logits[:, :length], model(**inputs).logits, rtol=0, atol=1e-5)


def test_neither_ids_nor_embeddings():
    model, _ = shared_student("llama")
    with pytest.raises(InputError, match="no input_ids"):
        model()
