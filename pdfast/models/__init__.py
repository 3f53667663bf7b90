"""Models: a network, what its output means, and its noise schedule.

- `model.py`: `Model`, of pdfast's U-Net (`unet.py`); `custom.py`: `Network`, of any module
- `resampling.py`: how feature maps change size; `embeddings.py`: of noise levels and weights
- `guidance.py`: classifier-free guidance; `backends.py`: other libraries' kernels in the U-Net
- `checkpoint.py`: model directories; `trial.py`: a custom network tried before a run
- `images.py`: samples as uint8
"""
