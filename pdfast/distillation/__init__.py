"""Progressive distillation (Salimans & Ho 2022).

- `objectives.py`: Algorithms 1 and 2, and the fit of a student that cannot start as its teacher
- `pipelined_teacher.py`: Algorithm 2 with one call of the teacher per update
- `teacher.py`, `rounds.py`: the phases, in order; `choice.py`: a round's student among its averages
- `signal_check.py`: whether a round's signal exceeds the rounding of its networks
- `opening.py`, `custom.py`, `given_data.py`: setting up a run, also of custom networks
"""
