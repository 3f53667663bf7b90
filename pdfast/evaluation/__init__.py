"""Distances and scores of samples, and the report.

- `evaluate.py`: a run or a model evaluated; `sweep.py`: models at several numbers of steps
- `evaluator.py`: all figures of a sample set; `reference_set.py`: the images it is compared with
- `class_draw.py`: how the classes of samples are drawn
- `frechet.py`, `scores.py`, `detectors/`: the distance, other scores, features; `collected.py`:
  those of all samples
- `judge.py`, `against.py`, `set_facts.py`: samples of other tools; `make_statistics.py`,
  `statistics_file.py`: reference statistics
- `resume.py`, `provenance.py`: figures that are kept, and what they depend on
- `report/`: tables, plots, the page; `sampling.py`: `pdfast sample`
"""
