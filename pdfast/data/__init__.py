"""Data sets: reading them, preparing them once, and sharing them among processes.

- `dataset.py`: a set as training and evaluation hold it in memory
- `sources.py`: opens `data.source` with one of `readers/`; a new kind of source is added there
- `own_size.py`: a set at the native size of its images, for comparisons without a model
- `prepare.py`: turns pictures into one file of one image size, once, on all cores, resumably
- `classes.py`: class names and counts; `digest.py`: the digest that identifies a set
- `dataset_file.py`: `pdfast data`; `image_grid.py`: images as a grid in one picture
"""

from pdfast.data.dataset import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
