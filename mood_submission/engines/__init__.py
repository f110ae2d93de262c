"""What computes the networks: torch, or ONNX Runtime."""
