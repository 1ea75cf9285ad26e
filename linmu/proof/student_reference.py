"""The student of a bundle as a reference: its weights as the bundle stores them, its eager step form, one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from linmu.calibration.record import record_of
from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.formats.decoder_file import DECODER_FILE, read_decoder_file
from linmu.formats.presets import find_preset
from linmu.formats.weights_hash import student_weights_hash
from linmu.model.folders import load_student
from linmu.processing import ModelInputs, Processor
from linmu.processing.convert import write_processor
from linmu.quantize.form import preset_form
from linmu.reference.eager import StudentRunner, round_student, round_vision
from linmu.reference.torch_runner import bundle_form
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.verification.golden import PICTURE_PROMPT, TEXT_PROMPT, synthetic_picture


@dataclass(frozen=True)
class Reference:
    """A bundle's student (weights rounded as the bundle's), its eager step form, and the prompt both are asked."""

    bundle: Bundle
    student: PreTrainedModel
    runner: StudentRunner
    twin: StudentRunner  # the same, summed in another order: tells the noise
    inputs: ModelInputs
    prompt: str
    images: tuple[Path, ...]


def open_reference(bundle: Bundle, folder: Path, scratch: Path, calibration: Path | None = None) -> Reference:
    """Load the bundle's student; files go to `scratch`.

    calibration: the record of a quantized phone bundle, whose program does not give its integers back. Raises
    InputError when the bundle was made of another student, and for a record that is missing or of no use.
    """
    got, wanted = student_weights_hash(folder), bundle.manifest.model.weights_hash
    if got != wanted:
        raise InputError(
            f"{bundle.folder} was not made of {folder}",
            got=f"weights hash {got[:16]}",
            expected=wanted[:16],
            fix="give the student that was exported",
        )
    student, form = load_student(folder), None
    if (bundle.folder / DECODER_FILE).is_file() and read_decoder_file(bundle.folder).packing:
        form = bundle_form(bundle)  # the very integers: calibration is not repeated here
        round_vision(student, bundle.manifest.precision)
    elif bundle.manifest.program and bundle.manifest.precision.quantized:
        form = _quantized_again(bundle, student, calibration)
    else:
        round_student(student, bundle.manifest.precision)
    write_processor(folder, scratch)  # the student's own: a bundle with other settings must not agree with itself
    images: tuple[Path, ...] = ()
    prompt = TEXT_PROMPT
    if not student.linmu_family.text_only:
        images, prompt = (scratch / "picture.png",), PICTURE_PROMPT
        synthetic_picture().save(images[0])
    inputs = Processor.from_folder(scratch).encode(prompt, list(images))
    runner = StudentRunner(student, precision=bundle.manifest.precision, form=form)
    return Reference(bundle, student, runner, StudentRunner(student, runner), inputs, prompt, images)


def _quantized_again(bundle: Bundle, student: PreTrainedModel, calibration: Path | None) -> DecoderForm:
    preset, target = bundle.manifest.precision.weights, bundle.manifest.target
    if calibration is None:
        raise InputError(
            f"--student with a bundle of preset {preset}",
            got="no calibration record",
            expected="the one that it was exported with",
            fix="add --calib FILE",
        )
    record = record_of(calibration, bundle.manifest.model.weights_hash)
    return preset_form(decoder_form(student), record, find_preset(target, preset)).form
