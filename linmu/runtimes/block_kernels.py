"""Whether ONNX Runtime's kernels on this CPU round the inputs of products by block, as int8 and int4 bundles ask for.

Where it has no such kernel (x86 without AVX2, say), it silently multiplies inputs that are not rounded: a more exact
function, but another one than the reference's.
"""

from __future__ import annotations

from base64 import b64decode
from functools import lru_cache

import numpy as np

# One MatMulNBits of accuracy level 4 (inputs rounded to int8 by block): 32 weights of 1, one column. A device has no
# onnx to write it with; tests/runtimes/test_block_kernels.py does.
PRODUCT = b64decode(
    "CAo64AEKcwoBeAoBcQoBcxIBeSILTWF0TXVsTkJpdHMqCAoBSxggoAECKggKAU4YAaABAioVCg5hY2N1cmFjeV9sZXZlbBgEoAEC"
    "KgsKBGJpdHMYCKABAioRCgpibG9ja19zaXplGCCgAQI6DWNvbS5taWNyb3NvZnQSAXAqLQgBCAEIIBACQgFxSiCBgYGBgYGBgYGB"
    "gYGBgYGBgYGBgYGBgYGBgYGBgYGBgSoNCAEQAUIBc0oEAACAP1oTCgF4Eg4KDAgBEggKAggBCgIIIGITCgF5Eg4KDAgBEggKAggB"
    "CgIIAUIECgAQFUIRCg1jb20ubWljcm9zb2Z0EAE="
)


@lru_cache(maxsize=1)
def rounds_by_block() -> bool:
    """Whether a product's inputs are rounded: 127 and 31 times 0.4 have the codes 127 and 31 times 0."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("mlas.disable_kleidiai", "1")  # as bundles are opened
    inputs = np.full((1, 32), 0.4, np.float32)
    inputs[0, 0] = 127
    (products,) = ort.InferenceSession(PRODUCT, options).run(None, {"x": inputs})
    return bool(abs(float(products[0, 0]) - 127) < 1)
