"""Models of other libraries: `diffusers/` in and out, `google/` and `edm/` in,
`onnx.py` out."""
