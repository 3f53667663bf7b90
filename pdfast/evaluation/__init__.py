"""Distances and scores of samples, and the report.

- `evaluate.py`: evaluation of a run or a model; `sweep.py`: models at several numbers of steps
- `evaluator.py`: all figures of a set of samples; `reference_set.py`: the images to compare with
- `class_draw.py`: classes of the samples; `same_classes.py`: whether model and data agree on them
- `frechet.py`, `scores.py`: the distance and other scores; `detectors/`: feature extractors;
  `collected.py`: features of all samples
- `judge.py`, `against.py`, `set_facts.py`: samples of other tools; `make_statistics.py`,
  `statistics_file.py`: reference statistics
- `resume.py`, `provenance.py`: saved figures, and the facts that they depend on
- `report/`, `compare/`: reports and comparisons of runs; `sampling.py`: `pdfast sample`
"""
