"""The sweeps that have a name: which cells of the grid they train.

`--seeds` says how often each is trained, `--variant` at which size, `--set` what else is
changed in all of them. A sweep of your own is a Python file, named by its path, with a
generator of flat overrides:

    def sweep():
        for ghost_size in (10, 25, 50):
            yield {
                "config": "meanonly_crop",
                "model.norm": "ghost",
                "model.norm_kwargs": {"ghost_size": ghost_size},
            }

`config` names a cell of configs/, or a file of your own by its path; `name` is what the run is
called, else the cell's name and what is overridden. Where a `seed` is among the overrides, the
run is made with that one and no other.
"""

from typing import Any

Overrides = dict[str, Any]

# Of the configurations, by the windows' size, the published one first.
VARIANTS = ("full", "small", "demo")

CELLS = tuple(
    f"{norm}{rest}"
    for norm in ("baseline", "meanonly", "full")
    for rest in ("", "_crop", "_crop_dropout")
)
# Every normalizer that comes with the code and is no cell of the grid.
_OTHER_NORMS = (
    "weight_norm", "weight_norm_mean_only", "group", "layer", "instance", "filter_response",
    "ghost", "batch_renorm",
)  # fmt: skip

PRESETS: dict[str, list[Overrides]] = {
    # The batch-normalized runs of the post's two figures, and the control beside them. What
    # decides most comes first: a sweep that is cut short has it.
    "five_way": [
        {"config": "meanonly_crop"},
        {"config": "full_crop"},
        {"config": "meanonly_crop_dropout"},
        {"config": "full_crop_dropout"},
        {"config": "meanonly"},
        {"config": "baseline"},
    ],
    "figure1": [{"config": "baseline"}, {"config": "meanonly"}],
    "figure2": [
        {"config": "full_crop"},
        {"config": "full_crop_dropout"},
        {"config": "meanonly_crop"},
        {"config": "meanonly_crop_dropout"},
    ],
    "grid": [{"config": cell} for cell in CELLS],
    "norms": [
        {"config": "baseline_crop"},
        {"config": "meanonly_crop"},
        {"config": "full_crop"},
        *(
            {"config": "baseline_crop", "name": f"{norm}_crop", "model.norm": norm}
            for norm in _OTHER_NORMS
        ),
    ],
}
