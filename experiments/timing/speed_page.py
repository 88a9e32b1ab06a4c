"""What the benchmark has measured, as Markdown."""

from typing import Any


def markdown(about: dict[str, Any]) -> str:
    """Makes the tables, with where they come from."""
    hardware, versions = about["hardware"], about["versions"]
    lines = [
        f"`{about['command']}`, commit {about['commit']}",
        "",
        f"{hardware['num_devices']} {hardware['device']} ({hardware['cpu_cores']} cores), "
        f"{about['dtype']}, precision {about['precision']}, batch 100; jax {versions['jax']}, "
        f"torch {versions['torch']}; peak memory of the process "
        f"{about['peak_memory_gib']:.1f} GiB. Floors are a matrix product's "
        f" {about['ceilings']['flops_per_second'] / 1e9:.0f} GFLOP/s and a copy's "
        f"{about['ceilings']['bytes_per_second'] / 1e9:.0f} GB/s on the same device.",
    ]
    for name in ("rows", "training", "start"):
        if about.get(name):
            lines += ["", *part_markdown({name: about[name]})]
    return "\n".join(lines) + "\n"


def part_markdown(part: dict[str, Any]) -> list[str]:
    """Describes one of the things that are measured: `rows`, `training` or `start`."""
    if "rows" in part:
        return _step_table(part["rows"])
    if "start" in part:
        start = part["start"]
        return [
            f"From the start of the process to ten finished steps, "
            f"`{' '.join(start['arguments'])}`: {start['cold_seconds']:.1f} s with nothing "
            f"compiled, {start['warm_seconds']:.1f} s with compiled programs at hand."
        ]
    whole = part["training"]
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in whole["seconds"].items())
    return [
        f"A run of {whole['epochs']} epochs of {whole['train_images']} images, "
        f"{whole['config']} on {whole['source']}: {parts}.",
        "",
        f"An epoch: {whole['training_images_per_second']:.0f} images/s in training, "
        f"{whole['share_of_bare_in_training']:.1%} of the bare step's "
        f"{whole['bare_images_per_second']:.0f}. With evaluation, checkpoint and records "
        f"{whole['epoch_seconds']:.1f} s, of which its bare training and evaluation steps "
        f"are {whole['share_of_bare_in_epoch']:.1%}, its bare training steps alone "
        f"{whole['training_share_of_epoch']:.1%}, and precise statistics with what is "
        f"compared to them {whole['lens_share_of_epoch']:.1%}.",
    ]


def _step_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Images/s: medians (least to most). Ratios are medians over neighbouring turns.",
        "",
        "| size | norm | dropout | this code | PyTorch | times PyTorch | XLA's own gradients | "
        "times those | of none's time | of the arithmetic floor | of the bandwidth floor | "
        "compiling |",
        f"|{' --- |' * 12}",
    ]
    for row in rows:
        cells = [str(row["size"]), row["norm"], f"{row['dropout']:g}", _rate(row, "jax")]
        for other in ("torch", "plain"):
            measured = f"times_{other}" in row
            name = row.get("fastest_torch", other) if other == "torch" else other
            cells.append(_rate(row, name) if measured else "not measured")
            cells.append(f"**{row[f'times_{other}']:.2f}**" if measured else "")
        cells.append(f"{row['seconds_of_none']:.2f}" if "seconds_of_none" in row else "")
        cells.append(f"{row['share_of_arithmetic_floor']:.0%}")
        cells.append(f"{row['share_of_bandwidth_floor']:.0%}")
        cells.append(f"{row['jax_compile_seconds']:.1f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rate(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_spread"]
    return f"{row[f'{name}_images_per_second']:.0f} ({low:.0f} to {high:.0f})"
