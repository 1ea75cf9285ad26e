"""TensorRT on the device: what needs no GPU (profiles, plans, engine files) apart from what calls CUDA."""
