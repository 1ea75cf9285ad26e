"""Device-side preprocessing: token ids, pixels and chat text as transformers makes them, without transformers."""

from linmu.processing.processor import ModelInputs, Processor
from linmu.processing.tokens import StreamDecoder

__all__ = ["ModelInputs", "Processor", "StreamDecoder"]
