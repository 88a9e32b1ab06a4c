"""Runs that compare with one another: of one size and on the same images, by cell and seed."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from experiments.presets import VARIANTS
from experiments.reporting.cells import CELLS, side
from experiments.reporting.found import Found, Left

BySeed = dict[int, Found]


@dataclass
class Section:
    """Runs that may stand in one table.

    Attributes:
      variant: `full`, `small` or `demo`.
      sources: what their configurations call the images, all the same ones.
      slug: for file names: `small`, `small-2`.
      side: of the windows, in pixels.
      cells: runs by cell of the grid, in its order, and by seed.
      others: runs by what they are, and by seed.
    """

    variant: str
    sources: list[str]
    slug: str
    side: int
    cells: dict[str, BySeed] = field(default_factory=dict)
    others: dict[str, BySeed] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, BySeed]:
        """Cells, then others."""
        return self.cells | self.others

    @property
    def runs(self) -> list[Found]:
        """All of them."""
        return [found for by_seed in self.groups.values() for found in by_seed.values()]


def sort(found: list[Found]) -> tuple[list[Section], list[Left]]:
    """Sorts runs into sections, the published size first; of duplicates one is kept.

    Returns:
      the sections, and the duplicates that are left out.
    """
    sections, left = [], []
    for variant in VARIANTS:
        of_variant = [each for each in found if each.run.config["variant"] == variant]
        for number, group in enumerate(_by_data(of_variant), start=1):
            section = Section(
                variant=variant,
                sources=sorted({each.run.config["data.source"] for each in group}),
                slug=variant if number == 1 else f"{variant}-{number}",
                side=side(variant),
            )
            left += _fill(section, group)
            sections.append(section)
    return sections, left


def _by_data(found: list[Found]) -> list[list[Found]]:
    """Groups runs by their images, the larger groups first.

    A source's name stands for its images unless its content is seen to have changed: then, and
    where the same images have two names, fingerprints decide. They are of images at one size,
    so that one without and one with cropping never agree.
    """
    contents: dict[tuple[str, int], set[str]] = {}
    for each in found:
        if each.fingerprint:
            config = each.run.config
            key = config["data.source"], config.get("data.min_side", 0)
            contents.setdefault(key, set()).add(each.fingerprint)
    changed = {source for (source, _), of in contents.items() if len(of) > 1}
    groups: list[tuple[set[str], list[Found]]] = []
    for each in found:
        source = each.run.config["data.source"]
        names = {f"content {each.fingerprint}"} if each.fingerprint else set()
        if source not in changed or not names:
            names.add(f"{'unknown' if source in changed else 'source'} {source}")
        members = [each]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names, members = names | group[0], group[1] + members
        groups.append((names, members))
    return sorted((members for _, members in groups), key=len, reverse=True)


def _fill(section: Section, found: Iterable[Found]) -> list[Left]:
    left = []
    # The most complete first; of equals, by folder.
    best = sorted(found, key=lambda each: (each.result is None, -each.epochs, each.folder))
    kept: dict[str, BySeed] = {}
    for each in best:
        by_seed = kept.setdefault(each.place.label, {})
        if each.seed in by_seed:
            other = by_seed[each.seed].folder
            left.append(Left(each.folder, f"same configuration and seed as {other}, which is used"))
        else:
            by_seed[each.seed] = each
    ordered = {label: dict(sorted(of.items())) for label, of in sorted(kept.items())}
    section.cells = {cell: ordered[cell] for cell in CELLS if cell in ordered}
    section.others = {label: of for label, of in ordered.items() if label not in CELLS}
    return left
