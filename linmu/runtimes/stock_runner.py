"""ExecuTorch's stock LLM runners on a bundle: the very C++ that its Android and iOS packages run, through Python.

They know a prompt as pieces of tokens and images; an image here is one tile, already resized and normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import BundleError, InputError
from linmu.families import get_family
from linmu.formats.bundle import Bundle
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.et_runner import muted
from linmu.runtimes.prompt import piece_tokens

PROGRAM, TOKENIZER = "model.pte", "tokenizer/tokenizer.json"

Piece = np.ndarray  # token ids [n] int64, or one tile [channels, height, width] float32


def stock_pieces(inputs: ModelInputs, image_token: int | None, most: int) -> list[Piece]:
    """A prompt as a stock runner takes it: runs of text of at most `most` ids, and tiles in their places.

    Raises InputError where placeholders and tiles do not match: a clip's frames form spans that runners cannot give.
    """
    tiles = [tile for call in inputs.vision_calls for tile in call["pixel_values"]]
    grids = [grid for item in inputs.media for grid in item.tiles]
    if any(item.kind != "image" for item in inputs.media) or len(grids) != len(tiles):
        raise InputError("a prompt for the stock runner", got="a clip", expected="text and pictures")
    pieces, ids, place = list[Piece](), inputs.input_ids, 0
    while place < len(ids):
        if ids[place] == image_token:
            pieces.append(tiles.pop(0))
            place += int(np.prod(grids.pop(0)))
            continue
        stop = place
        while stop < len(ids) and stop - place < most and ids[stop] != image_token:
            stop += 1
        pieces.append(ids[place:stop])
        place = stop
    return pieces


def stock_answer(bundle: Bundle, prompt: str, images: Sequence[Any] = (), max_new_tokens: int = 32) -> list[str]:
    """A prompt's greedy answer by the stock runner, as the texts of its tokens.

    TextLLMRunner for text-only students, else MultimodalRunner. Raises BundleError in one line when it fails.
    """
    processor = Processor.from_folder(bundle.folder)
    inputs = processor.encode(prompt, list(images))
    text_only = get_family(bundle.manifest.model.family).text_only
    texts = list[str]()
    with muted(1, 2):
        import torch
        from executorch.extension.llm import runner as stock

        config = stock.GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, echo=False)
        files = [str(Path(bundle.folder, name)) for name in (PROGRAM, TOKENIZER)]
        try:
            if text_only:
                stock.TextLLMRunner(*files).generate(inputs.text, config, token_callback=texts.append)
                return texts
            image_token = bundle.manifest.model.prompt_rules.image_token_id
            pieces = stock_pieces(inputs, image_token, piece_tokens(bundle.manifest))
            parts = [
                stock.make_token_input(piece.tolist())
                if piece.ndim == 1
                else stock.make_image_input(torch.from_numpy(np.ascontiguousarray(piece)))
                for piece in pieces
            ]
            stock.MultimodalRunner(*files).generate(parts, config, token_callback=texts.append)
        except RuntimeError as error:
            raise BundleError(f"{files[0]}: the stock runner fails", got=str(error).strip()[:200]) from error
    return texts


def tokenizer_ids(bundle: Bundle, input_ids: Sequence[int]) -> list[int]:
    """Ids that ExecuTorch's tokenizer gives for the text of `input_ids`, special tokens written out."""
    processor = Processor.from_folder(bundle.folder)
    text = processor.tokenizer.decode(list(input_ids), skip_special_tokens=False)
    with muted(1, 2):
        from pytorch_tokenizers import CppHFTokenizer  # the C++ one, not the Python class beside it

        tokenizer = CppHFTokenizer()
        tokenizer.load(str(bundle.folder / TOKENIZER))
        tokens: list[int] = tokenizer.encode(text, 0, 0)
    return tokens
