"""Models of other libraries: `diffusers/` in and out, `google/` in, `onnx.py` out."""
