#!/usr/bin/env bash
# PyTorch: group_norm of a channels-last tensor loses its digits on a CPU as the mean grows.
#
# torch 2.13.0, Python 3.11, x86-64, no GPU needed.
# For a channels-last float32 tensor on a CPU, torch.nn.functional.group_norm takes the variance as
# mean(x^2) - mean(x)^2 in float32. With values of mean m and spread 1 that is the difference of two
# numbers near m^2, so some m^2 roundoffs of the result are wrong: at mean 1000 a tenth of the output
# or more, by shape and processor. The same call on the contiguous tensor loses m roundoffs, in its
# affine map a x + b. Relative L2 errors against float64, (8, 32, 16, 16) in 8 groups, seen with
# AVX-512, with AVX2 and with neither (ATEN_CPU_CAPABILITY=default):
#
#     mean     channels-last          contiguous
#        0     6.6e-08 to 7.9e-08     4.9e-08 to 5.2e-08
#      100     1.7e-03                4.2e-06 to 4.5e-06
#     1000     1.2e-01 to 1.5e-01     3.4e-05 to 3.8e-05
#
# No warning is given. Whoever measures a kernel's error by that of the channels-last call accepts
# anything.
#
# Exits 0 as long as it is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.3.5'

cat > "$folder/errors.py" <<'PY'
import torch
from torch.nn.functional import group_norm


def errors(mean):
    """Relative L2 errors of the channels-last and of the contiguous call."""
    torch.manual_seed(0)
    x = torch.randn(8, 32, 16, 16) + mean
    exact = group_norm(x.double(), 8)
    calls = [group_norm(x.contiguous(memory_format=torch.channels_last), 8), group_norm(x, 8)]
    return [float((y.double() - exact).norm() / exact.norm()) for y in calls]


print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
print("mean  channels-last  contiguous")
found = {mean: errors(mean) for mean in (0, 100, 1000)}
for mean, (last, first) in found.items():
    print(f"{mean:4}        {last:.1e}     {first:.1e}")
assert max(found[0]) < 1e-6, "at mean 0 both are right"
last, first = found[1000]
assert first < 1e-3, "the contiguous call has lost its digits as well"
if last < 0.01:
    raise SystemExit(f"torch {torch.__version__}: channels-last is right to {last:.1e} now")
PY
"$python" "$folder/errors.py"
ATEN_CPU_CAPABILITY=default "$python" "$folder/errors.py"
echo "still so"
