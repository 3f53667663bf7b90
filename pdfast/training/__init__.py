"""The update, and the loop around it, shared by training and distillation.

- `loop.py`, `update.py`: the loop and the update; `batch.py`: the draws of an update
- `optimizer.py`, `averages.py`, `precision.py`: flat buffers, averaged weights, bf16 and TF32
- `compilation.py`, `op_counter.py`, `cuda_launches.py`: how an update runs
- `image_stream.py`, `holdout.py`: where images come from, and which are held out
- `phase_log.py`, `model_run.py`, `call_config.py`: a phase in its run, and the config of a call
- `warmup.py`: a warning of warm-ups that are too long
- `validation.py`: the loss that a phase is watched by
"""
