"""FSDP: weights in parts on two processes. accelerate has it for accelerators only: CPUs are passed off as some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linmu.distill.run import distill
from linmu.formats.data_folder import write_data_folder
from tests.distill.support import items, places, short_recipe, weights
from tests.paths import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from accelerate.state import DistributedType, PartialState

real = PartialState.__init__
def pretend(self, *args, **kwargs):
    real(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
    self.device = torch.device("cpu")
PartialState.__init__ = pretend

from linmu.formats.data_folder import write_data_folder
from linmu.distill.run import distill
from tests.distill.support import short_recipe

root, data, out, end = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
def say(text):
    print(text, file=sys.stderr, flush=True)
    if end in text:
        os._exit(9)
recipe = short_recipe(steps=6, batch_size=4, micro_batch=1)
distill(root / "student", root / "teacher", data, out, recipe=recipe, stages=[1, 3], resume=True,
        validation=root / "held", say=say)
"""
SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer,MMateAttention",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def sharded(root: Path, data: Path, out: Path, end: str) -> str:
    """What two processes say; rank 0 dies where it says `end`."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        [sys.executable, *command, *map(str, (root, data, out)), end],
        capture_output=True,
        text=True,
        env={**os.environ, **SETTINGS},
    )
    assert (end in done.stderr) == (done.returncode != 0), done.stderr
    return done.stderr


def test_a_sharded_run_killed_and_resumed_gives_the_weights_of_one_process(tmp_path_factory, tmp_path):
    root, data = places("smolvlm", tmp_path_factory), tmp_path / "data"
    # pictures everywhere: weights that a step does not use move a little when they are sharded (docs/distill.md)
    write_data_folder(data, [item for item in items("smolvlm", 24) if item[0].get("images")])
    assert "2 processes" in sharded(root, data, tmp_path / "parts", "answers: step 6/")
    assert "stage 1 flex: done before" in sharded(root, data, tmp_path / "parts", "nothing like this")
    distill(
        root / "student",
        root / "teacher",
        data,
        tmp_path / "whole",
        validation=root / "held",
        recipe=short_recipe(steps=6, batch_size=4),
        stages=[1, 3],
        say=lambda _: None,
    )
    parts, whole = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    start = weights(root / "student")
    assert sum(not torch.equal(start[name], whole[name]) for name in start) > 20
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-3, msg=name)
