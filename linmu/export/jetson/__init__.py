"""Target jetson: operators that TensorRT parses, shape ranges, engines compiled on the workstation."""
