"""ExecuTorch's TextLLMRunner on `forward` of a text-only student: the greedy text of the same module in torch."""

from __future__ import annotations

import pytest
import torch

stock = pytest.importorskip("executorch.extension.llm.runner")

from linmu.export.phone.lowering import LEAST_SHARE, lower  # noqa: E402
from linmu.export.phone.stock import metadata, stock_methods  # noqa: E402
from linmu.export.phone.weights import program_weights  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.runtimes.et_runner import muted  # noqa: E402
from linmu.step.pack import decoder_form  # noqa: E402
from tests.export.phone.students import one_layer  # noqa: E402
from tests.tiny import tiny_tokenizer  # noqa: E402

MOST, NEW_TOKENS = 48, 9


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """(folder with model.pte and tokenizer.json, the eager module, the report)."""
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        student = one_layer("llama", folder, patch)
    form = decoder_form(load_student(student))
    methods = stock_methods(form, program_weights(form), "model.pte", None, (1, 1, 1))
    facts = metadata(form, MOST, 1, (2,))
    lowered, reports = lower(methods, {"forward": {"tokens": MOST}}, facts)
    (folder / "model.pte").write_bytes(lowered.buffer)
    return folder, methods["forward"].module, reports["forward"]


@torch.no_grad()
def greedy(module, ids: list[int]) -> list[int]:
    """The tokens that follow, by the module itself."""
    found, position = [], len(ids)
    logits = module(torch.tensor([ids]), torch.arange(position))
    while len(found) < NEW_TOKENS:
        found.append(int(logits[0, 0].argmax()))
        logits = module(torch.tensor([found[-1:]]), torch.tensor([position]))
        position += 1
    return found


LONG = "What is the answer to a question that goes on and on? " * 3  # the runner cuts it into calls of at most MOST


@pytest.mark.parametrize("prompt", ("What is the answer?", "x", LONG))
def test_it_says_what_the_module_says(program, prompt):
    folder, module, _ = program
    tokenizer = tiny_tokenizer("llama")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert (len(ids) > 2 * MOST) == (prompt == LONG)
    wanted = tokenizer.decode(greedy(module, ids))
    runner = stock.TextLLMRunner(str(folder / "model.pte"), str(folder / "student" / "tokenizer.json"))
    for _ in range(2):  # the second time the buffers hold what was said
        said = []
        with muted(1, 2):
            config = stock.GenerationConfig(max_new_tokens=NEW_TOKENS, temperature=0.0, echo=False)
            runner.generate(prompt, config, token_callback=said.append)
            runner.reset()
        assert "".join(said) == wanted


def test_xnnpack_takes_it(program):
    assert program[2].share >= LEAST_SHARE and program[2].macs > 0
