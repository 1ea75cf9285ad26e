"""The peer: ONNX Runtime GenAI's own export of the same teacher, and two ways of running it, each as fast as it goes.

- `PeerGraph`: its model.onnx on plain ONNX Runtime with I/O binding and one KV-cache buffer that is past and present
  at once (what GenAI does inside, without its sampling and bookkeeping).
- `PeerGenerator`: GenAI's own Generator.

The peer gets its own best options: fused QKV (its default), fused gate/up, and only the last token's logits in prefill.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import say, timed

from linmu.errors import LinmuError, MissingComponentError

HERE = Path(__file__).parent
OPTIONS = ("prune_lm_head=true", "fuse_mlp_gate_up=true")
MORE_OPTIONS = {"fp32": (), "int4": ("accuracy_level=4",)}  # int8 inputs: its fastest, and its default on CPUs
# The teacher was trained on 8k positions; only its tables are made longer, so that time can be measured beyond.
MAX_POSITIONS = 40960


def build_teacher(out: Path) -> Path:
    """SmolLM2-135M as a Hugging Face folder, written once."""
    if not (out / "config.json").exists():
        _call("writing the teacher", str(HERE.parent / "examples" / "assemble_llava.py"), str(out), "--language-only")
    return out


def build_peer(teacher: Path, out: Path, precision: str = "fp32") -> Path:
    """GenAI's CPU export of the teacher in fp32 or int4, written once; MissingComponentError without its builder."""
    if (out / "genai_config.json").exists():
        return out
    try:
        import onnxruntime_genai  # noqa: F401
    except ImportError as error:
        raise MissingComponentError(
            "onnxruntime-genai", needed_for="the peer of this benchmark", fix="pip install onnxruntime-genai"
        ) from error
    longer = out.with_name(out.name + "-source")
    longer.mkdir(parents=True, exist_ok=True)
    for file in teacher.iterdir():
        link = longer / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    config = json.loads((teacher / "config.json").read_text())
    (longer / "config.json").unlink()
    (longer / "config.json").write_text(json.dumps({**config, "max_position_embeddings": MAX_POSITIONS}))
    builder = ["-m", "onnxruntime_genai.models.builder", "-i", str(longer), "-o", str(out), "-p", precision]
    options = ("--extra_options", *OPTIONS, *MORE_OPTIONS[precision])
    _call("building the peer", *builder, "-e", "cpu", "-c", str(out / "cache"), *options)
    return out


def _call(what: str, *arguments: str) -> None:
    say(f"{what} ...")
    safe = dict(os.environ)
    if arguments[0] == "-m":
        safe["PYTHONSAFEPATH"] = "1"  # modules of this folder must not stand in for the builder's own
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=safe)
    if done.returncode != 0:
        raise LinmuError(f"{what} failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1])


class PeerGraph:
    """The peer's graph with a KV cache of fixed capacity that the caller fills (`prefill`) or pretends (`step`)."""

    def __init__(self, folder: Path, threads: int, capacity: int):
        """Open the graph; `capacity` is the number of cache slots, at most MAX_POSITIONS."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = str(folder / "model.onnx")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ort, self.capacity = ort, capacity
        self.mask = np.ones((1, capacity), dtype=np.int64)
        shape = (1, self.session.get_inputs()[2].shape[1], capacity, self._head_dim(folder))
        names = [item.name for item in self.session.get_inputs() if item.name.startswith("past_key_values.")]
        # Noise, not zeros: attention over a constant cache would be a kinder problem than a real one.
        kind = np.float16 if self.session.get_inputs()[2].type == "tensor(float16)" else np.float32
        noise = (np.random.default_rng(0).standard_normal(shape) * 0.5).astype(kind)
        self.cache = {name: ort.OrtValue.ortvalue_from_numpy(noise.copy()) for name in names}
        self.cache_bytes = noise.nbytes * len(names)
        vocabulary = self.session.get_outputs()[0].shape[2]
        self.logits = ort.OrtValue.ortvalue_from_shape_and_type([1, 1, vocabulary], np.float32)

    @staticmethod
    def _head_dim(folder: Path) -> int:
        return json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"]

    def _run(self, ids: np.ndarray, total: int) -> None:
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(self.mask[:, :total]))
        binding.bind_ortvalue_output("logits", self.logits)
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.session.run_with_iobinding(binding)

    def step(self, context: int, token: int = 42) -> None:
        """One decode step with `context` tokens in the cache before it."""
        self._run(np.array([[token]], dtype=np.int64), context + 1)

    def prefill(self, ids: np.ndarray) -> None:
        """A whole prompt [S] into an empty cache."""
        self._run(ids[None], len(ids))

    def last_logits(self) -> np.ndarray:
        """Logits [vocabulary] of the last call's last token."""
        return self.logits.numpy()[0, 0]


class PeerGenerator:
    """GenAI's Generator after a prompt; every `step` lengthens its context by one token."""

    def __init__(self, folder: Path, threads: int, prompt: np.ndarray, capacity: int):
        """Load the model with `threads` threads and read the prompt [S]."""
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        session_options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
        self.model = og.Model(config)
        params = og.GeneratorParams(self.model)
        # A minimum length keeps the end-of-text token from ending the measurement.
        params.set_search_options(max_length=capacity, min_length=capacity, do_sample=False)
        self.generator = og.Generator(self.model, params)
        self.prefill_s = timed(lambda: self.generator.append_tokens(prompt.astype(np.int32)))

    def step(self) -> None:
        """Generate one token."""
        self.generator.generate_next_token()
