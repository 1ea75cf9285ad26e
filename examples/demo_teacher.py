"""Train the demo's teacher from scratch: a SmolVLM of 3.8M parameters on the questions of linmu.demo.

    python examples/demo_teacher.py out/demo-teacher [--steps 4000]

Two CPU cores, bfloat16 autocast. Every micro-batch is made from (seed, step), so a run can be stopped and resumed
(--resume). Conversations of several turns share a picture: the vision tower's work then serves several answers.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset

from linmu.demo.generate import SCENES, TASKS, samples
from linmu.demo.stills import Scene
from linmu.processing import Processor
from linmu.processing.convert import write_processor

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
# An optimiser step takes one of each: (conversations in it, {scene: share}). Single pictures first: a clip costs as
# much as five of them and teaches little while the vision tower is blind.
FIRST = ((20, STILLS), (14, {"objects": 1.0}), (20, STILLS), (12, {"recall": 1.0}), (20, STILLS))
THEN = ((20, STILLS), (10, {"objects": 1.0}), (6, {"pictures": 1.0}), (6, CLIPS), (10, {"recall": 1.0}))
FIRST_STEPS = 1200
PASSES = len(FIRST)
WARMUP, SLOW = 150, 6000  # steps
TURNS = 4


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
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(corpus, trainer)
    return core


def _text_samples():
    return samples("train", 99, 40 * len(TASKS))


def make_folder(folder: Path) -> hf.SmolVLMForConditionalGeneration:
    """Write tokenizer, processor and chat template; returns the untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    core = make_tokenizer()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end_of_utterance>", bos_token="<|im_start|>",
        additional_special_tokens=list(SPECIAL[3:]), padding_side="left", model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    edge = {"longest_edge": SIDE}
    preprocessor = {
        "image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True, "do_image_splitting": False, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_image_size": edge, "resample": 1,
        "rescale_factor": 1 / 255, "size": edge,
        "video_sampling": {"fps": 1, "max_frames": 256, "video_size": edge},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": (SIDE // PATCH // SHUFFLE) ** 2, "processor_class": "SmolVLMProcessor"}) + "\n"
    )
    ids = {name: core.token_to_id(name) for name in SPECIAL}
    config = hf.SmolVLMConfig(
        vision_config=dict(
            hidden_size=160, intermediate_size=480, num_hidden_layers=4, num_attention_heads=5, image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=dict(
            model_type="llama", hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
            num_key_value_heads=2, head_dim=32, vocab_size=core.get_vocab_size(), max_position_embeddings=8192,
            pad_token_id=ids["<pad>"], bos_token_id=ids["<|im_start|>"], eos_token_id=ids["<end_of_utterance>"],
            rms_norm_eps=1e-5, tie_word_embeddings=True,
        ),
        scale_factor=SHUFFLE, image_token_id=ids["<image>"], tie_word_embeddings=True, pad_token_id=ids["<pad>"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.SmolVLMForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(
        eos_token_id=ids["<end_of_utterance>"], pad_token_id=ids["<pad>"], bos_token_id=ids["<|im_start|>"]
    )
    model.save_pretrained(folder)
    return model


def conversation(scene: Scene, turns: int) -> list[dict]:
    """Questions and answers about one scene; its media stand in the first message."""
    messages: list[dict] = []
    for index, question in enumerate(scene.questions[:turns]):
        media = [] if index else [{"type": "image"}] * len(scene.images)
        media += [{"type": "video"}] if scene.frames is not None and not index else []
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": question.prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


class Conversations(Dataset):
    """Micro-batch i, made from the seed and i alone; kinds take turns."""

    def __init__(self, folder: Path, steps: int, seed: int):
        processor_folder = folder / "processor"
        processor_folder.mkdir(exist_ok=True)
        write_processor(folder, processor_folder)
        self.processor = Processor.from_folder(processor_folder)
        self.steps, self.seed = steps, seed
        tokenizer = self.processor.tokenizer
        self.pad, self.end = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<end_of_utterance>")
        self.header = tokenizer.encode("\nAssistant:", add_special_tokens=False).ids

    def __len__(self) -> int:
        return self.steps * PASSES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        step, place = divmod(index, PASSES)
        count, shares = (FIRST if step < FIRST_STEPS else THEN)[place]
        names = rng.choice(list(shares), count, p=list(shares.values()))
        rows = [self._encode(SCENES[name](rng, "train")) for name in names]
        width = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((count, width), self.pad)
        labels = torch.full((count, width), -100)
        for row, (tokens, mask, _) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)][mask] = tokens[mask]
        batch = {"input_ids": ids, "labels": labels}  # padding on the right: a causal model needs no mask
        most = max(len(pixels) for _, _, pixels in rows)
        if most:
            batch["pixel_values"] = torch.zeros(count, most, 3, SIDE, SIDE)  # the model drops all-zero pictures
            for row, (_, _, pixels) in enumerate(rows):
                batch["pixel_values"][row, : len(pixels)] = pixels
        return batch

    def _encode(self, scene: Scene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids [S], which of them are answers [S], pixels [n,3,SIDE,SIDE]."""
        clip = {} if scene.frames is None else {"video": scene.frames, "video_fps": 1.0}
        inputs = self.processor.encode(conversation(scene, TURNS), scene.images, add_generation_prompt=False, **clip)
        ids = inputs.input_ids.tolist()
        mask, size = torch.zeros(len(ids), dtype=torch.bool), len(self.header)
        for start in range(len(ids)):
            if ids[start : start + size] == self.header:
                mask[start + size : ids.index(self.end, start) + 1] = True
        pixels = inputs.vision_calls[0]["pixel_values"] if inputs.media else np.zeros((0, 3, SIDE, SIDE), np.float32)
        return torch.from_numpy(inputs.input_ids.astype(np.int64)), mask, torch.from_numpy(pixels)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for everything else; one schedule drives both."""

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float):
        named = dict(model.named_parameters())
        inner = {n for n, p in named.items() if ".layers." in n and p.ndim == 2}
        matrices, rest = [named[n] for n in sorted(inner)], [p for n, p in named.items() if n not in inner]
        options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.parts = [
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), **options),
        ]
        super().__init__([*matrices, *rest], options)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        """One step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """Both states."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        """Load both states."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up, the beginning of a slow cosine, then a straight line to zero."""

    def cosine(at: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * (at - WARMUP) / (SLOW - WARMUP)))

    if step < WARMUP:
        return step / WARMUP
    if step < FIRST_STEPS:
        return cosine(step)
    return cosine(FIRST_STEPS) * max(0.0, (steps - step) / (steps - FIRST_STEPS))


class Curve(hf.TrainerCallback):
    """One CSV line an interval, and a line on the terminal."""

    def __init__(self, path: Path):
        before = float(path.read_text().splitlines()[-1].split(",")[1]) if path.exists() else 0.0
        self.path, self.started = path, time.perf_counter() - before

    def on_log(self, arguments, state, control, logs=None, **_) -> None:
        """Append step, seconds, loss and learning rate."""
        if logs and "loss" in logs:
            new = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["step", "seconds", "loss", "learning_rate"])
                seconds = round(time.perf_counter() - self.started, 1)
                writer.writerow([state.global_step, seconds, logs["loss"], logs["learning_rate"]])


def main() -> None:
    """Train, and save the last weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    model = make_folder(chosen.out)
    model.set_attn_implementation("eager")  # twice as fast as the fused kernel's backward at these lengths on a CPU
    data = Conversations(chosen.out, chosen.steps, chosen.seed)
    arguments = hf.TrainingArguments(
        output_dir=str(chosen.out / "training"), max_steps=chosen.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=PASSES, learning_rate=chosen.learning_rate,
        lr_scheduler_type="cosine", max_grad_norm=1.0, bf16=True, use_cpu=True,
        logging_steps=20, save_steps=200, save_total_limit=2, dataloader_num_workers=1, report_to=[],
        seed=chosen.seed, remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    optimizer = MuonAndAdamW(model, chosen.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, chosen.steps))
    trainer = hf.Trainer(
        model=model, optimizers=(optimizer, schedule), args=arguments, train_dataset=data,
        data_collator=lambda batches: batches[0], callbacks=[Curve(chosen.out / "curve.csv")],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=chosen.resume or None)
    model.float().save_pretrained(chosen.out)


if __name__ == "__main__":
    main()
