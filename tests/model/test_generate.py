"""generate() of every family: with and without the cache, beams, sampling, batches, streaming, constant state."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from linmu.model.cache import LinMULayer, state_bytes
from tests.model.students import cases, left_padded, prompt_of
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

CASES = cases()


def steady(model, tokens: int) -> dict:
    """Arguments of a generation that never ends early and never makes up an image token (random models may)."""
    rules = model._prompt_rules
    vision = [token for token in (rules.image_token_id, rules.video_token_id) if token is not None] if rules else []
    return {
        "suppress_tokens": vision or None,
        "do_sample": False,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
    }


def run(model, inputs, tokens: int = 6, **options):
    """New token ids of a steady generation."""
    with torch.inference_mode():
        return model.generate(**inputs, **{**steady(model, tokens), **options})[:, inputs["input_ids"].shape[1] :]


def prefill(model, inputs, cache=None):
    with torch.inference_mode():
        return model(**inputs, past_key_values=cache, use_cache=cache is not None).logits


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_cached_and_uncached_greedy_agree(family, kind):
    model, _, inputs = prompt_of(family, kind)
    found = run(model, inputs)
    assert found.shape == (1, 6)
    assert torch.equal(found, run(model, inputs, use_cache=False))


@pytest.mark.parametrize(
    "settings", [{"text_window": 4}, {"rule": "gated_delta"}, {"decay": "kv_head", "skip": True, "taps": 3}]
)
@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "qwen2"])
def test_cached_and_uncached_greedy_agree_with_other_settings(family, settings):
    model, _, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text", **settings)
    assert torch.equal(run(model, inputs), run(model, inputs, use_cache=False))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_logits_of_every_step_are_those_of_a_longer_prompt(family, kind):
    model, _, inputs = prompt_of(family, kind)
    with torch.inference_mode():
        out = model.generate(**inputs, **steady(model, 5), output_logits=True, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    grown = dict(inputs, input_ids=out.sequences, attention_mask=torch.ones_like(out.sequences))
    if "mm_token_type_ids" in grown:
        kinds = grown["mm_token_type_ids"]
        grown["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, 5)], 1)
    logits = prefill(model, grown)[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_sampling_repeats_with_its_seed(family):
    model, _, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(run(model, inputs, 12, do_sample=True, temperature=2.0).tolist())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_beams_agree_without_the_cache(family, kind):
    model, _, inputs = prompt_of(family, kind)
    cached = run(model, inputs, 5, num_beams=3, num_return_sequences=2)
    assert cached.shape[0] == 2
    assert torch.equal(cached, run(model, inputs, 5, num_beams=3, num_return_sequences=2, use_cache=False))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_left_padded_batch_is_its_rows(family):
    model, tokenizer, long = prompt_of(family, "image" if family in VISION_NAMES else "text")
    short = tokenizer(["Why"], return_tensors="pt", return_token_type_ids=False)
    rows = [long["input_ids"], short["input_ids"]]
    ids, mask = left_padded(rows)
    batch = dict(long, input_ids=ids, attention_mask=mask)
    if "mm_token_type_ids" in long:
        batch["mm_token_type_ids"] = left_padded([long["mm_token_type_ids"], torch.zeros_like(rows[1])])[0]
    found, logits = run(model, batch), prefill(model, batch)
    for number, alone in enumerate((long, dict(short))):
        assert torch.equal(found[number], run(model, alone)[0])
        expected = prefill(model, alone)[0]
        torch.testing.assert_close(logits[number, -len(expected) :], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", VISION_NAMES)
def test_a_padded_batch_of_two_prompts_with_images(family):
    model, tokenizer, first = prompt_of(family, "image")
    second = tiny_inputs(family, model, tokenizer, "two_images")
    ids, mask = left_padded([first["input_ids"], second["input_ids"]])
    batch = {"input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in first:
        batch["mm_token_type_ids"] = left_padded([first["mm_token_type_ids"], second["mm_token_type_ids"]])[0]
    for name in set(first) - set(batch):
        one, two = first[name], second[name]
        if name in ("pixel_values", "pixel_attention_mask") and family in ("smolvlm", "idefics3"):
            tiles = max(one.shape[1], two.shape[1])
            one, two = (torch.cat([x, x.new_zeros(1, tiles - x.shape[1], *x.shape[2:])], 1) for x in (one, two))
        batch[name] = torch.cat([one, two])
    found = run(model, batch)
    for number, alone in enumerate((first, second)):
        assert torch.equal(found[number], run(model, alone)[0])


class Recorder(BaseStreamer):
    """Collects what generate() streams."""

    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, value):
        self.ids += value.reshape(-1).tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "llama"])
def test_streaming_gives_every_token_once(family):
    model, _, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text")
    streamer = Recorder()
    found = run(model, inputs, streamer=streamer)
    assert streamer.ended and streamer.ids == inputs["input_ids"][0].tolist() + found[0].tolist()


@pytest.mark.parametrize("settings", [{}, {"text_window": 8}, {"decay": "kv_head", "rule": "gated_delta"}])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "qwen3"])
def test_the_state_does_not_grow(family, settings):
    model, _, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text", **settings)
    sizes = []
    for tokens in (10, 100):
        cache = DynamicCache(config=model.config)
        run(model, inputs, tokens, past_key_values=cache)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] + tokens - 1
        assert all(isinstance(layer, LinMULayer) for layer in cache.layers)
        sizes.append(state_bytes(cache))
    block = model.get_decoder().layers[0].self_attn
    heads, groups, dim = block.dims.heads, block.dims.kv_heads, block.dims.head_dim
    owners = groups if settings.get("decay") == "kv_head" else heads
    window = settings.get("text_window", 0)
    numbers = owners * dim * dim + (heads + 2 * groups) * dim * 3 + 2 * groups * window * dim
    assert sizes == [len(model.get_decoder().layers) * (4 * numbers + window)] * 2


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_conversation_goes_on_from_its_cache(family):
    model, tokenizer, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text")
    cache = DynamicCache(config=model.config)
    first = run(model, inputs, 4, past_key_values=cache)
    more = tokenizer(["And then?"], return_tensors="pt", return_token_type_ids=False)["input_ids"]
    whole = torch.cat([inputs["input_ids"], first, more], 1)
    known = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    continued = run(model, known, 5, past_key_values=cache)
    fresh = dict(inputs, **known)
    if "mm_token_type_ids" in fresh:
        kinds = fresh["mm_token_type_ids"]
        fresh["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, whole.shape[1] - kinds.shape[1])], 1)
    assert torch.equal(continued, run(model, fresh, 5))


def test_a_state_cannot_be_cropped():
    model, _, inputs = prompt_of("llama", "text")
    cache = DynamicCache(config=model.config)
    prefill(model, inputs, cache)
    with pytest.raises(ValueError, match="cannot be cropped to 3"):
        cache.layers[0].crop(3)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(3)


def test_a_cache_of_another_model_is_refused():
    model, _, inputs = prompt_of("llama", "text")
    cache = DynamicCache(config=model.config)
    keys = torch.zeros(1, 2, 5, 16)
    for index in range(3):
        cache.update(keys, keys, index)
    with pytest.raises(ValueError, match="keys and values of another model"):
        prefill(model, inputs, cache)


def test_assisted_decoding_is_refused():
    model, _, inputs = prompt_of("llama", "text")
    with pytest.raises(ValueError, match="stateful"):
        run(model, inputs, assistant_model=model)
