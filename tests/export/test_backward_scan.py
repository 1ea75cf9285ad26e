"""The backward scan on every target: the float64 loop's numbers, and exactly 0 where a token has seen nothing."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from linmu.export.jetson.ops import JetsonOps
from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.export.onnx.ops import OnnxOps
from linmu.export.onnx.plain_ops import PlainOps
from linmu.export.phone.ops import PhoneOps, causal_constants
from linmu.export.phone.stock import StockOps
from linmu.export.phone.weights import Buffers, program_weights
from linmu.specs import TensorSpec
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.reference import gated_scan
from tests.model.students import shared_student

SPANS = (23, 1, 38)  # tokens: over chunks of 16, one alone
GAP = 3  # elements of padding between two


def _scan(form, spans=SPANS):
    """Packed q, k, v [1,N,...], g [1,N,M], restart [N], and which elements stand for tokens."""
    generator, elements = np.random.default_rng(5), sum(spans) + GAP * (len(spans) - 1)
    m, d = form.state_heads, form.head_dim
    q, k, v = (generator.standard_normal((1, elements, n * d), np.float32) for n in (form.heads, m, m))
    g = -np.exp(generator.standard_normal((1, elements, m), np.float32) - 2)
    restart, real, low = np.zeros(elements, bool), np.zeros(elements, bool), 0
    for count in spans:
        restart[low], real[low : low + count] = True, True
        low += count + GAP
    return (q, k, v, g), restart, real


def _expected(form, arrays, restart, real) -> np.ndarray:
    q, k, v, g = (x[0].astype(np.float64) for x in arrays)
    d, every = form.head_dim, form.heads // form.state_heads
    q, k, v = (x.reshape(len(x), -1, d) for x in (q, k, v))
    k, v, g = (x.repeat(every, 1) for x in (k, v, g))
    found, starts = np.zeros_like(q), [*np.flatnonzero(restart), len(restart)]
    for low, high in zip(starts, starts[1:], strict=False):
        empty = np.zeros((form.heads, d, d))
        found[low:high] = gated_scan(q[low:high], k[low:high], v[low:high], g[low:high], empty, d**-0.5, strict=True)[0]
    return found.reshape(len(found), -1)[real]


def _graph(table, form, arrays, restart, folder) -> np.ndarray:
    graph = GraphBuilder({}, "weights.data", 19 if table is JetsonOps else 21)
    specs = [TensorSpec(name, "float32", (1, "N", x.shape[2])) for name, x in zip("qkvg", arrays, strict=True)]
    y, _ = table(graph, form).linear_attention(*"qkvg", None, "restart", form)
    out = TensorSpec("y", "float32", (1, "N", form.heads * form.head_dim))
    graph.save(folder / "scan.onnx", [*specs, TensorSpec("restart", "bool", ("N",))], {"y": (y, out)})
    feeds = dict(zip("qkvg", arrays, strict=True), restart=restart)
    return ort.InferenceSession(folder / "scan.onnx").run(["y"], feeds)[0][0]


def _eager(table, form, arrays, restart) -> np.ndarray:
    q, k, v, g = (torch.from_numpy(x) for x in arrays)
    flags = torch.from_numpy(restart)
    if table is TorchOps:
        return TorchOps(form).linear_attention(q, k, v, g, None, flags, form)[0][0].numpy()
    ops = table(form, Buffers(nn.Module(), program_weights(form)))
    index = torch.arange(len(flags))
    constants = causal_constants(index, None if table is StockOps else flags, strict=True)
    q, k, v = (ops._by_head(x) for x in (q, k, v))
    return ops._packed(ops.linear_attention(q, k, v, g, None, constants, form)[0])[0].numpy()


@pytest.mark.parametrize("decay", ("query_head", "kv_head"))
@pytest.mark.parametrize("table", (TorchOps, OnnxOps, PlainOps, JetsonOps, PhoneOps, StockOps))
def test_backward_scan_is_the_loop_and_starts_from_exactly_nothing(table, decay, tmp_path):
    form = decoder_form(shared_student("smolvlm", decay=decay)[0])
    assert (form.state_heads < form.heads) == (decay == "kv_head")
    arrays, restart, real = _scan(form, SPANS[:1] if table is StockOps else SPANS)
    graphs = issubclass(table, OnnxOps)
    y = _graph(table, form, arrays, restart, tmp_path) if graphs else _eager(table, form, arrays, restart)
    expected = _expected(form, arrays, restart, real)
    assert np.abs(y[real] - expected).max() < 3e-6 * np.abs(expected).max()
    assert not y[restart].any()  # what rounding left there, the norm behind it would blow up
