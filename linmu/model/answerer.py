"""Student and teacher folders in torch: batched generation, prepared by our own processor."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from linmu.errors import InputError
from linmu.evaluation.answerers import Answer, Engine, identity, naming
from linmu.evaluation.questions import Question
from linmu.families import get_family
from linmu.files.scratch import scratch_folder
from linmu.formats.bundle import file_sha256
from linmu.formats.model_files import ModelFolder, read_model_folder
from linmu.formats.weights_hash import student_weights_hash
from linmu.layout import PromptRules
from linmu.model.batch import collate
from linmu.model.folders import DTYPES, load_student, load_teacher, write_side_files
from linmu.model.modeling import teacher_config
from linmu.processing import ModelInputs, Processor
from linmu.processing.encode import EncodedSample, model_processor, pad_token_id, processor_fingerprint
from linmu.processing.media import TileCalls
from linmu.runtimes.backends import usable_threads

WINDOW_BATCHES = 8  # so many batches are encoded and sorted by length together
WINDOW_BYTES = 2**28  # of pixels
BATCH_TOKENS = 2**14  # a batch of long prompts is smaller than a batch of short ones

Encoded = tuple[Question, ModelInputs]


class TorchAnswerer:
    """A student's or teacher's folder; the weights are loaded on the first question."""

    def __init__(self, folder: Path, kind: str, engine: Engine):
        self.folder, self.kind, self.engine = folder, kind, engine
        self.device = _device(engine.device)
        self.dtype = _dtype(engine.dtype, self.device)
        self.backend = f"torch ({self.device.type}, {self.dtype})"
        self._source: ModelFolder | None = read_model_folder(folder) if kind == "teacher" else None
        if self._source is not None and self._source.gguf is not None:
            weights = file_sha256(self._source.gguf)
            self.processor = _gguf_processor(self._source, self.model)
        else:
            weights = student_weights_hash(folder)
            self.processor = model_processor(folder) if kind == "student" else _teacher_processor(self._source)
        self.identity = identity(kind, weights, processor_fingerprint(self.processor), self.backend)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on its device, with none of its folder's own generation settings."""
        if self._source is None:
            model = load_student(self.folder, getattr(torch, self.dtype))
        else:
            model = load_teacher(self._source, self.dtype)
        model.generation_config = GenerationConfig()
        return model.to(self.device)

    @cached_property
    def rules(self) -> PromptRules | None:
        """The model's PromptRules; None for text only."""
        if get_family(self.processor.settings.family).text_only:
            return None
        return PromptRules.from_config(teacher_config(self.model.config))

    def answers(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[tuple[Question, Answer]]:
        """Every question with its answer, batches of similar length together."""
        with _threads(self.engine.threads):
            for window in self._windows(questions):
                for batch in batches(window, self.engine.batch_size):
                    replies = self.generate([inputs for _, inputs in batch], max_new_tokens)
                    yield from zip((question for question, _ in batch), replies, strict=True)

    def close(self) -> None:
        """Free the weights."""
        self.__dict__.pop("model", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _windows(self, questions: Sequence[Question]) -> Iterator[list[Encoded]]:
        """Encoded questions, as many at a time as fit in a window."""
        window: list[Encoded] = []
        size = 0
        for question in questions:
            with naming(question):
                inputs = self.processor.encode(question.prompt, question.pictures(), question.video, question.video_fps)
            window.append((question, inputs))
            size += _pixel_bytes(inputs)
            if len(window) == WINDOW_BATCHES * self.engine.batch_size or size >= WINDOW_BYTES:
                yield window
                window, size = [], 0
        if window:
            yield window

    @torch.inference_mode()
    def generate(
        self,
        batch: Sequence[ModelInputs],
        max_new_tokens: int,
        seeds: Sequence[int] | None = None,
        never: Sequence[int] = (),
    ) -> list[Answer]:
        """An answer to every prompt of one batch: greedy, or with a seed for each prompt drawn at temperature 1.

        never: token ids that no answer has. What is drawn for a prompt depends on its seed, not on its batch.
        """
        ends = list(self.processor.eos_token_ids)
        pad = pad_token_id(self.processor)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
            suppress_tokens=list(never) or None,
        )
        noise = LogitsProcessorList([] if seeds is None else [SeededDraw(seeds)])
        ids = self.model.generate(**self._arguments(batch, pad), generation_config=settings, logits_processor=noise)
        length = max(len(inputs.input_ids) for inputs in batch)
        return [self._answer(row[length:].tolist(), ends) for row in ids.cpu()]

    def _arguments(self, batch: Sequence[ModelInputs], pad: int) -> dict[str, Any]:
        """Arguments of generate(): padded on the left, on the device, pixels in the model's dtype."""
        nothing = [np.zeros(len(inputs.input_ids), bool) for inputs in batch]  # no token is to be learned
        encoded = [EncodedSample(str(row), inputs, nothing[row]) for row, inputs in enumerate(batch)]
        arguments = collate(encoded, self.rules, pad)
        for name in ("labels", "sample_ids"):
            arguments.pop(name)
        if self.kind == "teacher":
            arguments.pop("linmu_media", None)  # a teacher sees the frames as images
        return {name: self._placed(name, value) for name, value in arguments.items()}

    def _placed(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if name.startswith("pixel_values") else None)

    def _answer(self, ids: list[int], ends: Sequence[int]) -> Answer:
        """What was generated up to the first end token."""
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        answer = ids if stop is None else ids[:stop]
        return Answer(self.processor.decode(answer), len(answer) + (stop is not None), stop is not None)


class SeededDraw(LogitsProcessor):
    """Adds Gumbel noise to logits [B,V], so that their largest is a draw from the softmax; a seed for every row."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Logits [B,V] in float32 with noise of the next step."""
        draws = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores.float() - torch.stack(draws).log().to(scores.device)


def batches(window: Sequence[Encoded], size: int) -> Iterator[list[Encoded]]:
    """A window's questions by length of their prompts, at most `size` and BATCH_TOKENS padded tokens together."""
    batch: list[Encoded] = []
    for item in sorted(window, key=lambda item: len(item[1].input_ids)):
        if batch and (len(batch) == size or (len(batch) + 1) * len(item[1].input_ids) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _pixel_bytes(inputs: ModelInputs) -> int:
    """Bytes of pixels that were made already (Qwen's are made when asked for)."""
    if not isinstance(inputs.vision_calls, TileCalls):
        return 0
    return sum(call["pixel_values"].nbytes for calls in inputs.vision_calls.parts for call in calls)


def _teacher_processor(source: ModelFolder | None) -> Processor:
    """The processor a student made of this teacher would have."""
    assert source is not None
    with scratch_folder(source.folder) as folder:
        (folder / "config.json").write_bytes((source.folder / "config.json").read_bytes())
        write_side_files(source, folder)
        return model_processor(folder)


def _gguf_processor(source: ModelFolder, model: PreTrainedModel) -> Processor:
    with scratch_folder(source.folder) as folder:
        model.config.save_pretrained(folder)
        write_side_files(source, folder)
        return model_processor(folder)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError("--device", got=repr(name), expected="auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", got=repr(name), expected="a device that torch finds here", fix="use --device cpu")
    return device


def _dtype(name: str, device: torch.device) -> str:
    """float32 on a CPU; on an accelerator bfloat16, unless told otherwise."""
    if name not in DTYPES:
        raise InputError("--dtype", got=repr(name), expected="one of " + ", ".join(DTYPES))
    if name != "auto":
        return name
    return "float32" if device.type == "cpu" else "bfloat16"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(usable_threads(count) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
