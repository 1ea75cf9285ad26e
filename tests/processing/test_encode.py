from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from linmu.errors import InputError
from linmu.families import get_family
from linmu.formats.data_line import Sample
from linmu.processing import Processor
from linmu.processing.chat import user_message
from linmu.processing.encode import (
    encode_sample,
    model_processor,
    pad_token_id,
    processor_fingerprint,
)
from linmu.processing.settings import ProcessorSettings, TokenSettings
from tests.distill.samples import family_data
from tests.folders import teacher_folder
from tests.tiny import FAMILY_NAMES, tiny_tokenizer

EOS = 2  # of the tiny models
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "{{ m['content'] }}", "{% if loop.last and loop.index > 1 %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
)
SPOKEN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}"
    "ASSISTANT: {{ m['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def text_processor(template: str | None, eos: tuple[int, ...] = (4,), merges: tuple = (), bos: str | None = None):
    """A llama processor; token 3 is <|im_start|>, 4 <|im_end|>."""
    vocab = {
        token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    for a, b in merges:
        vocab[a + b] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"])
    ends = tuple({4: core.token_to_id("<|im_end|>"), 2: 2}[i] for i in eos)
    variables = {"pad_token": "<pad>"} | ({"bos_token": bos} if bos else {})
    tokens = TokenSettings(eos_token_ids=ends, template_variables=variables, chat_adds_special_tokens=False)
    return Processor(ProcessorSettings(family="llama", tokens=tokens), core, template)


def counted(encoded, processor) -> str:
    """Text of the tokens that count, special ones shown."""
    return processor.tokenizer.decode(encoded.inputs.input_ids[encoded.answer_mask].tolist(), skip_special_tokens=False)


def whole(encoded, processor) -> str:
    return processor.tokenizer.decode(encoded.inputs.input_ids.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_prompt_is_the_one_that_generation_starts_from(family, tmp_path_factory):
    processor, data = family_data(family, tmp_path_factory)
    for sample in data.samples:
        encoded = encode_sample(sample, processor)
        text_only = get_family(processor.settings.family).text_only
        user = user_message(sample.prompt, len(sample.images), int(sample.video is not None), text_only)
        prompt = processor.encode([user], sample.images, sample.video, sample.video_fps)
        ids, length = encoded.inputs.input_ids, len(prompt.input_ids)
        np.testing.assert_array_equal(ids[:length], prompt.input_ids)
        np.testing.assert_array_equal(encoded.answer_mask, np.arange(len(ids)) >= length)
        end = "<end_of_utterance>" if family == "smolvlm" and sample.video else "<|im_end|>"
        space = " " if family == "smolvlm" and sample.video else ""
        text = processor.tokenizer.encode(space + sample.answer + end, add_special_tokens=False).ids
        assert ids[length:].tolist() == [*text, EOS]
        assert encoded.inputs.media == prompt.media and len(encoded.inputs.vision_calls) == len(prompt.vision_calls)
        for ours, theirs in zip(encoded.inputs.vision_calls, prompt.vision_calls, strict=True):
            np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"])
        vision = int(np.isin(ids, processor.media_token_ids).sum())
        assert (encoded.id, encoded.task, encoded.tokens, encoded.vision_tokens) == (
            sample.id,
            sample.task,
            len(ids),
            vision,
        )
        assert (vision > 0) == (not sample.text_only)


@pytest.mark.parametrize(
    ("template", "eos", "prompt", "answer"),
    [
        (CHATML, (4,), "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n", "so <|im_end|>"),
        (CHATML, (2, 4), "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n", "so <|im_end|>"),
        (CHATML, (2,), "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n", "so <|im_end|><eos>"),
        (
            CHATML.replace("{% endif %}", "{% else %}<eos>{% endif %}"),
            (4, 2),
            "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n",
            "so <|im_end|>",
        ),
        (CHATML + "<eos>", (4, 2), "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n", None),
        (
            THINKING,
            (4,),
            "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n",
            "<think>\n\n</think>\n\nso <|im_end|>",
        ),
        (SPOKEN, (2,), "USER: Why?  ASSISTANT:", " so<eos>"),
        ("<bos>" + SPOKEN, (2,), "<bos>USER: Why?  ASSISTANT:", " so<eos>"),
        (None, (2,), "Why? ", "so <eos>"),
    ],
)
def test_templates(template, eos, prompt, answer):
    processor = text_processor(template, eos)
    sample = Sample("x", "Why? ", "so ", line=8)
    if answer is None:  # a template that ends every text alike: its prompt ends before its conversation goes on
        with pytest.raises(InputError, match="data.jsonl:8 .*prompt is not the beginning"):
            encode_sample(sample, processor)
        return
    encoded = encode_sample(sample, processor)
    assert (whole(encoded, processor), counted(encoded, processor)) == (prompt + answer, answer)
    cut = encode_sample(replace(sample, ended=False), processor)  # nothing says where it would have ended
    assert list(cut.inputs.input_ids) == list(encoded.inputs.input_ids[:-1])
    assert list(cut.answer_mask) == list(encoded.answer_mask[:-1])
    everything = encode_sample(sample, processor, loss_on="all")
    assert everything.answer_mask.tolist() == [False] + [True] * (encoded.tokens - 1)
    assert whole(everything, processor) == prompt + answer


def test_templates_that_cannot_be_learned_from():
    sample = Sample("x", "Why", "so", line=8)
    wrong = {
        "not the beginning of its conversation": "{{ messages|length }}" + CHATML,
        "leaves the answer out": CHATML.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] if loop.first }}"),
        "text behind the end of the answer": CHATML.replace("<|im_end|>\n", "<|im_end|> bye"),
        "refuses": "{{ raise_exception('no') }}",
    }
    for what, template in wrong.items():
        with pytest.raises(InputError) as caught:
            encode_sample(sample, text_processor(template))
        assert str(caught.value).startswith("data.jsonl:8 (id 'x'): ") and what in str(caught.value)
    with pytest.raises(InputError, match="no token that ends an answer"):
        encode_sample(sample, text_processor(CHATML, ()))
    with pytest.raises(InputError, match="behind the end of the answer"):
        encode_sample(Sample("x", "Why", "so<|im_end|>there"), text_processor(CHATML))


def test_tokens_across_the_border_of_prompt_and_answer():
    template = SPOKEN.replace("ASSISTANT: {{", "ASSISTANT:{{")
    sample = Sample("x", "Why", "so", line=8)
    assert counted(encode_sample(sample, text_processor(template, (2,))), text_processor(template, (2,))) == "so<eos>"
    with pytest.raises(InputError, match="data.jsonl:8 .*tokens of the prompt are not the beginning.*into 'so"):
        encode_sample(sample, text_processor(template, (2,), ((":", "s"),)))
    # without a template, generation goes on from the prompt's ids: nothing merges
    plain = text_processor(None, (2,), (("y", "s"),))
    assert encode_sample(sample, plain).tokens == 6 and counted(encode_sample(sample, plain), plain) == "so<eos>"


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_plain_text_counts_whole(family, tmp_path_factory):
    processor, _ = family_data(family, tmp_path_factory)
    for loss_on in ("answer", "all"):
        encoded = encode_sample(Sample("x", "Once upon <|im_end|>a time ", ""), processor, loss_on)
        assert whole(encoded, processor) == "Once upon <|im_end|>a time "
        assert encoded.answer_mask.tolist() == [False] + [True] * (encoded.tokens - 1)


def test_loss_on_all_leaves_out_pictures(tmp_path_factory):
    processor, data = family_data("smolvlm", tmp_path_factory)
    encoded = encode_sample(data.samples[1], processor, "all")
    vision = np.isin(encoded.inputs.input_ids, processor.media_token_ids)
    assert vision.sum() == encoded.vision_tokens > 0
    expected = ~vision
    expected[0] = False
    np.testing.assert_array_equal(encoded.answer_mask, expected)


def test_samples_that_cannot_be_encoded(tmp_path_factory):
    processor, data = family_data("llava", tmp_path_factory)
    image = data.samples[1].images
    wrong = {
        "no answer to learn": Sample("x", "Why", "", image, line=3),
        "image placeholders": Sample("x", "Why", "<image>", image, line=3),
        "takes no video": Sample("x", "Why", "so", video=image[0], line=3),
        "cannot read the image": Sample("x", "Why", "so", (image[0].with_name("none.png"),), line=3),
    }
    for what, sample in wrong.items():
        with pytest.raises(InputError) as caught:
            encode_sample(sample, processor)
        assert str(caught.value).startswith("data.jsonl:3 (id 'x'): ") and what in str(caught.value)
    with pytest.raises(InputError, match="loss_on"):
        encode_sample(data.samples[0], processor, "prompt")
    tokens = encode_sample(data.samples[1], processor).tokens
    assert encode_sample(data.samples[1], processor, max_tokens=tokens).tokens == tokens
    with pytest.raises(InputError, match=f"too many tokens; got {tokens}; expected at most {tokens - 1}"):
        encode_sample(data.samples[1], processor, max_tokens=tokens - 1)
    bare = Processor(processor.settings, processor.tokenizer, None)
    with pytest.raises(InputError, match="image tokens"):
        encode_sample(Sample("x", "Why", "<image>"), bare)
    assert counted(encode_sample(data.samples[1], bare), bare) == "a häppy cat<eos>"


def test_the_processor_of_a_model_folder(tmp_path, tmp_path_factory):
    processor = model_processor(teacher_folder("qwen2", tmp_path))
    same, _ = family_data("qwen2", tmp_path_factory)
    assert processor_fingerprint(processor) == processor_fingerprint(same)
    other = Processor(processor.settings, processor.tokenizer, "x" + str(processor.chat_template))
    assert processor_fingerprint(other) != processor_fingerprint(processor)
    assert pad_token_id(processor) == tiny_tokenizer("qwen2").pad_token_id == 0
    assert pad_token_id(text_processor(None, (2,))) == 0
    variables = {"pad_token": "<none>"}
    tokens = TokenSettings(eos_token_ids=(7,), template_variables=variables, chat_adds_special_tokens=False)
    settings = ProcessorSettings(family="llama", tokens=tokens)
    assert pad_token_id(Processor(settings, processor.tokenizer)) == 7
    last = processor.tokenizer.get_vocab_size() - 1  # a padding token that was added without a row for it
    named = {"pad_token": processor.tokenizer.id_to_token(last)}
    late = replace(settings, tokens=replace(tokens, template_variables=named))
    assert pad_token_id(Processor(late, processor.tokenizer, vocabulary=last + 1)) == last
    assert pad_token_id(Processor(late, processor.tokenizer, vocabulary=last)) == 7


def test_control_tokens_of_a_prompt_are_text_when_learned_as_when_asked():
    processor = text_processor(CHATML)
    sample = Sample("x", "Why <|im_end|>?", "so<|im_end|>")
    encoded = encode_sample(sample, processor)
    asked = processor.encode(sample.prompt).input_ids
    assert encoded.inputs.input_ids[: len(asked)].tolist() == asked.tolist()
    end = processor.eos_token_ids[0]
    assert (asked == end).sum() == 1 and counted(encoded, processor) == "so<|im_end|>"
    assert encoded.inputs.input_ids[-1] == end  # an answer may say itself where it ends
