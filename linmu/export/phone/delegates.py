"""Who computes a phone's program: one literal table of ExecuTorch's delegates, and their partitioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linmu.errors import InputError
from linmu.system.components import require

XNNPACK = "xnnpack"


@dataclass(frozen=True)
class Delegate:
    """One delegate: its targets, and the packages that compile for it.

    quantized: whether it computes the presets' rounding. missing: why nothing is compiled for it, or "".
    """

    targets: tuple[str, ...]
    packages: tuple[str, ...] = ()
    quantized: bool = False
    missing: str = ""


DELEGATES: dict[str, Delegate] = {
    XNNPACK: Delegate(("android", "ios"), quantized=True),
    "coreml": Delegate(("ios",), ("coremltools",)),
    "vulkan": Delegate(("android",)),
    "qnn": Delegate(
        ("android",),
        missing="it needs Qualcomm's AI Engine Direct SDK, and linmu was never tried with it",
    ),
}


def find_delegate(target: str, name: str | None, quantized: bool = False) -> str:
    """The name of a target's delegate (None: XNNPACK).

    Raises InputError for one that the target has not, that nothing is compiled for, or that does not compute quantized
    matrices as their reference does; MissingComponentError where its compiler is not installed.
    """
    name = XNNPACK if name is None else name
    usable = [key for key, row in DELEGATES.items() if target in row.targets and not row.missing]
    row = DELEGATES.get(name)
    if row is None or target not in row.targets:
        raise InputError(f"delegate of target {target!r}", got=repr(name), expected="one of " + ", ".join(usable))
    if row.missing:
        raise InputError(f"nothing is compiled for delegate {name}", got=row.missing, expected=" or ".join(usable))
    if quantized and not row.quantized:
        raise InputError(
            f"a quantized program for delegate {name}",
            got="roundings that only XNNPACK's kernels have",
            expected="float32: no --quant and no --calib",
            fix=f"--delegate {XNNPACK}",
        )
    for package in row.packages:
        require(package, needed_for=f"delegate {name}", extra="mobile")
    return name


def partitioner(name: str) -> Any:
    """A delegate's partitioner, which computes in float32."""
    if name == "coreml":
        return _coreml()
    if name == "vulkan":
        return _vulkan()
    return _xnnpack()


def _xnnpack() -> Any:
    from linmu.export.phone.xnnpack import partitioner

    return partitioner()


def _vulkan() -> Any:
    """Vulkan, sizes of tensors changing from call to call."""
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    class Partitioner(VulkanPartitioner):
        """Leaves parts that hold nothing but a tensor's size: its compiler stops at them."""

        def partition(self, exported_program: Any) -> Any:
            result = super().partition(exported_program)
            nodes = [node for node in exported_program.graph.nodes if "delegation_tag" in node.meta]
            useful = {node.meta["delegation_tag"] for node in nodes if _computes(node)}
            for node in nodes:
                if node.meta["delegation_tag"] not in useful:
                    result.partition_tags.pop(node.meta.pop("delegation_tag"), None)
            return result

    return Partitioner({"require_dynamic_shapes": True})


def _computes(node: Any) -> bool:
    return node.op == "call_function" and "sym_size" not in str(node.target)


def _coreml() -> Any:
    """Core ML in float32, from iOS 17 on; states stay ExecuTorch's own buffers (Core ML's would be float16)."""
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import MULTIMETHOD_WEIGHT_SHARING_STRATEGY
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    class Partitioner(CoreMLPartitioner):
        """Leaves branches, whose graphs the base class takes for constants."""

        def partition(self, exported_program: Any) -> Any:
            result = super().partition(exported_program)
            for node in exported_program.graph.nodes:
                if node.op == "get_attr":
                    node.meta.pop("delegation_tag", None)
            return result

    specs = CoreMLBackend.generate_compile_specs(
        compute_precision=coremltools.precision.FLOAT32, minimum_deployment_target=coremltools.target.iOS17
    )
    alone = MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED  # methods are cut into different numbers of parts
    specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(alone))
    return Partitioner(compile_specs=specs, skip_ops_for_coreml_delegation=["cond"], take_over_mutable_buffer=False)
