"""Files that are whole or absent, locks, and digests.

- `files.py`: one file, or a directory with a manifest, written under another name and renamed
- `model_dir.py`: model directories as files; what is in them is for `models/checkpoint.py`
- `digests.py`, `kept.py`, `marked.py`: SHA-256 of tensors, tensors kept to save work, pdfast's mark
- `lock.py`, `staging.py`, `processes.py`: whose a folder is, and what a killed process left
"""
