"""Writing golden vectors: everything a device needs to prove a bundle right, made from the student, never from a graph.

    golden/graphs.safetensors   one call of each graph: inputs, outputs, and a snapshot of all states
    golden/rollout.safetensors  a teacher-forced roll-out behind the prefill vector: tokens, logits, states per step
    golden/prompts.json         prompts (and picture.png) with token ids, pixels, and the greedy answer
The seeded rules are in linmu/verification/golden.py. Full states are written as long as they fit into the budget.
Where inputs are rounded by block, graphs and roll-out are those of the same integers with float inputs (verification
runs the graphs so: linmu.verification.float_inputs); prompts are answered with rounded ones.
Where they are rounded otherwise, text and roll-out are of tokens that no tie makes uncertain
(linmu/export/bundles/ties.py), and a vector that its ties make too uncertain to show anything is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from linmu.export.bundles.ties import SureTokens, Ties
from linmu.formats.manifest import WEIGHT_SUFFIXES, Manifest
from linmu.processing import ModelInputs, Processor
from linmu.reference.eager import StudentRunner, round_vision, stored_form
from linmu.runtimes.prompt import place_prompt
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.verification import golden
from linmu.verification.compare import (
    NOISE_ROOM,
    WIDEST_LOGITS,
    WIDEST_STATE,
    Tolerance,
    logits_noise,
    noise_between,
    top_gap,
)
from linmu.verification.golden import Projector, forced_ids, forced_token, sampled_ids, seeded_normal
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

Runners = tuple[StudentRunner, ...]  # the reference, and its twins that tell the noise
Players = tuple[RunnerPlayer, ...]
TEXT_TOKENS = (9, 9, 7, 5, 3, 2, 1)  # of the text vector where tokens are chosen: fewer in later tries
SHOWN = 0.5  # of the widest tolerance: a vector that is more uncertain is left out

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

    def empty(self) -> _Vectors:
        """The same room and signs for a vector that may not be kept."""
        return _Vectors(list(self.room), self.projector)

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

    `student` is float32 or mapped (with precision fp16 its tower is rounded in place first); tokenizer, processor.json
    and the manifest's model facts and graphs must be there already.
    """
    folder, precision = Path(folder), manifest.precision
    (folder / "golden").mkdir(exist_ok=True)
    form = replace(stored_form(decoder_form(student) if form is None else form, precision), scratch=folder)
    round_vision(student, precision)
    steps, new_tokens = golden.lengths(manifest.model.parameters)
    stored = f"weights {precision.weights}, products {precision.activations}, state {precision.state}"
    processor = Processor.from_folder(folder)
    metadata = {
        "format": "linmu-golden",
        "format_version": golden.FORMAT_VERSION,
        "seed": golden.SEED,
        "rules": "SHAKE-256 of 'seed:label'; even roll-out steps take the reference's choice, odd ones a seeded id",
        "weights_hash": manifest.model.weights_hash,
        "reference": f"student, {stored}, eager step form",
    }
    if steps < golden.ROLLOUT_STEPS:
        metadata["lengths"] = f"{steps} steps, {new_tokens} new tokens: fewer for a large model"
    opened = float_inputs(form) if (by_block := rounds_by_block(form)) else form
    if by_block:
        metadata["inputs"] = "float"
    with StudentRunner(student, precision=precision, form=opened) as runner:
        runners = _with_twins(student, runner)
        sure = SureTokens(runners, _media(manifest)) if runner.rounds else None
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
        room = [int(max(SHARE * weights, LEAST)) // 2]
        graphs, rollout = _Vectors(room, Projector()), _Vectors(room, Projector())
        start = golden.START if sure is None else "text"
        players = _graph_vectors(graphs, runners, manifest, processor, sure)
        logits = graphs.tensors.get(f"{start}/logits", np.zeros(manifest.model.vocab_size, np.float32))
        _rollout(rollout, players, logits, manifest, steps, runner.quantum, sure)
        if sure is not None:
            metadata |= {"start": start, "sure_steps": str(len(rollout.tensors["steps/tokens"]))}
        save_file(_compact(graphs.tensors), folder / golden.GRAPHS_FILE, metadata)
        save_file(_compact(rollout.tensors), folder / golden.ROLLOUT_FILE, metadata)
        if by_block:
            prompts = _rounded_prompts(folder, student, form, manifest, processor, new_tokens)
        else:
            prompts = _prompts(folder, runners, manifest, processor, new_tokens)
    (folder / golden.PROMPTS_FILE).write_text(json.dumps({"prompts": prompts}, indent=1, ensure_ascii=False) + "\n")
    return {name: holds for name, holds in HOLDS.items() if (folder / name).exists()}


def rounds_by_block(form: DecoderForm) -> bool:
    """Whether inputs are rounded, all by block: the same graphs can then be run without."""
    return {format.input for format in form.quantized.values()} - {""} == {"int8_blocks"}


def float_inputs(form: DecoderForm) -> DecoderForm:
    """The same integers behind inputs that are not rounded."""
    return replace(form, quantized={name: format.float_input for name, format in form.quantized.items()})


def _with_twins(student: PreTrainedModel, runner: StudentRunner) -> Runners:
    return (runner, *(Ties().twins(student, runner) if runner.rounds else [StudentRunner(student, runner)]))


def _rounded_prompts(
    folder: Path, student: PreTrainedModel, form: DecoderForm, manifest: Manifest, processor: Processor, new_tokens: int
) -> list[dict[str, Any]]:
    """Prompts are answered as users' are: with inputs rounded."""
    with StudentRunner(student, precision=manifest.precision, form=form) as runner:
        return _prompts(folder, _with_twins(student, runner), manifest, processor, new_tokens)


def _compact(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _graph_vectors(
    out: _Vectors, runners: Runners, manifest: Manifest, processor: Processor, sure: SureTokens | None
) -> Players:
    """One vector per graph; returns the players that stand behind the one that steps go on from."""
    runner = runners[0]
    ids = text_ids(processor)
    out.tensors |= {"token_embedding/input_ids": ids, "token_embedding/inputs_embeds": runner.embed(ids)}
    if runner.tower is not None:
        features, other = (one.encode(vision_call(runner.tower.facts)) for one in runners[:2])
        out.tensors["vision/embeddings"] = features.embeddings
        if quantum := runner.vision_quantum:
            noise = logits_noise(features.embeddings, other.embeddings, quantum)
            if features.deepstack is not None and other.deepstack is not None:
                noise = max(noise, logits_noise(features.deepstack, other.deepstack, quantum))
            out.tensors["vision/noise"] = np.array((noise, 0.0), np.float32)
        if features.deepstack is not None:
            out.tensors["vision/deepstack"] = features.deepstack
    inputs = ModelInputs(ids, "") if runner.tower is None else picture_inputs(processor, manifest)
    if sure is None:
        _prefill_vector(out, "text", ModelInputs(ids, ""), runners, manifest)
        players = _prefill_vector(out, "prefill", inputs, runners, manifest)
        token = int(out.tensors["prefill/logits"].argmax())
    else:
        text, players, token = _sure_text(out, ids, runners, manifest, sure)
        _add_if_sure(out, text, "text")
        pictures = out.empty()
        _prefill_vector(pictures, "prefill", inputs, runners, manifest)
        _add_if_sure(out, pictures, "prefill")
    start, vectors = [player.save() for player in players], out.empty()
    token, logits = _step(players, token, "step", sure and sure.fresh())
    vectors.tensors["step/input_ids"] = np.array([token], np.int64)
    _result(vectors, "step", players, logits, runner.quantum)
    _add_if_sure(out, vectors, "step", sure is None)
    for player, saved in zip(players, start, strict=True):
        player.restore(saved)
    return players


def _step(players: Players, token: int, label: str, sure: SureTokens | None) -> tuple[int, list[np.ndarray]]:
    """All players take a token -> it (where ties matter perhaps another one), all logits."""
    if sure is not None:
        return sure.step(players, token, label)
    return token, [player.step(token).copy() for player in players]


def _result(out: _Vectors, name: str, players: Players, logits: list[np.ndarray], quantum: float) -> None:
    """Logits, states and noise of one call."""
    state = players[0].state()
    noise = _noise(players, logits, state, quantum)
    out.tensors |= {f"{name}/logits": logits[0], f"{name}/noise": np.array(noise, np.float32)}
    out.snapshot(name, state)


def _noise(players: Players, logits: list[np.ndarray], state: dict[str, np.ndarray], quantum: float) -> np.ndarray:
    """(logits, state) noise [2]: the largest of all twins. Rounded inputs: nothing of a half product is in a state."""
    rounds = len(players) > 2
    noise = []
    for player, other in zip(players[1:], logits[1:], strict=True):
        near = noise_between(logits[0], state, other, player.state(), 0.0 if rounds else quantum)
        noise.append((logits_noise(logits[0], other, quantum), near[1]) if rounds else near)
    return np.max(noise, axis=0)


def _sure_text(
    out: _Vectors, ids: np.ndarray, runners: Runners, manifest: Manifest, sure: SureTokens
) -> tuple[_Vectors, Players, int]:
    """The text vector, of tokens that are sure one by one and then as one call (the surest of a few tries).

    Returns it with the players behind it and the token that comes next.
    """
    best: tuple[float, _Vectors, Players] | None = None
    for attempt, count in enumerate(TEXT_TOKENS):
        players, chosen = tuple(RunnerPlayer(runner, manifest) for runner in runners), list[int]()
        chooser = sure.fresh()
        for place in range(count):
            wish = int(ids[(place + attempt) % len(ids)])
            chosen.append(chooser.step(players, wish, f"text.{attempt}.{place}")[0])
        vectors = out.empty()
        players = _prefill_vector(vectors, "text", ModelInputs(np.array(chosen, np.int64), ""), runners, manifest)
        noise = float(np.max(vectors.tensors["text/noise"][1]))
        if best is None or noise < best[0]:
            best = noise, vectors, players
        if NOISE_ROOM * noise <= Tolerance().state:
            break
    assert best is not None
    return best[1], best[2], int(best[1].tensors["text/logits"].argmax())


def _add_if_sure(out: _Vectors, vectors: _Vectors, name: str, always: bool = False) -> None:
    """Take over a vector, unless its ties leave too much open."""
    low = vectors.tensors[f"{name}/noise"] <= SHOWN * np.array((WIDEST_LOGITS, WIDEST_STATE))
    if always or low.all():
        out.tensors |= vectors.tensors
        out.room[0] = vectors.room[0]


def _media(manifest: Manifest) -> list[int]:
    """Ids that stand for pictures: no roll-out has them."""
    rules = manifest.model.prompt_rules
    return [number for number in (getattr(rules, name) for name in MEDIA_IDS) if number is not None]


def _prefill_vector(out: _Vectors, name: str, inputs: ModelInputs, runners: Runners, manifest: Manifest) -> Players:
    """Ids, grids and embeddings (vision rows seeded, on the scale of the table) -> logits and states."""
    embeds = runners[0].embed(inputs.input_ids)
    vision = vision_rows(place_prompt(inputs, manifest))
    embeds[vision] = seeded_normal(f"{name}.vision", (len(vision), embeds.shape[1])) * embeds.std()
    piece, placed = golden_piece(inputs, manifest, embeds, name)
    players = tuple(RunnerPlayer(runner, manifest) for runner in runners)
    logits = [player.prefill(piece, placed.next_position).copy() for player in players]
    grids = [grid for item in inputs.media for grid in item.tiles]
    out.tensors |= {
        f"{name}/input_ids": inputs.input_ids,
        f"{name}/inputs_embeds": embeds,
        f"{name}/grids": np.array(grids, np.int64).reshape(-1, 3),
    }
    _result(out, name, players, logits, runners[0].quantum)
    if not runners[0].rounds:  # else ties move single positions, and nothing says which
        _hidden(out, name, runners)
    return players


def _hidden(out: _Vectors, name: str, runners: Runners) -> None:
    """Hidden states of every position of the last prefill call: projections, norms, and their noise."""
    hidden = [runner.hidden[0] for runner in runners]
    projection, norm = out.projector.rows(hidden[0])
    noise = max(logits_noise(hidden[0], other, runners[0].quantum) for other in hidden[1:])
    vectors = {"projection": projection, "norm": norm, "noise": np.array((noise, 0.0), np.float32)}
    out.tensors |= {f"{name}/hidden/{kind}": value for kind, value in vectors.items()}


def _rollout(
    out: _Vectors,
    players: Players,
    logits: np.ndarray,
    manifest: Manifest,
    steps: int,
    quantum: float,
    sure: SureTokens | None,
) -> None:
    """Teacher-forced tokens behind the prefill vector: logits and states of every step, all states at the end.

    Where tokens are chosen so that steps are sure, it ends with the last one that is.
    """
    vocab = manifest.model.vocab_size
    random = forced_ids(vocab, steps, _media(manifest))
    sample, sign = sampled_ids(vocab), Projector()
    rows: dict[str, list[Any]] = {}
    for step in range(steps):
        token = forced_token(step, int(logits.argmax()), random)
        token, all_logits = _step(players, token, str(step), sure)
        if sure is not None and sure.lost:
            break
        logits, state = all_logits[0], players[0].state()
        projection, _ = sign.rows(logits[None])
        row = {
            "tokens": np.int64(token),
            "logits": logits[sample],
            "std": logits.std(),
            "best": logits.argmax(),
            "gap": np.float32(top_gap(logits)),
            "logits_projection": projection[0],
            "noise": np.array(_noise(players, all_logits, state, quantum), np.float32),
        }
        for name, (projection, norm) in out.projector.state(state).items():
            row |= {f"projection/{name}": projection, f"norm/{name}": norm}
        for name, value in row.items():
            rows.setdefault(name, []).append(np.array(value))
    out.tensors |= {"steps/ids": sample, "steps/tokens": np.zeros(0, np.int64)}
    if not rows:
        return
    out.tensors |= {f"steps/{name}": np.stack(values) for name, values in rows.items()}
    # what went into the state stays there: later steps are no more certain than earlier ones
    out.tensors["steps/noise"] = np.maximum.accumulate(out.tensors["steps/noise"])
    out.tensors["end/logits"] = logits.copy()
    out.snapshot("end", state)


def _prompts(
    folder: Path, runners: Runners, manifest: Manifest, processor: Processor, new_tokens: int
) -> list[dict[str, Any]]:
    """A text prompt, and one with the synthetic picture, each with its greedy answer."""
    answers = [_answer("text", golden.TEXT_PROMPT, (), folder, runners, manifest, processor, new_tokens)]
    if runners[0].tower is not None:
        golden.synthetic_picture().save(folder / golden.PICTURE_FILE)
        pictures = (golden.PICTURE_FILE,)
        prompt = golden.PICTURE_PROMPT
        answers.append(_answer("picture", prompt, pictures, folder, runners, manifest, processor, new_tokens))
    return answers


def _answer(
    name, prompt, pictures, folder, runners: Runners, manifest: Manifest, processor: Processor, new_tokens: int
) -> dict[str, Any]:
    """A prompt and its greedy answer, as far as the reference's own noise lets anyone be held to it."""
    inputs = processor.encode(prompt, [folder / file for file in pictures])
    players = [RunnerPlayer(runner, manifest, inputs) for runner in runners]
    logits, most = [player.start() for player in players], new_tokens
    tokens, gaps, noise = list[int](), list[float](), [0.0]
    while len(tokens) < new_tokens:
        moved = max(noise[-1], *(logits_noise(logits[0], other, runners[0].quantum) for other in logits[1:]))
        gap = top_gap(logits[0])
        if tokens and moved > SHOWN * WIDEST_LOGITS and gap <= 2 * NOISE_ROOM * moved:  # anyone's guess from here on
            most = len(tokens)
            break
        tokens.append(int(logits[0].argmax()))
        gaps.append(gap)
        noise.append(moved)
        if tokens[-1] in processor.eos_token_ids:
            break
        logits = [player.step(tokens[-1]) for player in players]
    pixels = Projector()
    spoken = [token for token in tokens if token not in processor.eos_token_ids]
    return {
        "name": name,
        "prompt": prompt,
        "images": list(pictures),
        "max_new_tokens": most,
        "input_ids": inputs.input_ids.tolist(),
        "pixels": [pixel_print(call, pixels) for call in inputs.vision_calls],
        "token_ids": tokens,
        "gaps": gaps,
        "noise": noise[1:],
        "text": processor.decode(spoken),
    }
