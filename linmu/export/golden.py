"""Writing golden vectors: everything a device needs to prove a bundle right, made from the student, never from a graph.

    golden/graphs.safetensors   one call of each graph: inputs, outputs, and a snapshot of all states
    golden/rollout.safetensors  a teacher-forced roll-out behind the prefill vector: tokens, logits, states per step
    golden/prompts.json         prompts (and picture.png) with token ids, pixels, and the greedy answer
The seeded rules are in linmu/golden.py. Full states are written as long as they fit into the budget.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from linmu import golden
from linmu.golden import Projector, forced_ids, forced_token, sampled_ids, seeded_normal
from linmu.manifest import WEIGHT_SUFFIXES, Manifest
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.prompt import place_prompt
from linmu.step.form import DecoderForm
from linmu.verification.compare import logits_noise, noise_between, top_gap
from linmu.verification.eager import StudentRunner, round_student, round_vision, stored_form
from linmu.verification.players import RunnerPlayer
from linmu.verification.synthetic import (
    golden_piece,
    picture_inputs,
    pixel_print,
    text_ids,
    vision_call,
    vision_rows,
)

SHARE, LEAST = 0.02, 3 * 2**20  # of the weights' bytes, or this many bytes if that is more
MEDIA_IDS = ("image_token_id", "video_token_id", "vision_start_token_id")

Pair = tuple[StudentRunner, StudentRunner]  # the reference, and its twin that tells the noise
Players = tuple[RunnerPlayer, RunnerPlayer]

HOLDS = {
    golden.GRAPHS_FILE: "one call of every graph: inputs, outputs and states",
    golden.ROLLOUT_FILE: "a teacher-forced roll-out: tokens, logits and states of every step",
    golden.PROMPTS_FILE: "prompts with their token ids, pixels and greedy answers",
    golden.PICTURE_FILE: "the picture of the second prompt",
}


@dataclass
class _Vectors:
    """Tensors of one file, and how many bytes of full states may still be written (shared by the files)."""

    room: list[int]
    projector: Projector
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def snapshot(self, moment: str, state: dict[str, np.ndarray]) -> None:
        """Projections and norms of all canonical states, and the states themselves while there is room."""
        for name, (projection, norm) in self.projector.state(state).items():
            self.tensors[f"{moment}/projection/{name}"] = projection
            self.tensors[f"{moment}/norm/{name}"] = norm
        size = sum(array.nbytes for array in state.values())
        if size <= self.room[0]:
            self.room[0] -= size
            self.tensors |= {f"{moment}/state/{name}": array for name, array in state.items()}


def write_golden(
    folder: Path, student: PreTrainedModel, manifest: Manifest, form: DecoderForm | None = None
) -> dict[str, str]:
    """Write golden/ into a bundle that is being made; returns what each file holds, for the manifest.

    `student` is float32 (with precision fp16 its weights are rounded in place first); tokenizer, processor.json and
    the manifest's model facts and graphs must be there already.
    """
    folder, precision = Path(folder), manifest.precision
    (folder / "golden").mkdir(exist_ok=True)
    if form is None:
        round_student(student, precision)
    else:
        form = stored_form(form, precision)
        round_vision(student, precision)
    stored = "weights {weights}, products {activations}, state {state}".format(
        **{"activations": "fp32", "state": "fp32", **precision}
    )
    processor = Processor.from_folder(folder)
    metadata = {
        "format": "linmu-golden", "format_version": golden.FORMAT_VERSION, "seed": golden.SEED,
        "rules": "SHAKE-256 of 'seed:label'; even roll-out steps take the reference's choice, odd ones a seeded id",
        "weights_hash": manifest.model.weights_hash, "reference": f"student, {stored}, eager step form",
    }  # fmt: skip
    with StudentRunner(student, precision=precision, form=form) as runner:
        twin = StudentRunner(student, runner)
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
        room = [int(max(SHARE * weights, LEAST)) // 2]
        graphs, rollout = _Vectors(room, Projector()), _Vectors(room, Projector())
        player, other = _graph_vectors(graphs, (runner, twin), manifest, processor)
        start = graphs.tensors["prefill/logits"]
        _rollout(rollout, (player, other), start, manifest, golden.ROLLOUT_STEPS, runner.quantum)
        save_file(_compact(graphs.tensors), folder / golden.GRAPHS_FILE, metadata)
        save_file(_compact(rollout.tensors), folder / golden.ROLLOUT_FILE, metadata)
        prompts = _prompts(folder, (runner, twin), manifest, processor)
    (folder / golden.PROMPTS_FILE).write_text(json.dumps({"prompts": prompts}, indent=1, ensure_ascii=False) + "\n")
    return {name: holds for name, holds in HOLDS.items() if (folder / name).exists()}


def _compact(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _graph_vectors(out: _Vectors, runners: Pair, manifest: Manifest, processor: Processor) -> Players:
    """One vector per graph; returns the players that stand behind the prefill vector."""
    runner = runners[0]
    ids = text_ids(processor)
    out.tensors |= {"token_embedding/input_ids": ids, "token_embedding/inputs_embeds": runner.embed(ids)}
    if runner.tower is not None:
        features, other = (one.encode(vision_call(runner.tower.facts)) for one in runners)
        out.tensors["vision/embeddings"] = features.embeddings
        if quantum := runner.vision_quantum:
            noise = logits_noise(features.embeddings, other.embeddings, quantum)
            if features.deepstack is not None and other.deepstack is not None:
                noise = max(noise, logits_noise(features.deepstack, other.deepstack, quantum))
            out.tensors["vision/noise"] = np.array((noise, 0.0), np.float32)
        if features.deepstack is not None:
            out.tensors["vision/deepstack"] = features.deepstack
    text = ModelInputs(ids, "")
    _prefill_vector(out, "text", text, runners, manifest)
    inputs = text if runner.tower is None else picture_inputs(processor, manifest)
    players = _prefill_vector(out, "prefill", inputs, runners, manifest)
    start = [player.save() for player in players]
    token = int(out.tensors["prefill/logits"].argmax())
    out.tensors["step/input_ids"] = np.array([token], np.int64)
    _result(out, "step", players, [player.step(token).copy() for player in players], runner.quantum)
    for player, saved in zip(players, start, strict=True):
        player.restore(saved)
    return players


def _result(out: _Vectors, name: str, players: Players, logits: list[np.ndarray], quantum: float) -> None:
    """Logits, states and noise of one call."""
    state, other = (player.state() for player in players)
    noise = noise_between(logits[0], state, logits[1], other, quantum)
    out.tensors |= {f"{name}/logits": logits[0], f"{name}/noise": np.array(noise, np.float32)}
    out.snapshot(name, state)


def _prefill_vector(out: _Vectors, name: str, inputs: ModelInputs, runners: Pair, manifest: Manifest) -> Players:
    """Ids, grids and embeddings (vision rows seeded, on the scale of the table) -> logits and states."""
    embeds = runners[0].embed(inputs.input_ids)
    vision = vision_rows(place_prompt(inputs, manifest))
    embeds[vision] = seeded_normal(f"{name}.vision", (len(vision), embeds.shape[1])) * embeds.std()
    piece, placed = golden_piece(inputs, manifest, embeds, name)
    players = RunnerPlayer(runners[0], manifest), RunnerPlayer(runners[1], manifest)
    logits = [player.prefill(piece, placed.next_position).copy() for player in players]
    grids = [grid for item in inputs.media for grid in item.tiles]
    out.tensors |= {
        f"{name}/input_ids": inputs.input_ids, f"{name}/inputs_embeds": embeds,
        f"{name}/grids": np.array(grids, np.int64).reshape(-1, 3),
    }  # fmt: skip
    _result(out, name, players, logits, runners[0].quantum)
    return players


def _rollout(
    out: _Vectors, players: Players, logits: np.ndarray, manifest: Manifest, steps: int, quantum: float
) -> None:
    """Teacher-forced tokens behind the prefill vector: logits and states of every step, all states at the end."""
    vocab = manifest.model.vocab_size
    rules = manifest.model.prompt_rules
    random = forced_ids(vocab, steps, [rules[name] for name in MEDIA_IDS if rules.get(name) is not None])
    kept, sign = sampled_ids(vocab), Projector()
    rows: dict[str, list[Any]] = {}
    for step in range(steps):
        token = forced_token(step, int(logits.argmax()), random)
        logits, other = (player.step(token) for player in players)
        state = players[0].state()
        projection, _ = sign.rows(logits[None])
        row = {
            "tokens": np.int64(token), "logits": logits[kept], "std": logits.std(), "best": logits.argmax(),
            "gap": np.float32(top_gap(logits)), "logits_projection": projection[0],
            "noise": np.array(noise_between(logits, state, other, players[1].state(), quantum), np.float32),
        }  # fmt: skip
        for name, (projection, norm) in out.projector.state(state).items():
            row |= {f"projection/{name}": projection, f"norm/{name}": norm}
        for name, value in row.items():
            rows.setdefault(name, []).append(np.array(value))
    out.tensors |= {f"steps/{name}": np.stack(values) for name, values in rows.items()}
    # what went into the state stays there: later steps are no more certain than earlier ones
    out.tensors["steps/noise"] = np.maximum.accumulate(out.tensors["steps/noise"])
    out.tensors |= {"steps/ids": kept, "end/logits": logits.copy()}
    out.snapshot("end", state)


def _prompts(folder: Path, runners: Pair, manifest: Manifest, processor: Processor) -> list[dict[str, Any]]:
    """A text prompt, and one with the synthetic picture, each with its greedy answer."""
    found = [_answer("text", golden.TEXT_PROMPT, (), folder, runners, manifest, processor)]
    if runners[0].tower is not None:
        golden.synthetic_picture().save(folder / golden.PICTURE_FILE)
        pictures = (golden.PICTURE_FILE,)
        found.append(_answer("picture", golden.PICTURE_PROMPT, pictures, folder, runners, manifest, processor))
    return found


def _answer(name, prompt, pictures, folder, runners: Pair, manifest: Manifest, processor: Processor) -> dict[str, Any]:
    inputs = processor.encode(prompt, [folder / file for file in pictures])
    players = [RunnerPlayer(runner, manifest, inputs) for runner in runners]
    (logits, other), tokens, gaps, noise = (player.start() for player in players), [], [], [0.0]
    for _ in range(golden.NEW_TOKENS):
        tokens.append(int(logits.argmax()))
        gaps.append(top_gap(logits))
        noise.append(max(noise[-1], logits_noise(logits, other, runners[0].quantum)))
        if tokens[-1] in processor.eos_token_ids:
            break
        logits, other = (player.step(tokens[-1]) for player in players)
    pixels = Projector()
    spoken = [token for token in tokens if token not in processor.eos_token_ids]
    return {
        "name": name, "prompt": prompt, "images": list(pictures), "max_new_tokens": golden.NEW_TOKENS,
        "input_ids": inputs.input_ids.tolist(),
        "pixels": [pixel_print(call, pixels) for call in inputs.vision_calls],
        "token_ids": tokens, "gaps": gaps, "noise": noise[1:], "text": processor.decode(spoken),
    }  # fmt: skip
