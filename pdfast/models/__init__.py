"""Models: the U-Net, custom networks, guidance, other libraries' kernels, and model directories."""
