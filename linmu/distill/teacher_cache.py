"""A teacher's outputs on disk, so that it need not be in memory while the student trains.

    CACHE/<key>/manifest.json             what the outputs belong to: teacher, data, processor, precision
    CACHE/<key>/<kind>/00012.safetensors  SHARD samples in the order of the data; a kind is whole when it has them all

Kinds: "layer" (inputs, outputs, rotary tables of the attention), "hidden", and "logits-<k>-<temperature>".
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.distill.batches import SampleDataset
from linmu.distill.losses import TopK
from linmu.distill.signals import LiveTeacher, Needs, Signals, model_inputs
from linmu.errors import InputError
from linmu.files.atomic import atomic_file, write_bytes
from linmu.model.modeling import decoder_layers

SHARD = 16
MANIFEST = "manifest.json"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class CacheKey:
    """What cached outputs belong to: hashes of teacher, data and processor, the tokens that count, the precision."""

    teacher: str
    data: str
    processor: str
    loss_on: str
    precision: str

    @property
    def name(self) -> str:
        """Folder of the outputs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class TeacherCache:
    """The cached outputs on one data set; `front` identifies what comes before the decoder, equal in both models."""

    def __init__(self, root: Path, key: CacheKey, data: SampleDataset, front: str):
        self.folder, self.key, self.data, self.front = Path(root) / key.name, key, data, front
        self.shards = -(-len(data) // SHARD)
        self._check()

    def _check(self) -> None:
        """Raise InputError when the cache was made with another vision tower or other embeddings."""
        path = self.folder / MANIFEST
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["front"] != self.front:
            raise InputError(
                f"the cache {self.folder} belongs to another student",
                fix="convert the student from the same teacher, or choose another cache",
            )

    def missing(self, needs: Sequence[Needs]) -> dict[str, list[int]]:
        """Kind -> numbers of the shards that are not there."""
        kinds = dict.fromkeys(kind for need in needs for kind in kinds_of(need))
        shards = {kind: [n for n in range(self.shards) if not self._shard(kind, n).is_file()] for kind in kinds}
        return {kind: numbers for kind, numbers in shards.items() if numbers}

    def forecast(self, teacher_config: Any, needs: Sequence[Needs]) -> int:
        """Bytes that are still to be written, at most."""
        text = teacher_config.get_text_config()
        wide = PRECISIONS[self.key.precision].itemsize
        per_layer, tokens = text.hidden_size * wide, self.data.lengths.tokens
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        total = 0
        for kind, numbers in self.missing(needs).items():
            count = int(sum(tokens[n * SHARD : (n + 1) * SHARD].sum() for n in numbers))
            k = int(kind.split("-")[1]) if "-" in kind else 0
            per_token = {
                "layer": 2 * text.num_hidden_layers * per_layer + 8 * head,
                "hidden": text.num_hidden_layers * per_layer,
            }.get(kind, 8 * k + 4 if k else 4 * text.vocab_size)
            total += count * per_token
        return total

    def build(
        self,
        teacher: PreTrainedModel,
        needs: Sequence[Needs],
        collate: Callable[[list], dict[str, Any]],
        rank: int = 0,
        world: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the teacher over all samples whose outputs are missing; every process takes its share of the shards.

        A shard is written whole or not at all, so a run that was killed goes on. Raises InputError when the disk is
        too small for the forecast.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.folder).free, self.forecast(teacher.config, needs)
        if needed > free:
            raise InputError(
                f"too little space for the teacher's outputs in {self.folder}",
                got=f"{free / 2**30:.1f} GiB free",
                expected=f"{needed / 2**30:.1f} GiB",
            )
        if rank == 0:
            write_bytes(self.folder / MANIFEST, json.dumps({**asdict(self.key), "front": self.front}).encode())
        live, missing = LiveTeacher(teacher), self.missing(needs)
        numbers = sorted({number for shards in missing.values() for number in shards})[rank::world]
        for done, number in enumerate(numbers, 1):
            kinds = [kind for kind, shards in missing.items() if number in shards]
            stored: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
            for index in range(number * SHARD, min((number + 1) * SHARD, len(self.data))):
                batch = _to(collate([self.data[index]]), teacher.device)
                for together, need in _passes(kinds):
                    signals = live.signals(batch, need)
                    for kind in together:
                        stored[kind] |= {f"{index}.{name}": value for name, value in self._pack(kind, signals)}
            for kind, tensors in stored.items():
                with atomic_file(self._shard(kind, number)) as temporary:
                    save_file(tensors, temporary)
            if progress is not None:
                progress(done, len(numbers))

    def _pack(self, kind: str, signals: Signals) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one sample (batch 1): [layers, S, D] and [rows, ...]."""
        wide = PRECISIONS[self.key.precision]
        stack = lambda layers: torch.cat(layers).to(wide).cpu().contiguous()  # noqa: E731
        if kind == "layer":
            assert signals.position_embeddings is not None
            yield "in", stack(signals.layer_in)
            yield "out", stack(signals.layer_out)
            for name, table in zip(("cos", "sin"), signals.position_embeddings, strict=True):
                yield name, table[0].float().cpu().contiguous()
        elif kind == "hidden":
            yield "hidden", stack(signals.hidden)
        elif isinstance(signals.logits, TopK):
            yield "values", signals.logits.values.cpu()
            yield "indices", signals.logits.indices.int().cpu()
            yield "log_z", signals.logits.log_z.cpu()
        else:
            assert signals.logits is not None
            yield "values", signals.logits.float().cpu()

    def read(self, kind: str, index: int, name: str) -> Tensor:
        """One tensor of one sample."""
        return _open(self._shard(kind, index // SHARD)).get_tensor(f"{index}.{name}")

    def _shard(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:05d}.safetensors"


class CachedTeacher:
    """Signals from a cache; pictures go through the student's own vision tower, which is the teacher's."""

    def __init__(self, cache: TeacherCache, student: PreTrainedModel):
        self.cache, self.student = cache, student
        self.index = {sample.id: number for number, sample in enumerate(cache.data.samples)}

    @torch.no_grad()
    def signals(self, batch: dict[str, Any], needs: Needs) -> Signals:
        """As LiveTeacher's, padded on the left with zeros."""
        numbers = [self.index[name] for name in batch["sample_ids"]]
        length, device = batch["input_ids"].shape[1], batch["input_ids"].device
        signals = Signals(decoder_arguments(self.student, batch) if needs.decoder else {})

        def padded(kind: str, name: str) -> Tensor:
            rows = [self.cache.read(kind, number, name) for number in numbers]
            return torch.stack([nn.functional.pad(x, (0, 0, length - x.shape[-2], 0)) for x in rows], -3).to(device)

        if needs.layer:
            signals.layer_in, signals.layer_out = (list(padded("layer", name)) for name in ("in", "out"))
            signals.position_embeddings = padded("layer", "cos"), padded("layer", "sin")
        if needs.hidden:
            signals.hidden = list(padded("hidden", "hidden"))
        if needs.logits:
            signals.logits = self._logits(numbers, needs, device)
        return signals

    def _logits(self, numbers: list[int], needs: Needs, device: torch.device) -> Tensor | TopK:
        kind = logits_kind(needs)
        values, *rest = (
            torch.cat([self.cache.read(kind, number, name) for number in numbers]).to(device)
            for name in (("values", "indices", "log_z") if needs.top_k else ("values",))
        )
        return TopK(values, rest[0].long(), rest[1]) if rest else values


class _Reached(Exception):
    """The decoder was called: its arguments are known."""


def decoder_arguments(model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Any]:
    """What a model would hand to its decoder for a batch, the decoder itself not run."""
    arguments: dict[str, Any] = {}

    def stop(_: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        arguments.update(
            {name: value for name, value in kwargs.items() if name not in ("use_cache", "past_key_values")}
        )
        raise _Reached

    handle = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.base_model(**model_inputs(batch), use_cache=False)
    except _Reached:
        return arguments
    finally:
        handle.remove()
    raise TypeError("the model did not call its decoder")


def front_fingerprint(student: PreTrainedModel) -> str:
    """SHA-256 (hex) of every weight before and after the decoder's layers, as float32."""
    inside = {id(weight) for weight in decoder_layers(student).parameters()}
    digest = hashlib.sha256()
    for name, weight in student.named_parameters():
        if id(weight) not in inside:
            digest.update(name.encode() + weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def kinds_of(needs: Needs) -> list[str]:
    """The kinds of outputs that hold what is needed."""
    kinds = [kind for kind, wanted in (("layer", needs.layer), ("hidden", needs.hidden)) if wanted]
    return [*kinds, logits_kind(needs)] if needs.logits else kinds


def logits_kind(needs: Needs) -> str:
    """Of top-k logits at a temperature; of all logits, which hold for every temperature."""
    return f"logits-{needs.top_k}-{needs.temperature:g}" if needs.top_k else "logits-0"


def _passes(kinds: list[str]) -> list[tuple[list[str], Needs]]:
    """As few passes of the teacher as fill all kinds: a pass gives one kind of logits, the first the rest as well."""
    logits = [kind for kind in kinds if kind not in ("layer", "hidden")]
    first = [kind for kind in kinds if kind not in logits[1:]]
    return [(first, _needs(first)), *(([kind], _needs([kind])) for kind in logits[1:])]


def _needs(kinds: list[str]) -> Needs:
    logits = next((kind for kind in kinds if kind.startswith("logits")), None)
    _, top, heat = f"{logits}-1".split("-")[:3] if logits is not None else ("", "0", "1")
    return Needs("layer" in kinds, "hidden" in kinds, logits is not None, int(top), float(heat))


@lru_cache(maxsize=64)
def _open(path: Path) -> Any:
    return safe_open(path, framework="pt").__enter__()


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
