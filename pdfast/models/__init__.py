"""Models: a network, what its output means, and its noise schedule.

- `model.py`: `Model`, with pdfast's U-Net (`unet.py`, of `blocks.py`)
- `custom.py`: `Network`, with any module
- `resampling.py`: resizing of feature maps; `embeddings.py`: of noise levels and guidance weights
- `guidance.py`: classifier-free guidance; `backends.py`: other libraries' kernels in the U-Net
- `checkpoint.py`, `pretrained.py`: model directories; `trial.py`: the trial of a custom network
- `outputs.py`, `images.py`: samples as tensors, arrays and pictures
- `cuda_graph.py`, `captured.py`: CUDA graphs; `lanes.py`: batches sampled in parallel
- `former_names.py`: names of version 0.1
"""
