"""Times steps and runs, and the same network in PyTorch, for the benchmark."""
