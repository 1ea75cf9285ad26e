"""The recurrent step form: one description of the decoder, run eagerly in torch or written out as ONNX."""
