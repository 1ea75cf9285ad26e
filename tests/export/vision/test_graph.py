"""The vision graph against the teacher's own image and video features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf

from linmu.errors import InputError
from linmu.export.vision.graph import export_vision
from linmu.export.vision.passes import DERIVED
from linmu.layout.vision_grid import vision_inputs
from linmu.reference.vision import build_vision, example_call, run_tower
from tests.tiny import VISION_NAMES, randomise, tiny_config, tiny_inputs, tiny_model, tiny_tokenizer

TOLERANCE = 1e-4  # of the reference's standard deviation
GRID_NAMES = ("qwen2_5_vl", "qwen3_vl")
TILE_NAMES = tuple(name for name in VISION_NAMES if name not in GRID_NAMES)
# One block, one row, whole windows (2 merged tokens a side), ragged on one side and on both.
GRIDS = [(1, 2, 2), (1, 2, 18), (1, 8, 16), (1, 6, 8), (1, 10, 14)]


def family_of(name: str) -> str:
    """The family of a tiny model's name."""
    return "llava" if name.startswith("llava") else name


def teacher_grid(model, pixels: np.ndarray, grid: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """What the teacher scatters into the prompt for one image or video."""
    with torch.no_grad():
        output = model.model.get_video_features(torch.from_numpy(pixels), torch.tensor([grid]))
    result = {"embeddings": output.pooler_output[0]}
    if features := getattr(output, "deepstack_features", None):
        result["deepstack"] = torch.stack([feature[0] for feature in features])
    return result


def teacher_tiles(model, name: str, pixels: np.ndarray) -> torch.Tensor:
    """What the teacher scatters into the prompt for a list of tiles: [tiles, tokens, D]."""
    settings = {}
    if name not in ("smolvlm", "idefics3"):
        for setting in ("vision_feature_layer", "vision_feature_select_strategy"):
            settings[setting] = getattr(model.config, setting)
    tensor = torch.from_numpy(pixels)
    with torch.no_grad():
        output = model.model.get_image_features(tensor[None] if not settings else tensor, **settings).pooler_output
    rows = torch.cat([feature.reshape(-1, feature.shape[-1]) for feature in output])
    return rows.reshape(len(pixels), -1, rows.shape[-1])


def assert_close(got: torch.Tensor | np.ndarray, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Same shape, and no difference over `tolerance` standard deviations; NaN fails."""
    got = torch.as_tensor(got)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.std()


def random_pixels(tower, size: int, seed: int) -> np.ndarray:
    """`size` patches or tiles of noise."""
    return np.random.default_rng(seed).standard_normal((size, *tower.inputs[0].shape[1:])).astype(np.float32)


class Exported:
    """A tiny model, its tower, and one session over its exported graph."""

    def __init__(self, name: str, folder: Path):
        self.model, self.tokenizer = tiny_model(name)
        self.family = family_of(name)
        self.tower = build_vision(self.model, self.family)
        self.path = folder / "vision.onnx"
        self.spec = export_vision(self.tower, self.path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def call(self, pixels: np.ndarray, grid: tuple[int, int, int] = (1, 0, 0)) -> dict[str, np.ndarray]:
        """The inputs of one call."""
        return {"pixel_values": pixels, **vision_inputs(self.family, self.tower.facts, grid)}

    def run(self, call: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the graph."""
        return dict(zip([o.name for o in self.session.get_outputs()], self.session.run(None, call), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports made once each, by name."""
    cache: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in cache:
            cache[name] = Exported(name, tmp_path_factory.mktemp(name))
        return cache[name]

    return get


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", GRID_NAMES)
def test_grid_towers_equal_the_teacher(exported, name, grid):
    it = exported(name)
    pixels = random_pixels(it.tower, grid[1] * grid[2], seed=grid[2])
    expected, call = teacher_grid(it.model, pixels, grid), it.call(pixels, grid)
    eager, graph = run_tower(it.tower, call), it.run(call)
    assert expected.keys() == eager.keys() == graph.keys()
    for output, value in expected.items():
        assert_close(eager[output], value)
        assert_close(graph[output], value)


@pytest.mark.parametrize("name", GRID_NAMES)
def test_a_video_is_one_call_per_grid_frame(exported, name):
    it = exported(name)
    grid = (3, 6, 10)
    pixels = random_pixels(it.tower, 180, seed=1)
    expected = teacher_grid(it.model, pixels, grid)
    count, height, width = (int(size) for size in grid)
    parts = pixels.reshape(count, height * width, -1)
    frames = [it.run(it.call(part, (1, height, width))) for part in parts]
    for output, value in expected.items():
        assert_close(np.concatenate([frame[output] for frame in frames], axis=-2), value)


@pytest.mark.parametrize("tiles", [1, 2, 5])
@pytest.mark.parametrize("name", TILE_NAMES)
def test_tile_towers_equal_the_teacher(exported, name, tiles):
    it = exported(name)
    call = it.call(random_pixels(it.tower, tiles, seed=tiles))
    expected = teacher_tiles(it.model, name, call["pixel_values"])
    assert expected.shape[1] == it.tower.facts["tokens_per_tile"]
    assert_close(run_tower(build_vision(it.model, it.family), call)["embeddings"], expected)
    assert_close(it.run(call)["embeddings"], expected)


@pytest.mark.parametrize("name", VISION_NAMES)
def test_the_processors_pixels_give_as_many_rows_as_placeholders(exported, name):
    it = exported(name)
    inputs = tiny_inputs(name, it.model, it.tokenizer, "image")
    pixels = inputs["pixel_values"].numpy()
    grid = tuple(inputs["image_grid_thw"][0].tolist()) if name in GRID_NAMES else (1, 0, 0)
    pixels = pixels[0] if pixels.ndim == 5 else pixels
    rows = it.run(it.call(pixels, grid))["embeddings"].reshape(-1, it.tower.facts["hidden_size"])
    assert len(rows) == int((inputs["input_ids"] == it.model.config.image_token_id).sum())
    if name in GRID_NAMES:
        assert_close(rows, teacher_grid(it.model, pixels, grid)["embeddings"])
    elif name in ("smolvlm", "idefics3"):
        mask = inputs["pixel_attention_mask"]
        with torch.no_grad():
            output = it.model.model.get_image_features(inputs["pixel_values"], pixel_attention_mask=mask).pooler_output
        assert_close(rows, output[0])
    else:
        assert_close(rows, teacher_tiles(it.model, name, pixels).flatten(0, 1))


@pytest.mark.parametrize("name", VISION_NAMES)
def test_the_file_matches_its_spec_and_holds_each_weight_once(exported, name):
    it = exported(name)
    for declared, found in ((it.spec.inputs, it.session.get_inputs()), (it.spec.outputs, it.session.get_outputs())):
        types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
        assert [(s.name, types[s.dtype], list(s.shape)) for s in declared] == [(f.name, f.type, f.shape) for f in found]
    assert sorted(path.name for path in it.path.parent.iterdir()) == ["vision.data", "vision.onnx"]
    weights = sum(p.numel() * 4 for p in it.tower.parameters()) + sum(b.numel() * 4 for b in it.tower.buffers())
    assert (it.path.parent / "vision.data").stat().st_size < 1.1 * weights
    text = it.path.read_bytes()
    assert b"site-packages" not in text and b"stack_trace" not in text


@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
def test_the_files_are_deterministic(exported, name, tmp_path):
    it = exported(name)
    export_vision(build_vision(it.model, it.family), tmp_path / "vision.onnx", example_call(it.tower, seed=3))
    for file in ("vision.onnx", "vision.data"):
        assert (tmp_path / file).read_bytes() == (it.path.parent / file).read_bytes()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_fp16_storage_halves_the_file_and_computes_in_fp32(exported, name, tmp_path):
    it = exported(name)
    spec = export_vision(it.tower, tmp_path / "vision.onnx", precision="fp16")
    assert spec == it.spec
    full = (it.path.parent / "vision.data").stat().st_size
    assert (tmp_path / "vision.data").stat().st_size < 0.6 * full
    graph = onnx.load(tmp_path / "vision.onnx", load_external_data=False).graph
    big = [i for i in graph.initializer if np.prod(i.dims) >= 1024 and i.name not in DERIVED]
    assert big and all(i.data_type == onnx.TensorProto.FLOAT16 for i in big)
    call = example_call(it.tower, seed=5)
    session = ort.InferenceSession(str(tmp_path / "vision.onnx"), providers=["CPUExecutionProvider"])
    expected = run_tower(it.tower, call)["embeddings"]
    assert_close(session.run(["embeddings"], call)[0], expected, tolerance=2e-2)


def altered(name: str, **settings) -> torch.nn.Module:
    """A tiny model with other settings in its config (`vision_*` keys without prefix belong to the vision config)."""
    config = tiny_config(name, tiny_tokenizer(name))
    for key, value in settings.items():
        setattr(config.vision_config if hasattr(config.vision_config, key) else config, key, value)
    model = getattr(
        hf,
        config.architectures[0]
        if config.architectures
        else type(config).__name__.replace("Config", "ForConditionalGeneration"),
    )(config)
    randomise(model, seed=2)
    return model.float().eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llava", {"vision_feature_layer": [-1, 1]}),
        ("llava", {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}),
        ("llava_dinov2", {"image_seq_length": 25}),
        ("llava_dinov2", {"vision_feature_layer": 1}),
        ("internvl", {"vision_feature_layer": -2}),
        ("internvl", {"use_mean_pooling": False}),
        ("internvl", {"use_absolute_position_embeddings": False, "norm_type": "rms_norm"}),
    ],
)
def test_other_settings_equal_the_teacher(name, settings):
    model = altered(name, **settings)
    tower = build_vision(model, family_of(name))
    pixels = random_pixels(tower, 2, seed=7)
    expected = teacher_tiles(model, name, pixels)
    assert tuple(expected.shape[1:]) == tower.outputs[0].shape[1:]
    assert_close(run_tower(tower, {"pixel_values": pixels})["embeddings"], expected)


def test_bad_calls_are_refused(exported, tmp_path):
    it = exported("qwen2_5_vl")
    call = example_call(it.tower)
    with pytest.raises(InputError, match="inputs of a vision call"):
        run_tower(it.tower, {"pixel_values": call["pixel_values"]})
    with pytest.raises(InputError, match="vision.window_rank.*int32"):
        run_tower(it.tower, {**call, "vision.window_rank": call["vision.window_rank"].astype(np.int32)})
    with pytest.raises(InputError, match="pixel_values"):
        run_tower(it.tower, {**call, "pixel_values": call["pixel_values"][:, 1:]})
    with pytest.raises(InputError, match="vision precision"):
        export_vision(it.tower, tmp_path / "vision.onnx", precision="int8")


def test_models_without_an_exportable_tower_are_refused():
    with pytest.raises(InputError, match="no vision tower"):
        build_vision(tiny_model("qwen2")[0], "qwen2")
    with pytest.raises(InputError, match="model.float"):
        build_vision(tiny_model("llava")[0].half(), "llava")
