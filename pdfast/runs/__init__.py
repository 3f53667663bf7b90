"""Run directories. Nothing here knows a network: `training/model_run.py` adds the models.

- `run.py`: the directory, taken up alone by one process
- `training_state.py`: saved states of a phase; `recovery.py`: what is done about damage
- `record.py`: config.toml; `metrics_log.py`: metrics.jsonl; `watched_loss.py`: the loss in it
"""
