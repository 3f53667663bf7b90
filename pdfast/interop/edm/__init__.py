"""Network pickles of NVlabs/edm: `load.py`, what is in them, and a reader that runs nothing.

- `pickled.py`: the pickle as plain data and records; `storages.py`: the tensors' bytes
- `network.py`: the config that a record describes; `weights.py`: its tensors, by our layers
"""
