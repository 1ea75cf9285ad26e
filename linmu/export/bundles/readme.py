"""README.md of a bundle: how to run this very bundle, with its own file names and numbers."""

from __future__ import annotations

from pathlib import Path

from linmu.families import get_family
from linmu.formats.manifest import Manifest
from linmu.version import __version__

TEXT = """# {name}

A linmu bundle of the {family} family for the target `{target}`: {parameters:.1f} million parameters, {layers} decoder
layers, weights in {weights}. It was exported by linmu {version}.

The model's memory of a conversation is a state of {state} ({count} tensors), the same at any context length.

## Run it

```sh
pip install {package}
linmu verify .
linmu run . --prompt "{question}"{image}
linmu bench . --contexts 512,2048,8192
linmu inspect .
```

From Python:

```python
import linmu

session = linmu.load(".")
print(session.generate("{question}"{python_image}, max_new_tokens=64).text)
```

## What is in it

{files}

Inputs, outputs, states and the sha256 of every file are in `manifest.json`; a file that differs is refused.
The licence of the model is that of the teacher it was converted from.
"""

KNOWN = {
    "model.pte": "the ExecuTorch program: every method, and all weights once",
    "vision.onnx": "pixels to embeddings (its weights: `vision.data`)",
    "token_embedding.onnx": "token ids to embeddings",
    "prefill.onnx": "a prompt, or a piece of one, to the logits of its last token and the new state",
    "step.onnx": "one token and the state to logits and the new state",
    "weights.data": "the decoder's weights, once for all graphs",
    "decoder.json": "where each weight lies in `weights.data`",
    "processor.json": "how images and prompts are prepared",
    "tokenizer/tokenizer.json": "the tokenizer",
    "chat_template.jinja": "the chat template",
    "golden": "reference vectors for `linmu verify`",
}


def bundle_readme(folder: Path, manifest: Manifest) -> str:
    """The text for a bundle whose other files already lie in `folder`."""
    model = manifest.model
    vision = not get_family(model.family).text_only
    image = next(iter(sorted(path.relative_to(folder).as_posix() for path in folder.glob("golden/*.png"))), "photo.jpg")
    return TEXT.format(
        name=model.name,
        family=model.family,
        target=manifest.target,
        parameters=model.parameters / 1e6,
        layers=model.layers,
        weights=manifest.precision.weights,
        version=__version__,
        package=f"'linmu[mobile]=={__version__}'" if manifest.program else f"linmu=={__version__}",
        state=f"{manifest.state_bytes / 2**20:.2f} MiB",
        count=len(manifest.state),
        question="What is in this picture?" if vision else "What is the capital of France?",
        image=f" --image {image}" if vision else "",
        python_image=f', images=["{image}"]' if vision else "",
        files="\n".join(f"- `{name}`: {what}" for name, what in KNOWN.items() if (folder / name).exists()),
    )
