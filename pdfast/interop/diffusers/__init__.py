"""diffusers' pipelines: import (`load.py`) and export (`export.py`, with its model card)."""
