"""What a run will take, for `--dry-run`.

- `plan.py`: phase by phase; `counting.py`: one update; `timing.py`: on the device at hand
- `forecast.py`: all of it, as it is shown
"""
