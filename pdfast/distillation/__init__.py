"""Progressive distillation (Salimans & Ho 2022).

- `objectives.py`: Algorithms 1 and 2, and the fit of a student that cannot start as its teacher
- `pipelined_teacher.py`: Algorithm 2 with one call of the teacher an update
- `teacher.py`, `rounds.py`: the phases, in order; `signal_check.py`: what a round has to learn
- `opening.py`, `custom.py`, `given_data.py`: a run as a call finds it, of custom networks too
"""
