"""The page of a question: its rule in words, its answer, and where the numbers come from."""

from pathlib import Path
from typing import Any

from bn_vgg.run_dir import Workdir
from experiments.asking import answers, early
from experiments.asking.answers import FULL, MEAN_ONLY, Answer
from experiments.diagnosing import diagnosis

RULES = {
    "early": (
        "*Total* is how much higher mean-only's validation error is than the baseline's at epoch "
        "1; *lag* is how much higher its error there is by running averages than by precise "
        "statistics, on the same images. Above chance is more than "
        f"{diagnosis.FEW_EPOCHS_ERRORS} standard errors, at their largest. {early.NOT_WORSE!r} "
        f"if total is above chance in no seed. {early.LAGGING!r} if in every seed total and lag "
        "are above chance, lag is at least half of total, and decay 0.9 takes away at least half "
        f"of lag. {early.NOISY!r} if in every seed total is above chance and precise "
        f"statistics leave at least half of it. Otherwise {diagnosis.UNDECIDED!r}. Decay changes "
        "the running averages alone, never the training: the losses have to be equal."
    ),
    "spikes": (
        "Spikes and their causes are found as `experiments.diagnose` finds them. "
        f"{diagnosis.AVERAGES!r} or {diagnosis.WEIGHTS!r} if at least two thirds of the decided "
        f"spikes are of that cause, {answers.BOTH!r} if neither, {diagnosis.UNDECIDED!r} with "
        f"fewer than {answers.FEWEST_SPIKES} decided ones."
    ),
    "dropout": (
        "A run breaks down if, over the last half of its epochs, the median of validation minus "
        f"training error is above {diagnosis.points(answers.BREAKDOWN_GAP)}, or the median "
        f"validation error is within {diagnosis.points(answers.NEAR_CHANCE)} of chance and that "
        f"in training at least {diagnosis.points(answers.BELOW_CHANCE)} lower. The verdict names "
        "what breaks down, in every seed, with running statistics of passes without dropout: "
        f"{MEAN_ONLY!r}, {FULL!r}, {answers.BOTH!r} or {answers.NEITHER!r}; "
        f"{diagnosis.UNDECIDED!r} if seeds disagree or runs are missing."
    ),
    "cheap": (
        "A training step's time over that without normalization, of neighbouring turns in one "
        "process: the median over the rounds, with the least and the most. *Two passes*: the "
        "recipe takes running statistics from a second pass, without dropout."
    ),
}


def page(
    answer: Answer, gaps: list[str], runs: list[tuple[str, int, Path]], about: dict[str, Any]
) -> str:
    """Makes the page: the rule, the answer, the tables, and where the numbers come from.

    Args:
      answer: to show.
      gaps: a line for each run that is missing or unfinished.
      runs: role, seed and folder of each.
      about: what was measured besides runs, with its command and hardware, or nothing.
    """
    folders = [(role, seed, Workdir(str(folder), writes=False)) for role, seed, folder in runs]
    made = [
        (f"{role}, seed {seed}", folder.read("result.json"))
        for role, seed, folder in folders
        if folder.exists("result.json")
    ]
    origins = [f"- {of_which}: `{of['command']}`, commit {of['commit']}" for of_which, of in made]
    if about:
        origins.append(f"- measured besides: `{about['command']}`, commit {about['commit']}")
    machines = {
        f"{of['hardware']['num_devices']} {of['hardware']['device']} "
        f"({of['hardware']['cpu_cores']} cores), jax {of['versions']['jax']}"
        for of in [*(of for _, of in made), about] if of
    }  # fmt: skip
    return "\n".join(
        [
            f"# {answers.ASKED[answer.question]} {answer.verdict.capitalize()}", "",
            " ".join(answer.sentences), "",
            *(f"- {gap}" for gap in gaps), *[""] * bool(gaps),
            f"![{answer.question}: {answer.verdict}]({answer.question}.png)", "",
            f"**The rule.** {RULES[answer.question]}", "",
            *(line for title, rows in answer.tables.items() for line in _table(title, rows)),
            "## Where the numbers come from", "",
            *origins, "",
            f"Hardware: {'; '.join(sorted(machines)) or 'not recorded yet'}.", "",
        ]
    )  # fmt: skip


def _table(title: str, rows: answers.Table) -> list[str]:
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return [f"## {title}", "", head, f"|{' --- |' * len(rows[0])}", *rest, ""]
