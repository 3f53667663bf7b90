"""Data sets: read, prepared once, and held by all processes.

- `dataset.py`: a set as training and evaluation hold it
- `sources.py`: what `data.source` names, read by one of `readers/`; a new kind of source goes there
- `own_size.py`: a set at the size that its images have, for comparisons without a model
- `prepare.py`: pictures as one file of one size, made once, on all cores, resumably
- `classes.py`: names and counts of classes; `digest.py`: what a set is known by
- `dataset_file.py`: `pdfast data`; `image_grid.py`: images in rows of one picture
"""

from pdfast.data.dataset import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
