#!/usr/bin/env bash
# Triton: a kernel's argument named `params` never reaches the kernel.
#
# triton 3.9.0 and 3.6.0, Python 3.11, no GPU needed (a stub driver; the same on a real one).
# Launching a @triton.jit kernel goes through a function that Triton writes for it. Its parameters
# are the kernel's, and its first statement assigns a dict to the name `params`. A tensor passed for
# an argument of that name is gone by the time its type is looked up. Seen on both versions:
#
#     TypeError: failed to specialize argument of type: dict
#
# The same kernel passes triton.compile (ahead of time) and runs under TRITON_INTERPRET=1, where
# that function is not used, so tests of those two kinds do not show it.
#
# Exits 0 as long as both versions behave so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.3.5'

cat > "$folder/kernels.py" <<'PY'
import triton
import triton.language as tl


@triton.jit
def add_one_kernel(params, out, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(out + i, tl.load(params + i) + 1)


@triton.jit
def renamed_kernel(weights, out, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(out + i, tl.load(weights + i) + 1)
PY
cat > "$folder/launch.py" <<'PY'
from types import SimpleNamespace

import torch
import triton
from kernels import add_one_kernel, renamed_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

target = GPUTarget("cuda", 90, 32)


class Driver:
    """Compiles for sm_90 and launches nothing."""

    launched = 0
    utils = SimpleNamespace(
        load_binary=lambda *args: (1, 2, 32, 0, 1024),
        unload_module=lambda module: None,
        get_device_properties=lambda device: {"max_shared_mem": 232448},
    )

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return target

    def launcher_cls(self, source, metadata):
        def launch(*args):
            Driver.launched += 1

        return launch


signature = {"params": "*fp32", "out": "*fp32", "block": "constexpr"}
source = ASTSource(fn=add_one_kernel, signature=signature, constexprs={(2,): 16})
assert triton.compile(source, target=target).asm["cubin"], "ahead of time it compiles"

triton.runtime.driver.set_active(Driver())
a, b = torch.zeros(16), torch.zeros(16)
renamed_kernel[(1,)](a, b, block=16)
assert Driver.launched == 1, "with another name it launches"
try:
    add_one_kernel[(1,)](a, b, block=16)
except TypeError as error:
    print(f"triton {triton.__version__}: TypeError: {error}")
    assert "dict" in str(error)
else:
    raise SystemExit(f"triton {triton.__version__}: `params` reaches the kernel now")
PY
cat > "$folder/interpret.py" <<'PY'
import torch
import triton
from kernels import add_one_kernel

a, b = torch.zeros(16), torch.zeros(16)
add_one_kernel[(1,)](a, b, block=16)
assert b.eq(1).all(), "interpreted it runs"
print(f"triton {triton.__version__}, interpreted: runs")
PY
for version in 3.6.0 3.9.0; do
    "$python" -m pip install --quiet "triton==$version" 2> /dev/null
    TRITON_CACHE_DIR="$folder/cache-$version" "$python" "$folder/launch.py"
    TRITON_INTERPRET=1 "$python" "$folder/interpret.py"
done
echo "still so"
