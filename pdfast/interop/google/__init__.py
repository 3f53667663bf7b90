"""Import of checkpoints of the authors' released code, which flax wrote.

- `load.py`: the import
- `flax.py`: the file format; `published.py`: the names and layouts of the parameters
"""
