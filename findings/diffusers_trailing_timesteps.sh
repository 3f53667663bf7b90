#!/usr/bin/env bash
# diffusers: with timestep_spacing="trailing", some numbers of steps get one timestep too many, -1.
#
# diffusers 0.42.1, PyTorch 2.13.0, numpy 2.4.6, Python 3.11.
# set_timesteps(N) of DDIMScheduler counts down from T by the quotient T / N in floating point and
# subtracts 1. Where the quotient is rounded down, N steps of it end just above 0, and one more
# timestep follows: round(...) - 1 = -1. Of T = 1000 timesteps this is so for 62 numbers of steps,
# of which the first is 61; of 1024 for 67, from 49 on. Numbers that divide T are never among them.
# A network is then called at a timestep that it was never trained on, without an error.
#
#     T = 1000: 62 numbers of steps, from 61 on; 61 steps have 62 timesteps, the last is -1
#     T = 1024: 67 numbers of steps, from 49 on; 49 steps have 50 timesteps, the last is -1
#
# Exits 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.4.6'
"$python" -m pip install --quiet 'diffusers==0.42.1'

cat > "$folder/timesteps.py" <<'PY'
import diffusers

print("diffusers", diffusers.__version__)
for total, many, first in ((1000, 62, 61), (1024, 67, 49)):
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=total, timestep_spacing="trailing", steps_offset=0
    )
    longer = {}
    for steps in range(1, total + 1):
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        if len(timesteps) != steps:
            longer[steps] = timesteps
    least, found = min(longer.items())
    print(
        f"T = {total}: {len(longer)} numbers of steps, from {least} on; "
        f"{least} steps have {len(found)} timesteps, the last is {found[-1]}"
    )
    assert (len(longer), least) == (many, first), longer.keys()
    assert all(len(t) == n + 1 and t[-1] == -1 for n, t in longer.items())
    assert not any(total % steps == 0 for steps in longer)
PY
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$python" "$folder/timesteps.py"
