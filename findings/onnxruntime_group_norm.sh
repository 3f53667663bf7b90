#!/usr/bin/env bash
# onnxruntime: GroupNormalization (ONNX opset 21 and later) loses float32 inputs of a large mean.
#
# onnxruntime 1.32.0 and onnx 1.23.2, Python 3.11, CPU.
# The standard defines GroupNormalization by other operators, and there the variance is
# E[x^2] - E[x]^2 in float32. onnxruntime has no kernel of its own for it on a CPU: the session runs
# that definition, as onnx's reference evaluator does. The two terms agree in all digits where the
# mean is some thousand standard deviations: the difference is rounding, and its square root NaN
# where it is negative. The norm by InstanceNormalization (of the groups as channels, what PyTorch's
# exporter writes up to opset 20) has a kernel there, which subtracts the mean first.
#
# Largest error of 2 images of 4 channels in 2 groups, standard deviation 1, against float64:
#
#     mean       0: GroupNormalization 2e-07, InstanceNormalization 3e-07
#     mean     100: GroupNormalization 1e-03, InstanceNormalization 6e-06
#     mean   1,000: GroupNormalization 1e-01, InstanceNormalization 7e-05
#     mean 100,000: GroupNormalization nan, InstanceNormalization 7e-03
#
# (Those of the second are the rounding of the input itself, half a unit in the last place of the
# mean.)
#
# Exits 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy==2.3.5'

cat > "$folder/compare.py" <<'PY'
import onnx
import onnxruntime
import numpy as np
from onnx import TensorProto, helper

N, C, GROUPS, SIDE, EPS = 2, 4, 2, 8, 1e-6


def session(opset, nodes, constants=()):
    """x (N, C, SIDE, SIDE), scale, shift -> y, checked by onnx and loaded by onnxruntime."""
    per_channel = (C,) if opset >= 21 else (GROUPS,)
    inputs = {"x": (N, C, SIDE, SIDE), "scale": per_channel, "shift": per_channel}
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, inputs["x"])],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "run.onnx"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    cpu = ["CPUExecutionProvider"]
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=cpu)
    ops = {node.op_type for node in onnx.load("run.onnx").graph.node}
    size = per_channel[0]
    unit = {"scale": np.ones(size, np.float32), "shift": np.zeros(size, np.float32)}
    return lambda x: made.run(None, {"x": x, **unit})[0], ops


def as_group_norm(opset):
    node = helper.make_node(
        "GroupNormalization", ["x", "scale", "shift"], ["y"], num_groups=GROUPS, epsilon=EPS
    )
    return session(opset, [node])


def as_instance_norm(opset):
    def shape(name, sizes):
        return helper.make_tensor(name, TensorProto.INT64, [len(sizes)], sizes)

    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["x_grouped"]),
        helper.make_node(
            "InstanceNormalization", ["x_grouped", "scale", "shift"], ["y_grouped"], epsilon=EPS
        ),
        helper.make_node("Reshape", ["y_grouped", "whole"], ["y"]),
    ]
    return session(
        opset, nodes, [shape("grouped", [N, GROUPS, -1]), shape("whole", [N, C, SIDE, SIDE])]
    )


def exact(x):
    groups = x.astype(np.float64).reshape(N, GROUPS, -1)
    mean = groups.mean(-1, keepdims=True)
    variance = ((groups - mean) ** 2).mean(-1, keepdims=True)
    return ((groups - mean) / np.sqrt(variance + EPS)).reshape(x.shape)


print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
group_norm, ops = as_group_norm(21)
assert "GroupNormalization" not in ops and "ReduceMean" in ops, f"a kernel of its own now: {ops}"
instance_norm, _ = as_instance_norm(20)
noise = np.random.default_rng(0).standard_normal((N, C, SIDE, SIDE))
for mean in (0, 100, 1_000, 100_000):
    x = (noise + mean).astype(np.float32)
    bad, good = (np.abs(run(x) - exact(x)).max() for run in (group_norm, instance_norm))
    print(f"mean {mean:7,}: GroupNormalization {bad:.0e}, InstanceNormalization {good:.0e}")
    rounding = 2.0**-23 * max(1, mean)  # one unit in the last place of the input
    assert good <= 4 * rounding, "InstanceNormalization is wrong now"
    if mean == 100_000:
        assert np.isnan(bad), "no NaN at a large mean"
    elif mean:
        assert bad > 100 * rounding, "GroupNormalization is as exact as its input now"
PY
cd "$folder"
"$python" compare.py
echo "still so"
