#!/usr/bin/env bash
# datasets: parquet files that order their class names differently are joined by number, not by name.
#
# datasets 5.2.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11.
# A ClassLabel column is stored as whole numbers, and the names they stand for in each file's own
# schema. Where two files of one split list the same names in another order, load_dataset takes the
# first file's names for all and keeps the numbers:
# the second file's rows get each other's names. No error, no warning. Readers of mixed files must
# map each file's numbers by its names; concatenate_datasets refuses such sets, so that the two ways
# of joining the same rows do not agree.
#
#     written:      cat dog | dog cat      (file 1: names cat, dog; file 2: names dog, cat)
#     load_dataset: cat dog | cat dog
#     concatenate_datasets: ValueError
#
# Exits 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'datasets==5.2.0' 'pyarrow==26.0.1' 'numpy==2.4.6'

cat > "$folder/join.py" <<'PY'
import sys
import warnings
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features

folder = Path(sys.argv[1])
datasets.disable_progress_bars()
WRITTEN = [("one", ["cat", "dog"], ["cat", "dog"]), ("two", ["dog", "cat"], ["dog", "cat"])]
sets = []
for name, names, rows in WRITTEN:
    features = Features({"label": ClassLabel(names=names)})
    table = Dataset.from_dict({"label": [names.index(row) for row in rows]}, features=features)
    table.to_parquet(folder / f"{name}.parquet")
    sets.append(table)

files = [str(folder / f"{name}.parquet") for name, _, _ in WRITTEN]
with warnings.catch_warnings():
    warnings.simplefilter("error")
    joined = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "cache")
    )
written = [row for _, _, rows in WRITTEN for row in rows]
read = joined.features["label"].int2str(joined["label"][:])
print("datasets", datasets.__version__)
print("written:     ", *written)
print("load_dataset:", *read)
assert written == ["cat", "dog", "dog", "cat"]
assert read == ["cat", "dog", "cat", "dog"], read
try:
    datasets.concatenate_datasets(sets)
except ValueError as error:
    print("concatenate_datasets:", str(error).splitlines()[0][:100])
else:
    raise AssertionError("concatenate_datasets joined the sets")
PY
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$python" "$folder/join.py" "$folder"
