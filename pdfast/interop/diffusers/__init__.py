"""diffusers' pipelines: `load.py` and what it reads, `export.py` and the card that it writes."""
