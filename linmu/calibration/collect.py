"""`linmu calibrate`: one pass over the data, as a device would run it, into one record (resumable, deterministic)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from linmu.calibration.observe import VISION, Book, ObservedRunner
from linmu.calibration.record import CalibrationRecord, Origin, read_record, write_record
from linmu.calibration.rounded_state import measure_states, text_stream
from linmu.calibration.samples import CalibrationSample, open_samples
from linmu.calibration.statistics import KEPT_ROWS
from linmu.errors import InputError
from linmu.files.atomic import check_file_target
from linmu.files.separate import require_separate
from linmu.formats.model_files import require_exportable
from linmu.formats.weights_hash import student_weights_hash
from linmu.model.mapped import open_student
from linmu.processing.encode import model_processor
from linmu.reference.student_manifest import student_manifest
from linmu.step.pack import decoder_form
from linmu.verification.players import RunnerPlayer

SAMPLES, DECODE_TOKENS, LONG_TOKENS, STATE_TOKENS = 128, 32, 1024, 4096
SAVE_EVERY = 16  # samples

Progress = Callable[..., None]


def calibrate(
    student: Path | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    samples: int = SAMPLES,
    decode_tokens: int = DECODE_TOKENS,
    long_tokens: int = LONG_TOKENS,
    state_tokens: int = STATE_TOKENS,
    kept_rows: int = KEPT_ROWS,
    allow_random: bool = False,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """Run a student folder over `samples` samples of a data folder and write the record `out` (.safetensors).

    Each sample: its prompt as prefill, its answer and up to `decode_tokens` own tokens as decode steps; `long_tokens`
    more behind the last one. Then `state_tokens` of the data's text, to see what float16 states change. What an
    interrupted run left beside `out` is gone on with. Raises InputError for a student or data that cannot be used,
    naming the line, and for data that make activations constant or not finite.
    """
    student, out, say = Path(student), Path(out), progress or (lambda *_: None)
    data = None if data is None else Path(data)
    if out.suffix != ".safetensors":
        raise InputError("name of the calibration record", got=out.name, expected="NAME.safetensors")
    check_file_target(out)
    require_separate(out, student)
    require_exportable(student)
    model, processor = open_student(student), model_processor(student)
    form = decoder_form(model)
    source = open_samples(data, processor, form.vocab, form.vision, samples, allow_random)
    origin = Origin(student_weights_hash(student), source.hash, len(source), decode_tokens, long_tokens)
    partial = out.with_name(out.name.removesuffix(".safetensors") + ".partial.safetensors")
    record = _begun(partial, origin)
    if record.done:
        say(f"going on after {record.done} samples", record.done, len(source))
    book = Book()
    with ObservedRunner(model, book, replace(form, scratch=out.resolve().parent)) as runner:
        manifest = student_manifest(student, model, form)
        for sample in source.read(record.done):
            last = record.done + 1 == len(source)
            steps = decode_tokens + (long_tokens if last else 0)
            if last:
                say(f"last sample and {steps} steps behind it", record.done, len(source))
            eos = () if last else processor.eos_token_ids
            _play(RunnerPlayer(runner, manifest, sample.inputs), sample, steps, eos, record.tokens)
            if broken := book.close(record.inputs, record.states, kept_rows):
                raise InputError(
                    f"{sample.id} gives values that are not finite",
                    got=f"at {broken}",
                    fix="check the picture and the student's weights",
                )
            record.done += 1
            say("samples", record.done, len(source))
            if record.done % SAVE_EVERY == 0 and not last:
                write_record(partial, record)
    _check(record, model, form.vision)
    say(f"float16 states over {state_tokens} tokens", len(source), len(source))
    stream = text_stream(source, processor.media_token_ids, state_tokens)
    record.float16_states = measure_states(model, manifest, stream)
    write_record(out, record)
    partial.unlink(missing_ok=True)
    return record


def _begun(partial: Path, origin: Origin) -> CalibrationRecord:
    """What an interrupted run of the same student, data and settings left, or an empty record."""
    if partial.exists():
        try:
            record = read_record(partial)
        except InputError:
            return CalibrationRecord(origin)
        if record.origin == origin:
            return record
    return CalibrationRecord(origin)


def _play(
    player: RunnerPlayer, sample: CalibrationSample, steps: int, eos: tuple[int, ...], tokens: dict[str, int]
) -> None:
    """Prefill, then decode steps: the sample's answer, then the student's own choices until it ends."""
    logits = player.start()
    tokens["prefill"] += player.tokens
    forced = list(sample.answer)
    for step in range(len(forced) + steps):
        token = forced[step] if step < len(forced) else int(np.argmax(logits))
        if step >= len(forced) and token in eos:
            return
        logits = player.step(token)
        tokens["decode"] += 1


def _check(record: CalibrationRecord, model: PreTrainedModel, vision: bool) -> None:
    """Refuse data that leave a matrix product unseen or unmoved."""
    if vision and not any(name.startswith(VISION) for name in record.inputs):
        raise InputError("the calibration data hold no picture", got="text alone", expected="pictures as in use")
    for name, statistics in record.inputs.items():
        if statistics.constant or not statistics.amax.any():
            raise InputError(
                f"the calibration data give constant activations at {name}",
                got=f"{statistics.count} equal rows",
                expected="samples that differ",
            )
