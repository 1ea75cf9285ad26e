"""The graph files one by one: a runner may take a short cut past some of them, and all are part of the bundle."""

from __future__ import annotations

import numpy as np

from linmu.runtimes.base import PromptPiece, RunnerState, VisionFeatures
from linmu.runtimes.ort_runner import OrtRunner


class GraphFiles:
    """A Runner on the very files: embeddings from token_embedding.onnx, steps from step.onnx, the rest as `runner`.

    Leaving it drops the sessions that only it needed, with their weights.
    """

    def __init__(self, runner: OrtRunner):
        self.backend, self.max_piece_tokens = runner.backend, runner.max_piece_tokens
        self.runner, self.state_specs = runner, runner.state_specs
        self._before = runner.open_graphs

    def new_state(self) -> RunnerState:
        """A zero state for one sequence."""
        return self.runner.new_state()

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32."""
        ids = np.ascontiguousarray(input_ids, np.int64)[None]
        return self.runner.session("token_embedding").run(["inputs_embeds"], {"input_ids": ids})[0][0]

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision graph on one call."""
        return self.runner.encode(call)

    def prefill(self, piece: PromptPiece, state: RunnerState) -> np.ndarray:
        """The prefill graph -> logits [V]."""
        return self.runner.prefill(piece, state)  # type: ignore[arg-type]

    def step(self, token: int, position: int, past_length: int, state: RunnerState) -> np.ndarray:
        """The step graph -> logits [V]."""
        ranks = {spec.name: len(spec.shape) for spec in self.runner.bundle.manifest.graphs["step"].inputs}
        shape = (3, 1, 1) if ranks["position_ids"] == 3 else (1, 1)
        feeds = {"input_ids": np.array([[token]]), "position_ids": np.full(shape, position), **state.read()}
        if "past_length" in ranks:
            feeds["past_length"] = np.array([past_length])
        names = ["logits", *(spec.output for spec in self.state_specs)]
        outputs = dict(zip(names, self.runner.run_graph("step", names, feeds), strict=True))
        state.write({spec.name: outputs[spec.output] for spec in self.state_specs})
        return outputs["logits"][0, 0]

    def close(self) -> None:
        """Drop what was opened since; the runner is closed by who opened it."""
        for name in self.runner.open_graphs - self._before - {"vision"}:
            self.runner.drop(name)

    def __enter__(self) -> GraphFiles:
        """The graphs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
