"""The ops register themselves, and each has the files that docs/kernels.md promises."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from torch._ops import OpOverload

import pdfast.kernels
from pdfast.kernels.calls import KINDS
from pdfast.kernels.registry import Op, Stage, register, registered

ROOT = Path(__file__).parents[2]
FILES = sorted({op.file for op in registered().values()})


def test_every_op_is_registered():
    """Python ops with the result of `library.define`, C++ ops where they are built."""
    made = {}
    for found in pkgutil.iter_modules(pdfast.kernels.__path__, "pdfast.kernels."):
        module = importlib.import_module(found.name)
        ops = [v for v in vars(module).values() if isinstance(v, OpOverload)]
        made |= {op._schema.name.removeprefix("pdfast::"): (op, module.__name__) for op in ops}
    for name, (op, module) in made.items():
        assert name in registered(), f"{module} defines {name}: end it with register(Op(...))"
        assert registered()[name].op is op
        assert module == f"pdfast.kernels.{registered()[name].file}"
    schemas = torch._C._jit_get_all_schemas()
    known = {s.name.removeprefix("pdfast::") for s in schemas if s.name.startswith("pdfast::")}
    assert set(made) <= known
    assert known <= set(registered())
    assert all(op.kind in KINDS for op in registered().values())


@pytest.mark.parametrize("file", FILES)
def test_a_file_has_a_test_a_benchmark_and_a_row(file):
    paths = (f"kernels/{file}.py", f"tests/kernels/test_{file}.py", f"benchmarks/bench_{file}.py")
    lacks = [path for path in paths if not (ROOT / path).is_file()]
    table = (ROOT / "docs" / "kernels.md").read_text().split("## The ops")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    row = next((cells for cells in rows if cells[0] == f"`{file}`"), [])
    lacks += [] if len(row) == 3 else [f"a row of 3 cells in docs/kernels.md, The ops, for {file}"]
    assert not lacks, f"{file} lacks {' and '.join(lacks)}"
    tree = ast.parse((ROOT / f"benchmarks/bench_{file}.py").read_text())
    tests = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name[:5] == "test_"]
    measured = [f for f in tests if "measure" in {a.arg for a in f.args.args}]
    assert measured, f"benchmarks/bench_{file}.py has no test that uses the fixture `measure`"
    assert all(cell.strip() for cell in row)


def test_the_order_is_that_of_an_update():
    """`pdfast doctor` lists them in this order; an op beside another shares its line."""
    listed = [op.name for op in registered().values() if not op.beside]
    assert listed[0] == "group_norm_silu"
    assert listed[-1] == "adamw"
    assert listed.index("add_noise") < listed.index("ddim_step") < listed.index("distill_loss")
    assert registered()["data_loss"].file == "distill_loss"


def test_two_ops_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two ops are called adamw: in adamw.py"):
        register(Op(name="adamw", stage=Stage.LOSS, beside="ddim_step"))


def jitted(function: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_functions_have_types_unless_triton_compiles_them(path):
    """mypy requires none in a file of Triton functions, whose arguments have no such types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not jitted(node):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            stars = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            untyped = [a.arg for a in (*arguments, *stars) if a.annotation is None]
            assert node.returns is not None, node.name
            assert untyped in ([], ["self"]), node.name
