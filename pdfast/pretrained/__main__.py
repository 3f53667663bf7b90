"""Make the models that come with pdfast from a finished run.

    pdfast distill --rounds 13
    python -m pdfast.pretrained runs/digits

The run's teacher and its students of at most 8 steps are stored as float16 beside this file. Each
manifest has the commit, the command, and the model's distance in the run's report.
"""

import argparse
import json
import subprocess
from pathlib import Path

from pdfast.config.schema import load_config
from pdfast.errors import PdfastError, UsageError
from pdfast.models.checkpoint import load_model, save_model
from pdfast.models.pretrained import FOLDER

MOST_STEPS = 8  # students of more steps are not stored, to save space
ABOUT = """The models named {config} were made by `{command}`, commit {commit}, and are stored as
float16. The report of that run, in float32, follows.

"""


def main() -> None:
    """Store the models of the run on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory that has a report")
    parser.add_argument("--command", default="pdfast distill --rounds 13", help="its command")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the models")
    asked = parser.parse_args()
    pack(asked.run, asked.out, asked.command)


def pack(run: Path, out: Path, command: str) -> None:
    """Store the teacher and the students of a run as NAME-teacher and NAME-STEPS in `out`.

    Args:
        run: Run directory with a report.
        out: Folder of the models.
        command: Command that made the run, for the manifests.

    Raises:
        UsageError: The run has no report.
        PdfastError: The report has no distance of a model, or a model cannot be read or written.
    """
    config = load_config(run / "config.toml")
    if not (run / "report.json").is_file():
        raise UsageError(f"{run} has no report: run pdfast eval {run}")
    report = json.loads((run / "report.json").read_text("utf-8"))
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    made = {
        "config": config.name,
        "command": command,
        "commit": subprocess.check_output(git, text=True).strip(),
    }
    models = {run / "teacher": ("teacher", "teacher", str(config.eval.baseline_steps))}
    for steps in config.distill.plan:
        if steps <= MOST_STEPS:
            (path,) = run.glob(f"round-*-steps-{steps:04d}")
            models[path] = (str(steps), "student", str(steps))
    for path, (name, role, steps_text) in models.items():
        if steps_text not in report[role]:
            raise PdfastError(
                f"{run}'s report has no {role} at {steps_text} steps: run pdfast eval {run} "
                f"--steps {steps_text}"
            )
        facts = {**made, "metric": report["metric"], "distance": report[role][steps_text]}
        save_model(load_model(path), out / f"{config.name}-{name}", half=True, **facts)
    paragraphs = (run / "report.md").read_text("utf-8").split("\n\n")
    # The report's pictures are not stored.
    about = "\n\n".join(each for each in paragraphs if not each.startswith("!["))
    (out / f"{config.name}.md").write_text(ABOUT.format(**made) + about, "utf-8")


if __name__ == "__main__":
    main()
