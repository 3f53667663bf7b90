"""Import of NVlabs/edm's network pickles, by a reader that runs no code in them.

- `load.py`: the import
- `pickled.py`: the pickle as plain data and records; `storages.py`: the bytes of its tensors
- `network.py`: the config that a record describes; `weights.py`: its tensors, by pdfast's layers
"""
