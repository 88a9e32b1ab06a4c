"""The network, its convolution, and the normalizers that are plugged into it."""
