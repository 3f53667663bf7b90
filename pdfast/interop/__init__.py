"""Import and export of other libraries' models.

- `diffusers/`: import and export
- `google/`: import of the authors' checkpoints
- `edm/`: import of NVlabs/edm's network pickles
- `onnx.py`: export
"""
