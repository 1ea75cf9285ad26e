"""Answers that the data leaves out, given by the teacher before training starts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from linmu.distill.answers_file import TeacherAnswer, answers_path, append, drop_torn_line, read_answers
from linmu.errors import InputError
from linmu.evaluation.answerers import Engine
from linmu.formats.data_folder import DataFolder
from linmu.formats.data_line import DATA_FILE, Sample
from linmu.model.answerer import BATCH_TOKENS, TorchAnswerer
from linmu.processing import ModelInputs, Processor
from linmu.processing.encode import encode_sample, processor_fingerprint
from linmu.system.units import duration

ANSWERS = ("data", "greedy", "sampled")
ANSWER_TOKENS = 128
BATCH_SIZE = 16
LINE_SECONDS = 10.0  # between two lines of progress, at least


@dataclass(frozen=True)
class AnswerRules:
    """How missing answers come about: "data" (none may be missing), "greedy" or "sampled", of at most `tokens` tokens.

    seed: of what is sampled; bf16: whether the teacher computes in bfloat16; max_tokens: of prompt and answer.
    """

    source: str
    tokens: int
    seed: int
    bf16: bool
    max_tokens: int

    def __post_init__(self) -> None:
        if self.source not in ANSWERS:
            raise InputError("--answers", got=repr(self.source), expected="one of " + ", ".join(ANSWERS))
        if self.tokens < 1:
            raise InputError("--answer-tokens", got=self.tokens, expected="at least 1")


@dataclass(frozen=True)
class AnsweringTeacher:
    """A teacher's folder with the hash of its weights, the processor that training uses, and how it answers."""

    folder: Path
    weights_hash: str
    processor: Processor
    rules: AnswerRules

    def key(self, data: DataFolder) -> str:
        """What answers belong to: teacher, data, prompt template and rules."""
        rules = asdict(self.rules)
        if self.rules.source != "sampled":
            rules.pop("seed")
        parts = [self.weights_hash, data.fingerprint, processor_fingerprint(self.processor), rules]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def open_data(path: Path | str, source: str) -> DataFolder:
    """A data folder to train on; InputError for the first sample without an answer where `source` is "data"."""
    data = DataFolder.open(path, need_answers=False)
    missing = [sample for sample in data.samples if sample.unanswered]
    if missing and source == "data":
        more = f" ({len(missing) - 1} more {'line has' if len(missing) == 2 else 'lines have'} none)"
        raise InputError(
            f'{data.folder / DATA_FILE}, line {missing[0].line}: no "answer"{more if missing[1:] else ""}',
            expected="a text",
            fix="let the teacher answer: --answers greedy, or --answers sampled",
        )
    return data


def answer_missing(
    data: Sequence[DataFolder],
    folder: Path,
    teacher: AnsweringTeacher,
    say: Callable[[str], None],
) -> list[DataFolder]:
    """The data folders with the teacher's answers where they have none; answers that `folder` holds are not made again.

    Every process answers a share and gets all. Samples whose answer cannot be learned (an empty one) are left out and
    counted. Raises InputError for a prompt that cannot be encoded or leaves no room for an answer, before the first
    answer is made, and when no sample is left.
    """
    asked = [[sample for sample in item.samples if sample.unanswered] for item in data]
    if not any(asked):
        return list(data)
    state, keys = PartialState(), [teacher.key(item) for item in data]
    known = read_answers(folder)
    state.wait_for_everyone()  # nobody adds answers before all have read the same
    wanted = [(key, sample.id) for key, samples in zip(keys, asked, strict=True) for sample in samples]
    if missing := [name for name in wanted if name not in known]:
        say(f"the teacher answers {len(missing):,} samples; their prompts are read first")
        work = [
            (key, batch)
            for key, samples in zip(keys, asked, strict=True)
            for batch in _batches(samples, teacher)
            if any((key, sample.id) not in known for sample in batch)
        ]
        _answer(work[state.process_index :: state.num_processes], known, folder, teacher, say)
    state.wait_for_everyone()
    known = read_answers(folder)
    return [_filled(item, key, known, say) for key, item in zip(keys, data, strict=True)]


def _batches(samples: Sequence[Sample], teacher: AnsweringTeacher) -> list[list[Sample]]:
    """Samples whose prompts are of similar length, longest first: too little memory shows at once.

    Batches depend on the data alone, so that a resumed run gives the answers of a run that went through.
    """
    rules = teacher.rules
    lengths = [len(_prompt(sample, teacher.processor).input_ids) for sample in samples]
    room = rules.max_tokens - rules.tokens - 1
    if long := [place for place, length in enumerate(lengths) if length > room]:
        raise InputError(
            f"{samples[long[0]].place}: the prompt leaves no room for an answer ({len(long)} of {len(samples)} do)",
            got=f"{lengths[long[0]]} tokens and {rules.tokens} of the answer",
            expected=f"less than max_tokens, {rules.max_tokens}",
            fix=f"--answer-tokens with less, or --set max_tokens={max(lengths) + rules.tokens + 1}",
        )
    order, batches = sorted(range(len(samples)), key=lambda place: -lengths[place]), []
    while order:
        size = max(1, min(BATCH_SIZE, BATCH_TOKENS // (lengths[order[0]] + rules.tokens)))
        batches.append([samples[place] for place in order[:size]])
        del order[:size]
    return batches


def _prompt(sample: Sample, processor: Processor) -> ModelInputs:
    try:
        return processor.encode(sample.prompt, sample.images, sample.video, sample.video_fps)
    except InputError as error:
        what = f"{sample.place}: {error.what}"
        raise InputError(what, got=error.got, expected=error.expected, fix=error.fix) from error


def _answer(
    work: Sequence[tuple[str, list[Sample]]],
    known: dict[tuple[str, str], TeacherAnswer],
    folder: Path,
    teacher: AnsweringTeacher,
    say: Callable[[str], None],
) -> None:
    """Add the answers of some batches to this process's file, a batch at a time."""
    if not work:  # fewer batches than processes
        return
    state, rules, processor = PartialState(), teacher.rules, teacher.processor
    path = answers_path(folder, state.process_index)
    drop_torn_line(path)
    engine = Engine(device=str(state.device), dtype="bfloat16" if rules.bf16 else "float32", batch_size=BATCH_SIZE)
    answerer, progress = TorchAnswerer(teacher.folder, "teacher", engine), _Progress(sum(len(b) for _, b in work), say)
    for key, batch in work:
        seeds = [_seed(rules.seed, sample.id) for sample in batch] if rules.source == "sampled" else None
        prompts = [_prompt(sample, processor) for sample in batch]
        replies = answerer.generate(prompts, rules.tokens, seeds, processor.media_token_ids)
        answers = [
            _checked(TeacherAnswer(key, sample.id, reply.text, reply.stopped), sample, processor, rules.max_tokens)
            for sample, reply in zip(batch, replies, strict=True)
        ]
        append(path, [answer for answer in answers if (key, answer.id) not in known])
        progress.add(len(batch))
    answerer.close()


def _checked(answer: TeacherAnswer, sample: Sample, processor: Processor, max_tokens: int) -> TeacherAnswer:
    """The answer as data would hold it, marked where it says nothing or where training could not read it.

    Some templates put a space before an answer, which the teacher then says itself: of the text with and without it,
    the one that training reads as the teacher said it.
    """
    bare = replace(answer, text=answer.text.strip())
    if not bare.text:
        return replace(bare, unusable="empty")
    try:
        for candidate in (bare, answer):
            encoded = encode_sample(_with(sample, candidate), processor, max_tokens=max_tokens)
            if processor.decode(encoded.inputs.input_ids[encoded.answer_mask]) == answer.text:
                return candidate
    except InputError as error:
        return replace(bare, unusable=str(error))
    return bare


def _with(sample: Sample, answer: TeacherAnswer) -> Sample:
    return replace(sample, answer=answer.text, ended=answer.ended)


def _seed(seed: int, name: str) -> int:
    """A seed of the sample's own: what is drawn for it depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1


def _filled(
    data: DataFolder, key: str, known: dict[tuple[str, str], TeacherAnswer], say: Callable[[str], None]
) -> DataFolder:
    """The data with its answers; `answered_by` holds them all, since they decide what is learned."""
    answers = {sample.id: known[key, sample.id] for sample in data.samples if sample.unanswered}
    if not answers:
        return data
    unusable = [answer for answer in answers.values() if answer.unusable is not None]
    samples = tuple(_taught(data.samples, answers))
    if not samples:
        raise InputError(
            f"the teacher answers no sample of {data.folder}",
            got=f"{len(unusable)} empty or unusable answers, the first: {unusable[0].unusable}",
            fix="look at the prompts, or give answers",
        )
    cut = sum(not answer.ended for answer in answers.values() if answer.unusable is None)
    say(
        f"the teacher answered {len(answers) - len(unusable):,} of {len(data):,} samples of {data.folder}, "
        f"{cut:,} cut off at the limit"
        + (f"; {len(unusable):,} left out ({unusable[0].id}: {unusable[0].unusable})" if unusable else "")
    )
    texts: list[Any] = [key, *([answer.id, answer.text, answer.ended] for answer in answers.values())]
    return DataFolder(data.folder, samples, hashlib.sha256(json.dumps(texts).encode()).hexdigest())


def _taught(samples: Sequence[Sample], answers: dict[str, TeacherAnswer]) -> Iterator[Sample]:
    for sample in samples:
        answer = answers.get(sample.id)
        if answer is None:
            yield sample
        elif answer.unusable is None:
            yield _with(sample, answer)


class _Progress:
    """A line now and then: how many of this process's samples are answered, how fast, what is left."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.say, self.done = total, say, 0
        self.start = self.last = time.perf_counter()

    def add(self, count: int) -> None:
        """Count answered samples; the first and the last are always told."""
        first, now = self.done == 0, time.perf_counter()
        self.done += count
        if first or self.done == self.total or now - self.last >= LINE_SECONDS:
            self.last, rate = now, self.done / max(now - self.start, 1e-9)
            left = duration((self.total - self.done) / rate)
            speed = f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"
            self.say(f"teacher's answers: {self.done:,}/{self.total:,} samples {speed} samples/s {left} left")
