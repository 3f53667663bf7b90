"""Files that are whole or absent, locks, and digests.

- `files.py`: one file, or a directory with a manifest, written under another name, then renamed
- `model_dir.py`: model directories as files; `models/checkpoint.py` reads and writes their contents
- `digests.py`, `kept.py`, `marked.py`, `marks.py`: SHA-256 of tensors, cached tensors, pdfast's
  mark
- `lock.py`, `staging.py`, `processes.py`: locks of folders, and the removal of leftovers
"""
