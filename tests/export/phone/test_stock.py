"""What the stock runners call, run eagerly: text, image, text in pieces gives the step form's logits and states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from linmu.export.phone.stock import EXTRA, StockDecoder, StockEncoder, StockText, extra_channels, metadata
from linmu.export.phone.weights import program_weights
from linmu.layout.windows import window_pieces
from linmu.reference.vision import build_vision
from linmu.step import decoder
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, torch_layout, worst
from tests.tiny import tiny_inputs

TILES = ("smolvlm", "idefics3", "internvl", "llava", "llava_dinov2")


def _reference(family, kind, **settings):
    """(student, form, prompt, logits, states) of the step form on a whole prompt."""
    student, tokenizer = shared_student(family, **settings)
    form = decoder_form(student)
    prompt = run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form)
    past = {spec.name: torch.zeros(spec.shape) for spec in form.state_specs()}
    with torch.no_grad():
        logits, present = decoder.prefill(
            TorchOps(form),
            form,
            torch.from_numpy(prompt.embeds),
            torch.from_numpy(prompt.positions),
            past,
            torch_layout(prompt.layout),
            None,
            torch.tensor([0]),
        )
    return student, form, prompt, logits, present


def _pieces(prompt) -> list[tuple[int, int]]:
    """Runs of text and of single images: the calls that a runner makes."""
    vision = prompt.layout["layout.vision"]
    starts = np.flatnonzero(prompt.layout["layout.restart"])
    ends = np.cumsum(vision)  # vision tokens seen so far
    gap = 3  # zero elements between two spans of the backward sequence
    firsts = {int(start) - gap * n for n, start in enumerate(starts)}  # vision tokens in front of each span
    cuts = [0]
    for token in range(1, len(vision)):
        if vision[token] != vision[token - 1] or (vision[token] and int(ends[token]) - 1 in firsts):
            cuts.append(token)
    return list(zip(cuts, [*cuts[1:], len(vision)], strict=True))


@pytest.mark.parametrize("family", TILES)
@pytest.mark.parametrize(
    "settings",
    ({}, {"causal_windows": True, "decay": "kv_head"}, {"text_window": 7}),
    ids=("default", "kv_head", "text_window"),
)
def test_pieces_give_the_step_forms_states(family, settings):
    student, form, prompt, logits, present = _reference(family, "two_images", **settings)
    module = StockDecoder(form, program_weights(form))
    rules = student._prompt_rules
    channels = extra_channels(rules.tile, form.mmate)
    vision, embeds = prompt.layout["layout.vision"], torch.from_numpy(prompt.embeds)
    pieces = _pieces(prompt)
    assert sum(bool(vision[start]) for start, _ in pieces) >= 2
    with torch.no_grad():
        said = torch.cat([torch.full((1, 5, form.hidden), torch.nan), torch.zeros(1, 5, EXTRA)], -1)
        module(said, torch.arange(5))  # is dropped when a call begins at position 0
        for start, stop in pieces:
            extra = channels if vision[start] else torch.zeros(stop - start, EXTRA)
            piece = torch.cat([embeds[:, start:stop], extra[None]], -1)
            found = module(piece, torch.arange(start, stop))
    assert worst(found, logits) < 3e-5
    for spec in form.state_specs():
        state = getattr(module, spec.name.replace(".", "_")).view(spec.shape)
        assert worst(state, present[spec.output]) < 3e-5, spec.name


def test_text_runs_from_ids():
    student, form, prompt, logits, _ = _reference("qwen2", "text")
    module = StockText(form, program_weights(form))
    ids = tiny_inputs("qwen2", student, shared_student("qwen2")[1], kind="text")["input_ids"]
    with torch.no_grad():
        module(ids[:, :3], torch.arange(3))
        for start, stop in ((0, 2), (2, ids.shape[1])):
            found = module(ids[:, start:stop], torch.arange(start, stop))
    assert worst(found, logits) < 3e-5


def test_an_image_carries_its_span():
    student, _ = shared_student("smolvlm")
    form, rules = decoder_form(student), student._prompt_rules
    tower = build_vision(student, "smolvlm")
    encoder = StockEncoder(tower, form.mmate, rules.tile)
    pixels = torch.randn(1, 3, *tower.facts["tile_size"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rows = encoder(pixels)
        assert torch.equal(rows[..., : form.hidden], tower(pixels))
    extra = rows[0, :, form.hidden :]
    assert rows.shape[-1] == form.hidden + EXTRA and (extra[:, 0] == 1).all()
    for schedule in range(4):
        order, place = extra[:, 1 + schedule].long(), extra[:, 5 + schedule].long()
        assert torch.equal(place[order], torch.arange(len(order)))
    for shift in range(2):
        assert len(extra[:, 9 + shift].unique()) == len(window_pieces(rules.tile, form.mmate.window, bool(shift)))


def test_metadata_is_what_the_runners_read():
    form = decoder_form(shared_student("llama")[0])
    facts = metadata(form, 256, 1, (2, 4))
    assert facts["get_eos_ids"] == [2, 4] and facts["get_max_seq_len"] == 256 < facts["get_max_context_len"]
    assert isinstance(StockText(form, program_weights(form)), nn.Module)
