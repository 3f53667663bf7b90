"""The cost of a run, predicted for `--dry-run`.

- `plan.py`: the phases of a run, and how many updates and network calls each makes
- `counting.py`: FLOPs, memory traffic and memory of one update, counted
- `timing.py`: seconds per update, network call and distance, measured on this device
- `forecast.py`: the printed forecast, which combines the three
"""
