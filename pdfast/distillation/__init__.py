"""Progressive distillation (Salimans & Ho 2022).

- `rollout.py`: Algorithm 2, the objective of a round; `teacher.py`: Algorithm 1
- `fitting.py`: the first round N -> N, of a student that cannot start as its teacher
- `rounds.py`: the rounds, one after the other; `signal_check.py`: what one has to learn
- `opening.py`, `custom.py`, `given_data.py`: a run as a call finds it, of custom networks too
"""
