"""Compares groups of runs over seeds: grouping, measurements, a table and a figure."""

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
from experiments.runs import MAY_DIFFER

# The field with the arguments of the component that another field names.
_SETTINGS = {
    "model.norm": "model.norm_kwargs", "model.name": "model.kwargs",
    "optimizer.name": "optimizer.kwargs", "schedule.name": "schedule.kwargs",
}  # fmt: skip


def extra_keys(by: Sequence[str]) -> list[str]:
    """Returns the `extra_keys` of `read_runs` for grouping by the fields `by`."""
    return list(dict.fromkeys(["num_epochs", *(field for field in by if field in MAY_DIFFER)]))


def group(runs: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Groups runs so that runs of one group differ only in their seeds.

    Returns:
      The runs with a column `group`, the values of the grouping fields as text; the grouping
      fields, which are `by` and as few others as are necessary; and the other fields that differ
      between groups.

    Raises:
      UserError: one of `by` is not a field.
    """
    known = ["section", "user_code", *flatten(default.get_config().to_dict(), fields=KWARGS)]
    for field in by or [""]:
        if field not in known:
            close = ", ".join(difflib.get_close_matches(field, known, cutoff=0.5))
            guess = f"did you mean {close}?" if close else "see configs/default.py"
            raise UserError(f"--by: the configuration has no field {field!r}; {guess}")
        if field not in runs:
            raise UserError(f"--by: none of these runs has recorded {field}")
    texts = runs[[field for field in (*known, "cell") if field in runs]].map(str)
    texts = texts.replace({"user_code": "nan"}, stats.NOT_MEASURED)
    hidden = {*MAY_DIFFER, "cell"} - {*extra_keys(by)}
    others = [field for field in texts if field not in hidden]
    # Prefer a name, such as model.name, to settings.
    others.sort(key=lambda field: field != "section" and not field.endswith(".name"))
    fields = list(by)
    for field in others:
        if texts.groupby(fields)[field].nunique().max() > 1:
            fields.append(field)
    # Fields such as eval.precise_examples are part of the cell only in some runs.
    if texts.groupby(fields)["cell"].nunique().max() > 1:
        fields.append("cell")
    texts["group"] = texts[fields].agg(", ".join, axis=1)
    besides = [x for x in others if x not in (*fields, "user_code") and texts[x].nunique() > 1]
    return runs.assign(**texts[[*fields, "group"]]), fields, besides


def measure(
    runs: pd.DataFrame,
    fields: Sequence[str],
    against: str | None = None,
    target: float | None = None,
) -> dict[str, pd.DataFrame]:
    """Returns tables of measurements by name, with a row for each seed, a column for each group.

    Args:
      runs: finished runs, from `group`; with a `target` they need a column `seconds_to`.
      fields: the grouping fields, from `group`.
      against: a value of the first field, or values of several fields, separated by commas. Each
        group is compared with the group that has these values and the same others. If None, all
        groups are compared with the best one.
      target: the validation error of `seconds_to`, in percent.

    Raises:
      UserError: no group has these values.
    """

    def of(column: str, factor: float = 1) -> pd.DataFrame:
        return runs.pivot(index="seed", columns="group", values=column)[order] * factor

    order = runs.groupby("group")["best_valid_error_rate"].mean().sort_values().index
    references = dict.fromkeys(order, order[0])
    if against is not None:
        whole = against in set(runs[fields[0]])  # a value may contain commas
        values = [against] if whole else [x.strip() for x in against.split(",", len(fields) - 1)]
        groups = runs.drop_duplicates("group").set_index("group")
        chosen = groups[(groups[list(fields[: len(values)])] == values).all(axis=1)]
        # The settings of these values, such as norm_kwargs, need not be the same.
        theirs = [_SETTINGS.get(field) for field in fields[: len(values)]]
        rest = [x for x in fields[len(values) :] if x not in (*theirs, "user_code")]
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
    """Returns for each folder the seconds until the validation error is at most `percent`.

    They include training, evaluation and records. The first epoch, which includes compilation,
    counts as the median of the others. NaN if the error stays higher. `epochs` is from `read_runs`.
    """

    def of(run: pd.DataFrame) -> float:
        lengths = run["seconds"].diff()  # with only one epoch the time is unknown
        reached = run["valid/error_rate"] <= percent / 100
        return lengths.fillna(lengths.median()).cumsum()[reached].min()

    epochs = epochs.reindex(columns=["folder", "seconds", "valid/error_rate"])
    return epochs.groupby("folder")[["seconds", "valid/error_rate"]].apply(of)


def table(measured: dict[str, pd.DataFrame]) -> str:
    """Formats a line for each group, the best first; two lines if names are long."""
    rows = [("group", "seeds", *measured)]
    for name, count in measured["valid error"].count().items():
        cells = [_text(values[name].dropna(), what, count) for what, values in measured.items()]
        rows.append((str(name), str(count), *cells))
    lines = status.format_columns(rows, 10**6)
    if max(map(len, lines)) > status.WIDTH:
        header, *numbers = status.format_columns([("", *row[1:]) for row in rows], status.WIDTH)
        names = [name[: status.WIDTH] for name, *_ in rows[1:]]
        lines = [header, *itertools.chain(*zip(names, numbers, strict=True))]
    return "\n".join(lines)


def _text(values: pd.Series, what: str, seeds: int) -> str:
    if values.empty:
        return stats.NOT_MEASURED
    digits, sign = int(what != "images/s"), "+" if what == "difference" else ""
    interval = stats.mean_interval(values)
    half = f" ± {interval.high - interval.mean:.{digits}f}" if interval else ""
    count = f" ({len(values)} of {seeds})" if len(values) < seeds else ""
    return f"{values.mean():{sign}.{digits}f}{half}{count}"


def draw(
    measured: dict[str, pd.DataFrame], runs: pd.DataFrame, fields: Sequence[str], caption: str
) -> Figure:
    """Draws a panel for each measurement; colours are by the first field."""
    names, palette = list(measured["valid error"]), matplotlib.color_sequences["tab10"]
    labels = [textwrap.fill(name, 30) for name in names]
    row_height = 0.17 * max(2, *(label.count("\n") + 1.5 for label in labels))  # inches
    colour_index = dict(zip(runs["group"], pd.factorize(runs[fields[0]])[0], strict=True))
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 1.5 + row_height * len(names)), layout="constrained")
        figure.suptitle(textwrap.fill(caption, 125), x=0.01, ha="left", size=8.5, color="#555555")
        panels = figure.subplots(1, len(measured), sharey=True)
        for axes, (what, values) in zip(panels, measured.items(), strict=True):
            for row, name in enumerate(names):
                seeds, colour = values[name].dropna(), palette[colour_index[name] % len(palette)]
                interval = stats.mean_interval(seeds)
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
