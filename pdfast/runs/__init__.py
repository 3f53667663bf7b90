"""Run directories. Nothing here knows about networks: `training/model_run.py` adds the models.

- `run.py`: the directory, used by one process at a time
- `training_state.py`: saved states of a phase; `recovery.py`: what happens to damaged files
- `record.py`: config.toml; `metrics_log.py`: metrics.jsonl; `watched_loss.py`: the loss in it
- `spent.py`: network evaluations and seconds of each phase
"""
