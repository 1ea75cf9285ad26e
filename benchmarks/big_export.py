"""Seconds and peak memory of convert, calibrate and export on a large random model, each in a process of its own.

A teacher with the sizes of Qwen2.5-VL-3B (or a smaller one), random bfloat16 weights in shards and a tiny tokenizer is
written to a scratch folder, converted, calibrated on noise, and exported. What such a model answers means nothing; what
it costs is the same. The last column is the peak over 1.2 times the student's float16 weights plus 2 GB: below 1 is
what linmu promises. TensorRT's compiler is left out (--no-compile-check); it needs about 4 times a graph's weights.
Run: python benchmarks/big_export.py SCRATCH --size 3B --presets int4,fp16
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import available_bytes, finish, machine, say, table  # noqa: E402
from linmu.formats.model_files import INDEX_NAME, find_weights  # noqa: E402
from tests.tiny import qwen_settings, tiny_tokenizer  # noqa: E402
from tests.tiny_processors import tiny_processor  # noqa: E402

FAMILY = "qwen2_5_vl"
SHARD_BYTES = 2 * 10**9
VOCAB = 151936
POOL = 2**24 + 3  # random numbers
SIZES = {  # 3B: the published sizes of Qwen2.5-VL-3B; 0.5B: Qwen2.5-0.5B with a smaller tower
    "0.5B": {
        "text": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
        "sections": [8, 12, 12],
        "vision": {
            "depth": 12,
            "hidden_size": 640,
            "intermediate_size": 1710,
            "num_heads": 8,
            "fullatt_block_indexes": [5, 11],
        },
    },
    "3B": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
        "sections": [16, 24, 24],
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
}


def write_teacher(size: str, folder: Path) -> None:
    """A random teacher, tensor by tensor: no more than one shard is in memory."""
    wanted, tokenizer = SIZES[size], tiny_tokenizer(FAMILY)
    text = {
        "vocab_size": VOCAB,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **wanted["text"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": wanted["sections"]},
    }
    vision = {"out_hidden_size": text["hidden_size"], "patch_size": 14, "window_size": 112, **wanted["vision"]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, dtype="bfloat16", **qwen_settings(tokenizer)
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)
    tiny_processor(FAMILY, tokenizer).save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    _write_shards(folder, {name: value.shape for name, value in model.named_parameters()})


def _write_shards(folder: Path, shapes: dict[str, torch.Size]) -> None:
    generator, shard, count, places = torch.Generator().manual_seed(0), {}, 0, {}
    pool = torch.randn(POOL, generator=generator)  # pieces of it, cut anywhere: billions of new ones would take minutes
    for name, shape in shapes.items():
        start = int(torch.randint(POOL // 2, (1,), generator=generator))
        noise = pool[start:].repeat(1 + shape.numel() // (POOL // 2))[: shape.numel()].view(shape)
        value = noise / noise[0].numel() ** 0.5 if len(shape) > 1 else (1 - ("bias" in name)) + 0.1 * noise
        shard[name] = value.bfloat16()
        full = sum(x.nbytes for x in shard.values()) > SHARD_BYTES
        if full or len(places) + len(shard) == len(shapes):
            count += 1
            file = f"model-{count:05d}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            places |= dict.fromkeys(shard, file)
            shard = {}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}))


CHILD = """
import json, sys, time
from linmu.cli import main
from linmu.system.meter import peak_bytes
start = time.perf_counter()
code = main(sys.argv[1:])
print(json.dumps({"code": code, "seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}))
"""


def command(*arguments: str) -> dict:
    """One linmu command in a process of its own: {"seconds", "peak_bytes"}; raises when it fails."""
    say("linmu " + " ".join(arguments))
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if done.returncode or found["code"]:
        raise SystemExit(f"linmu {arguments[0]} failed")
    return found


def main() -> None:
    """Run all commands and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="an empty folder with room for 6 times the float16 weights")
    parser.add_argument("--size", choices=SIZES, default="0.5B")
    parser.add_argument("--presets", default="int4,fp16", help="of target jetson, with commas between")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the folders where they are")
    args = parser.parse_args()
    teacher, student, calib = (args.scratch / name for name in ("teacher", "student", "calib.safetensors"))
    rows: list[dict] = []
    if not teacher.exists():
        start = time.perf_counter()
        teacher.mkdir(parents=True)
        write_teacher(args.size, teacher)
        say(f"teacher written in {time.perf_counter() - start:.0f} s")

    def measure(name: str, *arguments: str) -> None:
        found = command(*arguments)
        half = 2 * find_weights(student).parameters
        limit = 1.2 * half + 2e9
        rows.append(
            {
                "command": name,
                "seconds": found["seconds"],
                "peak_gb": found["peak_bytes"] / 1e9,
                "fp16_gb": half / 1e9,
                "limit_gb": limit / 1e9,
                "peak/limit": found["peak_bytes"] / limit,
                "free_gb": available_bytes() / 1e9,
            }
        )
        say(table(rows))

    if not student.exists():
        measure("convert", "convert", str(teacher), "-o", str(student))
    if not calib.exists() and any(preset not in ("none", "fp16") for preset in args.presets.split(",")):
        short = ("--samples", str(args.samples), "--decode-tokens", "2", "--long-tokens", "4", "--allow-random")
        measure("calibrate", "calibrate", str(student), "-o", str(calib), *short)
    for preset in args.presets.split(","):
        bundle = args.scratch / f"bundle-{preset}"
        record = () if preset in ("none", "fp16") else ("--calib", str(calib))
        measure(
            f"export {preset}",
            "export",
            str(student),
            "--target",
            "jetson",
            "--quant",
            preset,
            *record,
            "--no-compile-check",
            "--overwrite",
            "-o",
            str(bundle),
        )
        if not args.keep:
            shutil.rmtree(bundle)
    if not args.keep:
        shutil.rmtree(teacher)
        shutil.rmtree(student)
        calib.unlink(missing_ok=True)
    finish({"size": args.size, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
