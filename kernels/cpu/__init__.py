"""What runs without Triton: PyTorch, on a CPU or any other device."""
