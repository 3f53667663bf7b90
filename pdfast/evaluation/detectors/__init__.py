"""Detectors: the feature extractors behind the distances.

- `plain.py`: detectors without a network: `pixel`, the pixels themselves, and `raw`, the numbers of
  samples that are not pictures
- `inception.py`: torch-fidelity's InceptionV3, the only detector whose distance is called FID
- `lite0.py`: EfficientNet-Lite0 from a package that includes its weights, for FD-Lite0
- `network.py`: weights and batches of detectors with a network; `opening.py`: a config's detector
"""
