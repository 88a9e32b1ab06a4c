"""Groups of runs over seeds: what makes a group, what is measured of it, a table and a figure."""

import difflib
import itertools
import textwrap
from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bn_vgg.errors import UserError
from bn_vgg.run_dir import KWARGS, flatten
from configs import default
from experiments import plots, stats, status
from experiments.runs import FREE

# Fields of what another field names.
_SETTINGS = {
    "model.norm": "model.norm_kwargs", "model.name": "model.kwargs",
    "optimizer.name": "optimizer.kwargs", "schedule.name": "schedule.kwargs",
}  # fmt: skip


def apart(by: Sequence[str]) -> list[str]:
    """Returns the fields that keep runs of one cell and seed apart, for `read_runs`."""
    return list(dict.fromkeys(["num_epochs", *(field for field in by if field in FREE)]))


def group(runs: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Groups runs so that those of one group differ in nothing but their seeds.

    Returns:
      The runs, with `group`, the values of fields as text; these fields: `by`, and as few others as
      keep apart what differs within the groups of `by`; and what else differs between groups.

    Raises:
      UserError: one of `by` is no field.
    """
    known = ["section", *flatten(default.get_config().to_dict(), fields=KWARGS)]
    for field in by or [""]:
        if field not in known:
            close = ", ".join(difflib.get_close_matches(field, known, cutoff=0.5))
            guess = f"did you mean {close}?" if close else "see configs/default.py"
            raise UserError(f"--by: the configuration has no field {field!r}; {guess}")
        if field not in runs:
            raise UserError(f"--by: none of these runs has recorded {field}")
    texts = runs[[field for field in (*known, "cell") if field in runs]].map(str)
    others = [field for field in texts if field not in {*FREE, "cell"} or field in apart(by)]
    # A network's name says more than its settings.
    others.sort(key=lambda field: field != "section" and not field.endswith(".name"))
    fields = list(by)
    for field in others:
        if texts.groupby(fields)[field].nunique().max() > 1:
            fields.append(field)
    # Cells are told apart by fields that matter in some runs only, such as eval.precise_examples.
    if texts.groupby(fields)["cell"].nunique().max() > 1:
        fields.append("cell")
    texts["group"] = texts[fields].agg(", ".join, axis=1)
    besides = [field for field in others if field not in fields and texts[field].nunique() > 1]
    return runs.assign(**texts[[*fields, "group"]]), fields, besides


def measure(
    runs: pd.DataFrame,
    fields: Sequence[str],
    against: str | None = None,
    target: float | None = None,
) -> dict[str, pd.DataFrame]:
    """Returns what is compared, by its name: a row for each seed, a column for each group.

    Args:
      runs: of `group`, all finished; with a `target` they have a column `seconds_to`.
      fields: of `group`.
      against: a value of the first field, or values of several, with commas. A group's difference
        is from the group with these values and its own other ones; without it, from the best group.
      target: of `seconds_to`, in percent.

    Raises:
      UserError: no group has these values.
    """

    def of(column: str, factor: float = 1) -> pd.DataFrame:
        return runs.pivot(index="seed", columns="group", values=column)[order] * factor

    order = runs.groupby("group")["best_valid_error_rate"].mean().sort_values().index
    references = dict.fromkeys(order, order[0])
    if against is not None:
        whole = against in set(runs[fields[0]])  # a value may itself have commas
        values = [against] if whole else [x.strip() for x in against.split(",", len(fields) - 1)]
        groups = runs.drop_duplicates("group").set_index("group")
        chosen = groups[(groups[list(fields[: len(values)])] == values).all(axis=1)]
        # A value's own settings are nobody else's.
        theirs = [_SETTINGS.get(field) for field in fields[: len(values)]]
        rest = [field for field in fields[len(values) :] if field not in theirs]
        references = {}
        for name in order:
            same = chosen.index[(chosen[rest] == groups.loc[name, rest]).all(axis=1)]
            if len(same) == 1:
                references[name] = same[0]
        if not references:
            raise UserError(f"--against: no group is {against!r}; there are: {'; '.join(order)}")
    valid = of("best_valid_error_rate", 100)
    differences = {
        name: valid[name] - valid[reference]
        for name, reference in references.items()
        if reference in valid and reference != name
    }
    unit, part = ("minutes", 1 / 60) if runs["wall_seconds"].max() >= 120 else ("seconds", 1)
    reaching = {f"{unit} to {target:g}%": of("seconds_to", part)} if target is not None else {}
    return {
        "valid error": valid,
        "difference": pd.DataFrame(differences, valid.index, order, dtype=float),
        "test error": of("test_error_rate", 100),
        unit: of("wall_seconds", part),
        **reaching,
        "images/s": of("images_per_second"),
    }


def seconds_to(epochs: pd.DataFrame, percent: float) -> pd.Series:
    """Returns by folder the seconds until the validation error is `percent` or less.

    Of training, evaluation and records; the first epoch, in which programs are compiled, counts as
    the median of the others. NaN where the error stays higher. `epochs` is of `read_runs`.
    """

    def of(run: pd.DataFrame) -> float:
        lengths = run["seconds"].diff()  # of one epoch alone nothing is known
        reached = run["valid/error_rate"] <= percent / 100
        return lengths.fillna(lengths.median()).cumsum()[reached].min()

    epochs = epochs.reindex(columns=["folder", "seconds", "valid/error_rate"])
    return epochs.groupby("folder")[["seconds", "valid/error_rate"]].apply(of)


def table(measured: dict[str, pd.DataFrame]) -> str:
    """Writes a line for each group, the best first; two where their names are long."""
    rows = [("group", "seeds", *measured)]
    for name, count in measured["valid error"].count().items():
        cells = [_text(values[name].dropna(), what, count) for what, values in measured.items()]
        rows.append((str(name), str(count), *cells))
    lines = status.lay_out(rows, 10**6)
    if max(map(len, lines)) > status.WIDTH:
        header, *numbers = status.lay_out([("", *row[1:]) for row in rows], status.WIDTH)
        names = [name[: status.WIDTH] for name, *_ in rows[1:]]
        lines = [header, *itertools.chain(*zip(names, numbers, strict=True))]
    return "\n".join(lines)


def _text(values: pd.Series, what: str, seeds: int) -> str:
    if values.empty:
        return stats.NOTHING
    digits, sign = int(what != "images/s"), "+" * (what == "difference")
    interval = stats.mean_interval(values)
    half = f" ± {interval.high - interval.mean:.{digits}f}" if interval else ""
    count = f" ({len(values)} of {seeds})" if len(values) < seeds else ""
    return f"{values.mean():{sign}.{digits}f}{half}{count}"


def draw(
    measured: dict[str, pd.DataFrame], runs: pd.DataFrame, fields: Sequence[str], caption: str
) -> Figure:
    """Draws a panel for each thing measured; the first field's values have a colour each."""
    names, palette = list(measured["valid error"]), matplotlib.color_sequences["tab10"]
    labels = [textwrap.fill(name, 30) for name in names]
    row_height = 0.17 * max(2, *(label.count("\n") + 1.5 for label in labels))  # inches
    places = dict(zip(runs["group"], pd.factorize(runs[fields[0]])[0], strict=True))
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 1.5 + row_height * len(names)), layout="constrained")
        figure.suptitle(textwrap.fill(caption, 125), x=0.01, ha="left", size=8.5, color="#555555")
        panels = figure.subplots(1, len(measured), sharey=True)
        for axes, (what, values) in zip(panels, measured.items(), strict=True):
            for row, name in enumerate(names):
                seeds, colour = values[name].dropna(), palette[places[name] % len(palette)]
                # The interval of two seeds would dwarf all else.
                interval = stats.mean_interval(seeds) if len(seeds) >= stats.FEWEST_SEEDS else None
                error = interval.high - interval.mean if interval else None
                axes.errorbar(seeds.mean(), row - 0.1, xerr=error, fmt="D", ms=5, color=colour)
                axes.plot(seeds, [row + 0.2] * len(seeds), "o", ms=4, mfc="none", color=colour)
            axes.set_title(what)
            axes.grid(visible=True)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        panels[list(measured).index("difference")].axvline(0, color="black", lw=0.8)
        panels[0].set_yticks(range(len(names)), labels)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure
