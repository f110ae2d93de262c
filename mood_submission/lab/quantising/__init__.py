"""Makes the graphs that ONNX Runtime computes: float32 and int8, without a model's parameters."""
