"""From a sample of a data folder to token ids, pixels and the tokens that count in the loss.

What counts is read off the chat template: the conversation with the answer, minus the prompt that generation starts
from, up to the token that ends an answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from linmu.errors import InputError
from linmu.families import get_family
from linmu.files.scratch import scratch_folder
from linmu.formats.data_line import Sample
from linmu.processing import ModelInputs, Processor
from linmu.processing.chat import Message, user_message
from linmu.processing.control import check_text
from linmu.processing.convert import vocabulary_of, write_processor
from linmu.processing.settings import to_json

LOSS_ON = ("answer", "all")


@dataclass(frozen=True)
class EncodedSample:
    """A sample ready for a batch.

    inputs: prompt and answer, pixels made when asked for; answer_mask [S] bool: True at tokens to be predicted (the
    answer with its end token, or all text); S = tokens of prompt and answer.
    """

    id: str
    inputs: ModelInputs
    answer_mask: np.ndarray
    task: str | None = None

    @property
    def tokens(self) -> int:
        """S."""
        return len(self.inputs.input_ids)

    @property
    def vision_tokens(self) -> int:
        """Tokens that stand for pictures and video."""
        return sum(t * h * w for item in self.inputs.media for t, h, w in item.tiles)


def encode_sample(
    sample: Sample, processor: Processor, loss_on: str = "answer", max_tokens: int | None = None
) -> EncodedSample:
    """Token ids, pixels and loss mask of a sample.

    loss_on: "answer", or "all": every token of text but the first. A sample of text alone with an empty answer is
    plain text: no template, no end token, and all of it counts. Nothing is ever cut off: raises InputError naming
    the sample for more than `max_tokens` tokens, unreadable media, and a template whose prompt is not the beginning
    of its conversation.
    """
    if loss_on not in LOSS_ON:
        raise InputError("loss_on", got=repr(loss_on), expected="one of " + ", ".join(LOSS_ON))
    try:
        inputs, prompt_tokens = _encode(sample, processor)
        mask = _mask(inputs, 0 if loss_on == "all" else prompt_tokens, processor)
        if max_tokens is not None and len(mask) > max_tokens:
            raise InputError("too many tokens", got=len(mask), expected=f"at most {max_tokens}")
        return EncodedSample(sample.id, inputs, mask, sample.task)
    except InputError as error:
        raise InputError(
            f"{sample.place}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from error


def model_processor(folder: Path) -> Processor:
    """The processor of a teacher's or student's folder, as a bundle made from it would have it."""
    with scratch_folder(folder) as temporary:
        write_processor(Path(folder), temporary)
        return Processor.from_folder(temporary, vocabulary_of(Path(folder)))


def processor_fingerprint(processor: Processor) -> str:
    """SHA-256 (hex) of everything that decides how a sample is encoded: settings, tokenizer, chat template."""
    parts = [to_json(processor.settings), processor.tokenizer.to_str(), processor.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pad_token_id(processor: Processor) -> int:
    """The tokenizer's padding token, else one that ends answers, else 0: masked wherever it stands."""
    name = processor.settings.tokens.template_variables.get("pad_token")
    token = None if name is None else processor.tokenizer.token_to_id(name)
    embedded = token is not None and (processor.vocabulary is None or token < processor.vocabulary)
    if token is not None and embedded and token not in processor.media_token_ids:
        return token
    return processor.eos_token_ids[0] if processor.eos_token_ids else 0


def _encode(sample: Sample, processor: Processor) -> tuple[ModelInputs, int]:
    """Inputs of prompt and answer, and how many tokens the prompt has (0: plain text)."""
    if not sample.answer:
        if not sample.text_only:
            raise InputError("no answer to learn", expected="an answer, or text without pictures and video")
        return processor.encode(sample.prompt, raw=True), 0
    if processor.chat_template is None:
        return _encode_plain(sample, processor)
    return _encode_chat(sample, processor)


def _encode_plain(sample: Sample, processor: Processor) -> tuple[ModelInputs, int]:
    """Prompt, answer and end token, each tokenized on its own: generation goes on from the prompt's ids too."""
    inputs = processor.encode(sample.prompt, sample.images, sample.video, sample.video_fps)
    check_text(sample.answer, "the answer")
    answer = _ids(processor, sample.answer)
    processor.check_ids(answer)
    if np.isin(answer, processor.media_token_ids).any():
        raise InputError("the answer holds the model's own image tokens", fix="leave them out of the text")
    ids = np.concatenate([inputs.input_ids, _ended(answer, processor, sample.ended)])
    return replace(inputs, input_ids=ids), len(inputs.input_ids)


def _encode_chat(sample: Sample, processor: Processor) -> tuple[ModelInputs, int]:
    read = processor.read(_conversation(sample, processor), sample.images, sample.video, video_fps=sample.video_fps)
    assert read.messages is not None
    # A prompt's control tokens are text, as when it is asked; an answer may say itself where it ends.
    messages = (*read.messages[:-1], {"role": "assistant", "content": sample.answer})
    text, prompt = processor.render_marked(messages, False), processor.render_marked(messages[:1])
    if not text.startswith(prompt):
        raise _not_a_beginning(text, prompt)
    if not text[len(prompt) :].strip():
        raise InputError("the chat template leaves the answer out", got=f"{text[-30:]!r} at the end of the text")
    full = processor.tokenized(text, read.media, processor.adds_special_tokens(text, True))
    assert full is not None  # nothing stands before it
    # The answer's tokens are told apart before placeholders are expanded: pixels are prepared only once.
    whole, ended = (_ids(processor, part) for part in (text, text.rstrip()))
    before = _ids(processor, prompt)
    answer, tail = ended[len(before) :], whole[len(before) :]
    kept = len(full.input_ids) - len(tail)
    if not _starts_with(whole, before) or not _starts_with(ended, before) or list(full.input_ids[kept:]) != list(tail):
        raise InputError(
            "the tokens of the prompt are not the beginning of those of the conversation",
            got=f"tokens that reach from {prompt[-20:]!r} into {text[len(prompt) :][:20]!r}",
            fix="check where the chat template puts spaces around the generation prompt",
        )
    ids = np.concatenate([full.input_ids[:kept], _ended(answer, processor, sample.ended)])
    return replace(full, input_ids=ids), kept


def _conversation(sample: Sample, processor: Processor) -> list[Message]:
    text_only = get_family(processor.settings.family).text_only
    user = user_message(sample.prompt, len(sample.images), int(sample.video is not None), text_only)
    return [user, {"role": "assistant", "content": sample.answer}]


def _ended(answer: np.ndarray, processor: Processor, ended: bool) -> np.ndarray:
    """An answer's ids up to and with the first token that ends generation; one is added where the template has none.

    An answer that was cut off (`ended` False) goes without it.
    """
    ends = processor.eos_token_ids
    if not ends:
        raise InputError("the model names no token that ends an answer", fix="set eos_token_id in its config")
    if not len(answer):
        raise InputError("the answer has no tokens")
    places = np.flatnonzero(np.isin(answer, ends))
    if not len(places):
        return np.append(answer, ends[0]) if ended else answer
    rest = processor.decode(answer[places[0] + 1 :])
    if rest.strip():
        raise InputError("text behind the end of the answer", got=repr(rest[:40]), fix="leave end tokens out of it")
    return answer[: places[0] + ended]


def _mask(inputs: ModelInputs, prompt_tokens: int, processor: Processor) -> np.ndarray:
    """[S] bool: text tokens behind the prompt; nothing predicts the first token of all."""
    mask = np.arange(len(inputs.input_ids)) >= max(prompt_tokens, 1)
    mask &= ~np.isin(inputs.input_ids, processor.media_token_ids)
    if not mask.any():
        raise InputError("nothing to predict", got=f"{len(mask)} tokens", expected="at least 2")
    return mask


def _ids(processor: Processor, marked: str) -> np.ndarray:
    """Token ids of a marked text."""
    ids = processor.control.encode(marked, add_special_tokens=False)
    assert ids is not None  # nothing stands before it
    return ids


def _starts_with(ids: np.ndarray, start: np.ndarray) -> bool:
    return len(ids) > len(start) and bool((ids[: len(start)] == start).all())


def _not_a_beginning(text: str, prompt: str) -> InputError:
    same = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))
    return InputError(
        "the chat template's prompt is not the beginning of its conversation",
        got=f"{text[same : same + 30]!r} with the answer and {prompt[same : same + 30]!r} without",
        fix="repair chat_template.jinja",
    )
