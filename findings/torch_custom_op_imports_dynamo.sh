#!/usr/bin/env bash
# PyTorch: the first call of an op made by torch.library.custom_op imports torch._dynamo.
#
# torch 2.13.0 (CPU), numpy 2.4.6, Python 3.11.
# A custom_op's function runs behind torch._disable_dynamo, which imports torch._dynamo, and with it
# sympy and torch.distributed.fsdp, when it is first called, in programs that compile nothing. That
# is one to two seconds of the first call, and the same indirection stays in every call. The same
# function under torch.library.Library, with the same schema, imports nothing and is called in about
# half the time.
#
#     Library:   torch._dynamo imported: False
#     custom_op: torch._dynamo imported: True, sympy: True, torch.distributed.fsdp: True
#     custom_op takes about twice as long a call (12 us, 6 us)
#
# Exits 0 as long as the import is so; the times are printed only.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'torch==2.13.0'
"$python" -m pip install --quiet 'numpy==2.4.6'

cat > "$folder/call.py" <<'PY'
import sys
import time

import torch
from torch import Tensor

HEAVY = ("torch._dynamo", "sympy", "torch.distributed.fsdp")


def double(x: Tensor, times: int) -> Tensor:
    return x.new_empty(x.shape)


library = torch.library.Library("one", "FRAGMENT")
library.define("double" + torch.library.infer_schema(double, mutates_args=()))
library.impl("double", torch.no_grad()(double), "CompositeExplicitAutograd")
by_library = torch.ops.one.double.default
by_custom_op = torch.library.custom_op("two::double", double, mutates_args=())


def imported():
    return {name: name in sys.modules for name in HEAVY}


def call(op, times=1):
    start = time.perf_counter()
    for _ in range(times):
        op(x, 2)
    return (time.perf_counter() - start) / times


x = torch.ones(4)
print("torch", torch.__version__)
first = call(by_library)
print(f"Library:   first call {first:.4f} s, imported: {imported()}")
assert not any(imported().values())
first = call(by_custom_op)
print(f"custom_op: first call {first:.4f} s, imported: {imported()}")
assert all(imported().values())
for name, op in (("Library", by_library), ("custom_op", by_custom_op)):
    print(f"{name}: {1e6 * min(call(op, 5000) for _ in range(5)):.1f} us a call")
PY
"$python" "$folder/call.py"
