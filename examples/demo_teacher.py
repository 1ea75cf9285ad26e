"""Train the demo's teacher from scratch: a SmolVLM of 3.7M parameters on the demo's questions (examples.questions).

    python examples/demo_teacher.py out/demo-teacher [--steps 6800]

Two CPU cores, bfloat16, about two and a half hours; `--resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from training import Conversations, train  # noqa: E402

from examples.questions.generate import SCENES, TASKS, samples  # noqa: E402
from examples.questions.stills import Scene  # noqa: E402

SIDE, PATCH, SHUFFLE = 80, 8, 2
VOCABULARY = 512
SPECIAL = ("<pad>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>")
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
STILLS = {"digit": 0.2, "number": 0.3, "reading": 0.5}
CLIPS = {"motion": 0.3, "order": 0.4, "events": 0.3}
HARD_STILLS = {"digit": 0.1, "number": 0.3, "reading": 0.6}
LAST_STILLS = {"digit": 0.05, "number": 0.2, "reading": 0.75}
HARD_CLIPS = {"motion": 0.45, "order": 0.15, "events": 0.4}
LISTS, FEW_LISTS = (12, {"listing": 1.0}), (4, {"listing": 1.0})
LATE_CLIPS = {"motion": 0.8, "order": 0.1, "events": 0.1}
# (first step, what an optimiser step takes one of each: (conversations, {scene: share})). Single pictures first: a clip
# costs as much as five of them and teaches little while the vision tower is blind. What is learned late comes last.
PHASES = (
    (0, ((20, STILLS), (14, {"objects": 1.0}), (20, STILLS), LISTS, (20, STILLS))),
    (1200, ((20, STILLS), (10, {"objects": 1.0}), (6, {"pictures": 1.0}), (6, CLIPS), LISTS)),
    (2000, ((22, HARD_STILLS), (20, {"objects": 1.0}), (6, {"pictures": 1.0}), (6, HARD_CLIPS), LISTS)),
    (3200, ((22, HARD_STILLS), (22, {"search": 1.0}), (8, {"pictures": 1.0}), (6, LATE_CLIPS), LISTS)),
    (4600, ((16, HARD_STILLS), (28, {"colors": 1.0}), (14, {"which": 1.0}), (5, LATE_CLIPS), FEW_LISTS)),
    (5200, ((20, HARD_STILLS), (20, {"search": 1.0}), (20, {"which": 1.0}), (4, LATE_CLIPS), FEW_LISTS)),
    (5800, ((36, LAST_STILLS), (28, {"counts": 0.8, "objects": 0.2}), (8, {"which": 1.0}), (5, CLIPS), FEW_LISTS)),
)
# Scenes that ask some questions first: (scene, whether a question is one of them, least number of them)
FOCUSED = {
    "search": ("objects", lambda question: question.task in ("color", "count"), 0),
    "counts": ("objects", lambda question: question.task == "count", 3),
    "colors": ("objects", lambda question: question.task == "color", 3),
    "which": ("pictures", lambda question: question.prompt.startswith("Which"), 2),
}
PASSES = 5
WARMUP, SLOW, STRAIGHT = 150, 6000, 1200  # steps: warm-up, length of the cosine that is left at STRAIGHT
# then straight lines: (step, share of the learning rate), and 0 at the end
CORNERS = ((1200, 0.9226), (2000, 0.6590), (3200, 0.4119), (3400, 0.6), (5800, 0.6))


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE in which every capital letter and digit is a token, so that reading is spelling."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    corpus = [f"User: {s.question.prompt}\nAssistant: {s.question.answer}" for s in _text_samples()]
    corpus += ["You are provided the following series of five frames from a 0:00:04 [H:MM:SS] video.\n\nFrame from 00:"]
    corpus += ["six seven eight four three"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(corpus, trainer)
    return core


def _text_samples():
    return samples("train", 99, 40 * len(TASKS))


def make_folder(folder: Path) -> hf.SmolVLMForConditionalGeneration:
    """Write tokenizer, processor and chat template; returns the untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "tokenizer.json"
    core = Tokenizer.from_file(str(written)) if written.exists() else make_tokenizer()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end_of_utterance>",
        bos_token="<|im_start|>",
        additional_special_tokens=list(SPECIAL[3:]),
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    edge = {"longest_edge": SIDE}
    preprocessor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": False,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_image_size": edge,
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": edge,
        "video_sampling": {"fps": 1, "max_frames": 256, "video_size": edge},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": (SIDE // PATCH // SHUFFLE) ** 2, "processor_class": "SmolVLMProcessor"}) + "\n"
    )
    ids = {name: core.token_to_id(name) for name in SPECIAL}
    config = hf.SmolVLMConfig(
        vision_config=dict(
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=4,
            num_attention_heads=5,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=dict(
            model_type="llama",
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=core.get_vocab_size(),
            max_position_embeddings=8192,
            pad_token_id=ids["<pad>"],
            bos_token_id=ids["<|im_start|>"],
            eos_token_id=ids["<end_of_utterance>"],
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        ),
        scale_factor=SHUFFLE,
        image_token_id=ids["<image>"],
        tie_word_embeddings=True,
        pad_token_id=ids["<pad>"],
    )
    torch.manual_seed(0)
    model = hf.SmolVLMForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(
        eos_token_id=ids["<end_of_utterance>"], pad_token_id=ids["<pad>"], bos_token_id=ids["<|im_start|>"]
    )
    model.save_pretrained(folder)
    return model


def scenes(index: int, seed: int) -> list[Scene]:
    """The scenes of micro-batch `index`."""
    rng = np.random.default_rng([seed, index])
    step, place = divmod(index, PASSES)
    count, shares = next(mix for start, mix in reversed(PHASES) if step >= start)[place]
    return [make(name, rng) for name in rng.choice(list(shares), count, p=list(shares.values()))]


def make(name: str, rng: np.random.Generator) -> Scene:
    """A training scene of SCENES or FOCUSED."""
    if name not in FOCUSED:
        return SCENES[name](rng, "train")
    base, first, least = FOCUSED[name]
    while True:
        scene = SCENES[base](rng, "train")
        if sum(map(first, scene.questions)) >= least:
            return replace(scene, questions=tuple(sorted(scene.questions, key=lambda question: not first(question))))


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up, the beginning of a slow cosine, then straight lines to zero."""
    if step < WARMUP:
        return step / WARMUP
    if step < STRAIGHT:
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (SLOW - WARMUP)))
    return float(np.interp(step, *zip(*CORNERS, (steps, 0.0), strict=True)))


def main() -> None:
    """Train, and save the last weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    model = make_folder(chosen.out)
    data = Conversations(chosen.out, chosen.steps * PASSES, partial(scenes, seed=chosen.seed))
    train(
        model,
        data,
        chosen.out,
        chosen.steps,
        PASSES,
        chosen.learning_rate,
        partial(rate, steps=chosen.steps),
        chosen.seed,
        chosen.resume,
    )


if __name__ == "__main__":
    main()
