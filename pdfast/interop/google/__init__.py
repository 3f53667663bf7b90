"""Checkpoints of the authors' released code: `load.py`, their names, and flax's msgpack."""
