"""Detectors: what turns images into the features whose distance is measured.

- `plain.py`: no network: `pixel`, the pixels themselves; `raw`, numbers of samples that are no
  pictures
- `inception.py`: torch-fidelity's InceptionV3, with which, alone, the distance is named FID
- `lite0.py`: EfficientNet-Lite0 of a package that carries its weights; its distance is FD-Lite0
"""
