"""Decides one of four questions by experiment and by a rule that was fixed beforehand.

python -m experiments.questions early|spikes|dropout|cheap [--source=FILES] [--variant=full]

Trains what the question needs, one run after the other, each by `python -m bn_vgg.main`: what
is finished is not run again, what was interrupted goes on. Then writes OUT/NAME.md, .png and
.json. `--report_only` decides from the runs that are there, `--dry_run` only prints commands.
The picture needs matplotlib: pip install -e '.[report]'.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from bn_vgg import cli, provenance
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import (
    EXIT_HUNG_UP,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Interrupted,
    UserError,
)
from bn_vgg.run_dir import Workdir
from configs import default
from experiments.asking import answers, early, mechanism
from experiments.asking.answers import Answer, Runs
from experiments.asking.question_page import RULES, page
from experiments.diagnosing import diagnosis
from experiments.plan import parse_seeds
from experiments.records import keep_run

_SOURCE = flags.DEFINE_string("source", None, "data.source of the runs; else the config's.")
_VARIANT = flags.DEFINE_enum("variant", "small", ["full", "small", "demo"], "Of the configs.")
_OUT = flags.DEFINE_string("out", "runs/questions", "Folder of the runs and the answers.")
_SEEDS = flags.DEFINE_string("seeds", None, "As experiments.sweep's, for the question's own.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Instead of the question's own.", lower_bound=1)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands of the runs and end.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Run nothing: decide from what is there.")
_RECORD = flags.DEFINE_string("record", None, "Folder to copy the answer and its runs' lines to.")


class Cell(NamedTuple):
    """A configuration: a file of configs/, and one field to change with the folder's suffix."""

    config: str
    override: str = ""
    suffix: str = ""


class Question(NamedTuple):
    """Its runs by role, each made with every seed."""

    seeds: tuple[int, ...]
    epochs: int
    runs: dict[str, Cell]


QUESTIONS = {
    "early": Question((0, 1), 5, {
        "mean-only": Cell("meanonly"),
        "decay 0.9": Cell("meanonly", "model.norm_decay=0.9", "-decay0.9"),
        "batch 400": Cell("meanonly", "batch_size=400", "-batch400"),
        "baseline": Cell("baseline"),
    }),
    "spikes": Question((0,), 12, {
        "mean-only": Cell("meanonly_crop"),
        "full": Cell("full_crop"),
    }),
    "dropout": Question((0,), 10, {
        "mean-only, clean statistics": Cell("meanonly_crop_dropout"),
        "full, clean statistics": Cell("full_crop_dropout"),
        "mean-only, dropout statistics": Cell(
            "meanonly_crop_dropout", "model.stats_pass=dropout", "-stats_dropout"
        ),
        "full, dropout statistics": Cell(
            "full_crop_dropout", "model.stats_pass=dropout", "-stats_dropout"
        ),
    }),
    "cheap": Question((), 0, {}),
}  # fmt: skip
MEASURED = {"dropout": "dropout_mechanism.json", "cheap": "cheap_times.json"}


class Plan(NamedTuple):
    """One run: what it is for, where it is, and the arguments of `python` that make it."""

    role: str
    seed: int
    folder: Path
    arguments: list[str]


def main(name: str) -> None:
    """Runs the command."""
    if name not in QUESTIONS:
        raise UserError(f"no question {name!r}; there are: {', '.join(QUESTIONS)}")
    epochs, out = _EPOCHS.value or QUESTIONS[name].epochs, Path(_OUT.value)
    if "://" in _OUT.value:
        raise UserError(f"--out={_OUT.value} is not on this machine, where the answer is written")
    plans = plan_runs(QUESTIONS[name], epochs, out)
    if _DRY_RUN.value:
        print("\n".join(shlex.join(["python", *plan.arguments]) for plan in plans))
        return
    with cli.needing("report", {"matplotlib": "picture"}):
        from experiments import figures
        from experiments.asking import question_figures
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not _REPORT_ONLY.value:
            run_all(plans)
        _measure(name, plans, out)
        runs, gaps = read_runs(plans, epochs)
        answer, about = decide(name, runs, out)
        figure = question_figures.DRAW[name](runs, answer)
        with cli.replacing(out / f"{name}.png") as partial:
            figures.save(figure, partial)
        _write(out / f"{name}.json", {"rule": RULES[name], **_for_json(answer), "missing": gaps})
        with cli.replacing(out / f"{name}.md") as partial:
            partial.write_text(
                page(answer, gaps, [(plan.role, plan.seed, plan.folder) for plan in plans], about),
                encoding="utf-8",
            )
        if _RECORD.value:
            record(name, plans, out, Path(_RECORD.value))
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
    print("\n".join([f"{name}: {answer.verdict}", *gaps, f"{out}/{name}.md"]))


def plan_runs(question: Question, epochs: int, out: Path) -> list[Plan]:
    """Lists every run in the order in which they are made: seed after seed."""
    seeds = parse_seeds(_SEEDS.value) if _SEEDS.value else question.seeds
    plans = []
    for seed in seeds:
        for role, cell in question.runs.items():
            folder = out / f"{cell.config}-{_VARIANT.value}{cell.suffix}" / f"seed{seed}"
            arguments = ["-m", "bn_vgg.main", f"--config=configs/{cell.config}.py:{_VARIANT.value}"]
            if _SOURCE.value:
                arguments.append(f"--config.data.source={_SOURCE.value}")
            arguments += [f"--config.seed={seed}", f"--config.num_epochs={_most(epochs, folder)}"]
            if cell.override:
                arguments.append(f"--config.{cell.override}")
            arguments += ["--notensorboard", f"--workdir={folder}"]
            if _CACHE_DIR.value:
                arguments.append(f"--cache_dir={_CACHE_DIR.value}")
            plans.append(Plan(role, seed, folder, arguments))
    return plans


def _most(epochs: int, folder: Path) -> int:
    """So many epochs, or as many as the run there was begun for: a run cannot be shortened."""
    workdir = Workdir(str(folder), writes=False)
    if not workdir.exists("config.json"):
        return epochs
    return max(epochs, workdir.read("config.json").get("num_epochs", 0))


def _execute(arguments: list[str]) -> int:
    """Runs a command; waits, when this process is stopped, until it has kept what it has."""
    with subprocess.Popen(arguments) as process:
        try:
            return process.wait()
        except KeyboardInterrupt as error:
            # The others reach both.
            if isinstance(error, Interrupted) and error.status == EXIT_TERMINATED:
                process.terminate()
            process.wait()
            raise


def run_all(plans: list[Plan], execute: Callable[[list[str]], int] = _execute) -> None:
    """Makes the runs. `execute` takes a command line and returns its exit status.

    Raises:
      UserError: one of them failed; those after it are not tried.
    """
    for number, plan in enumerate(plans, start=1):
        print(f"run {number} of {len(plans)}: {plan.folder}", flush=True)
        status = execute([sys.executable, *plan.arguments])
        if status in (EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_HUNG_UP):
            raise KeyboardInterrupt
        if status:
            raise UserError(f"{plan.folder} failed with exit status {status}: see above")


def _measure(name: str, plans: list[Plan], out: Path) -> None:
    """Measures what a question needs besides runs' lines.

    With `--report_only` too, where a run's checkpoints are there: it takes seconds.
    """
    folder = choose_folder(_CACHE_DIR.value)
    cli.keep_compiled(folder)
    found: dict[str, Any] = {}
    if name == "cheap" and not _REPORT_ONLY.value:
        config = default.get_config(_VARIANT.value)
        found = {"variant": _VARIANT.value, "seconds": mechanism.step_seconds(config)}
    elif name == "dropout":
        for plan in plans:
            norm, _, kind = plan.role.partition(", ")
            if kind == "clean statistics" and (plan.folder / "checkpoints").exists():
                means = mechanism.measure(str(plan.folder), folder)
                found.setdefault("means", {}).setdefault(norm, {})[plan.seed] = means
    if found:
        found |= {"command": provenance.command(), "commit": provenance.commit()}
        found |= {"hardware": provenance.hardware(), "versions": provenance.versions()}
        _write(out / MEASURED[name], found)


def read_runs(plans: list[Plan], epochs: int) -> tuple[Runs, list[str]]:
    """Reads the runs' first epochs; says of each that is not there or not finished."""
    runs: Runs = {}
    gaps = []
    for plan in plans:
        of_role = runs.setdefault(plan.role, {})
        lines = plan.folder / "metrics.jsonl"
        if not lines.exists() or not lines.stat().st_size:
            gaps.append(f"missing: {plan.folder}")
            continue
        run = diagnosis.read_run(str(plan.folder))
        run = run._replace(lines=[line for line in run.lines if line["epoch"] <= epochs])
        of_role[plan.seed] = run
        if run.lines[-1]["epoch"] < epochs:
            gaps.append(f"unfinished: {plan.folder}, {run.lines[-1]['epoch']} of {epochs} epochs")
    if plans and not any(runs.values()):
        raise UserError(f"none of the runs is in {_OUT.value}: see --dry_run")
    return runs, gaps


def decide(name: str, runs: Runs, out: Path) -> tuple[Answer, dict[str, Any]]:
    """Applies the question's rule. Returns also what was measured besides runs, if any."""
    measured: dict[str, Any] = {}
    if name in MEASURED and (out / MEASURED[name]).exists():
        measured = Workdir(str(out), writes=False).read(MEASURED[name])
    if name == "early":
        return early.answer_early(runs), measured
    if name == "spikes":
        return answers.answer_spikes(runs), measured
    if name == "dropout":
        ratios = {
            norm: {int(seed): mechanism.ratios(of) for seed, of in by_seed.items()}
            for norm, by_seed in measured.get("means", {}).items()
        }
        return answers.answer_dropout(runs, ratios), measured
    if not measured:
        raise UserError(f"nothing was timed yet: there is no {out / MEASURED[name]}")
    return answers.answer_cheap(measured["seconds"]), measured


def record(name: str, plans: list[Plan], out: Path, to: Path) -> None:
    """Copies the answer and its runs' small files into a folder of the same layout."""
    if to.resolve() == out.resolve():
        raise UserError(f"--record={to}: the answer is there already; name another folder")
    for path in [*out.glob(f"{name}.*"), *out.glob(f"{name}_*.json")]:
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / path.name)
    for plan in plans:
        keep_run(plan.folder, to / plan.folder.relative_to(out))


def _for_json(answer: Answer) -> dict[str, Any]:
    return {key: of for key, of in asdict(answer).items() if key != "tables"}


def _write(path: Path, content: dict[str, Any]) -> None:
    with cli.replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, positional=("NAME",))
