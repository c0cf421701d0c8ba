"""Draw the rooms of the three packages and what each imports: ``python docs/rooms.py > rooms.svg``.

The graph is grimp's, read from the source at every build, so the picture cannot differ from the code. A room is a
subpackage; modules at a package's root are drawn as one box each. A box stands above everything that it imports.
Arrows that follow from others are left out: where A imports B, and B imports C, an arrow from A to C is not drawn. An
import that points up, which only a circle of rooms can have, is drawn dashed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import grimp

PACKAGES = ("pipeline", "trainer", "cache_tools")
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN, TITLE, SIDE = 112, 26, 14, 34, 16, 26, 45
"""Pixels."""

STYLE = (
    "<style>"
    ".panel{fill:none;stroke:var(--color-foreground-border,#999)}"
    ".room{fill:var(--color-background-secondary,#f5f5f5);stroke:var(--color-foreground-muted,#777)}"
    ".module{fill:var(--color-background-primary,#fff);stroke:var(--color-foreground-border,#999);stroke-dasharray:3 2}"
    ".up{stroke-dasharray:4 3}"
    ".arrow{fill:none;stroke:var(--color-foreground-muted,#777);stroke-width:1}"
    "text{fill:var(--color-foreground-primary,#222);font:12px sans-serif;text-anchor:middle}"
    ".title{font-weight:bold;font-size:14px}"
    "</style>"
)

Imports = dict[str, frozenset[str]]
"""Rooms, each with the rooms that it imports."""


@dataclass(frozen=True)
class Package:
    """The rooms of one package.

    Attributes:
        name: Of the package.
        imports: Its rooms, without the package's name in front.
        subpackages: Which of them are folders.
    """

    name: str
    imports: Imports
    subpackages: frozenset[str]


def read(name: str) -> Package:
    """Return the rooms of a package, from the imports in its source."""
    graph = grimp.build_graph(name)
    modules = sorted(graph.modules - {name})

    def room(module: str) -> str:
        return module.split(".")[1]

    imports: dict[str, set[str]] = {room(module): set() for module in modules}
    for module in modules:
        targets = graph.find_modules_directly_imported_by(module) - {name}
        imports[room(module)] |= {room(target) for target in targets} - {room(module)}
    folders = frozenset(room(module) for module in modules if module.count(".") > 1)
    return Package(name, {a: frozenset(b) for a, b in imports.items()}, folders)


def levels(imports: Imports) -> list[list[str]]:
    """Return the rooms by level, lowest first; each imports only rooms below it, unless there is a circle.

    Where rooms import each other in a circle, the one with the fewest imports that have no place yet comes first.
    """
    placed: set[str] = set()
    result: list[list[str]] = []
    while len(placed) < len(imports):
        open_imports = {room: len(imports[room] - placed) for room in imports if room not in placed}
        fewest = min(open_imports.values())
        level = sorted(room for room, count in open_imports.items() if count == fewest)
        result.append(level if fewest == 0 else level[:1])
        placed |= set(result[-1])
    return result


def direct_arrows(imports: Imports) -> set[tuple[str, str]]:
    """Return the imports (from, to) that point down and do not follow from others that do."""
    below = {room: targets - upward(imports).get(room, frozenset()) for room, targets in imports.items()}
    reach = {room: _reachable(below, room) for room in below}
    return {
        (room, target)
        for room, targets in below.items()
        for target in targets
        if not any(target in reach[other] for other in targets - {target})
    }


def upward(imports: Imports) -> Imports:
    """Return each room's imports of rooms that do not stand below it; empty where rooms form no circle."""
    height = {room: number for number, level in enumerate(levels(imports)) for room in level}
    up = {room: frozenset(t for t in targets if height[t] >= height[room]) for room, targets in imports.items()}
    return {room: targets for room, targets in up.items() if targets}


def picture() -> str:
    """Return the SVG: the two stages side by side, the store below them."""
    pipeline, trainer, store = (_Panel(read(name)) for name in PACKAGES)
    width = max(pipeline.width + trainer.width + MARGIN, store.width) + 2 * MARGIN
    top = max(pipeline.height, trainer.height)
    height = top + GAP_Y + store.height + 2 * MARGIN
    store_y = MARGIN + top + GAP_Y
    parts = [
        pipeline.svg(MARGIN, MARGIN + top - pipeline.height),
        trainer.svg(width - MARGIN - trainer.width, MARGIN + top - trainer.height),
        store.svg((width - store.width) // 2, store_y),
        _arrow(MARGIN + pipeline.width // 2, store_y - GAP_Y, MARGIN + pipeline.width // 2, store_y),
        _arrow(width - MARGIN - trainer.width // 2, store_y - GAP_Y, width - MARGIN - trainer.width // 2, store_y),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Rooms of the three packages and what they import" style="max-width:100%;height:auto">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="var(--color-foreground-muted,#777)"/></marker></defs>'
    )
    return "\n".join([head, STYLE, *parts, "</svg>"]) + "\n"


class _Panel:
    """One package, laid out: every room has a place."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.levels = levels(package.imports)[::-1]
        columns = max(map(len, self.levels))
        self.width = columns * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
        self.height = len(self.levels) * (BOX_HEIGHT + GAP_Y) - GAP_Y + TITLE + 2 * MARGIN
        self.places = dict(self._places())

    def _places(self) -> Iterable[tuple[str, tuple[int, int]]]:
        for row, level in enumerate(self.levels):
            used = len(level) * (BOX_WIDTH + GAP_X) - GAP_X
            for column, room in enumerate(level):
                x = (self.width - used) // 2 + column * (BOX_WIDTH + GAP_X)
                yield room, (x, MARGIN + TITLE + row * (BOX_HEIGHT + GAP_Y))

    def svg(self, x: int, y: int) -> str:
        """Return the panel with its upper left corner at (x, y)."""
        lines = [
            f'<g transform="translate({x} {y})">',
            f'<rect class="panel" width="{self.width}" height="{self.height}" rx="6"/>',
            f'<text class="title" x="{self.width // 2}" y="{MARGIN + 8}">{self.package.name}</text>',
            *(self._line(*pair) for pair in sorted(direct_arrows(self.package.imports))),
            *(self._line_up(a, b) for a, targets in upward(self.package.imports).items() for b in sorted(targets)),
            *(self._box(room) for room in self.places),
            "</g>",
        ]
        return "\n".join(lines)

    def _box(self, room: str) -> str:
        x, y = self.places[room]
        kind = "room" if room in self.package.subpackages else "module"
        return (
            f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"/>'
            f'<text x="{x + BOX_WIDTH // 2}" y="{y + 17}">{room}</text>'
        )

    def _line(self, upper: str, lower: str) -> str:
        (x1, y1), (x2, y2) = self.places[upper], self.places[lower]
        passes_a_level = y2 - y1 > BOX_HEIGHT + GAP_Y
        aside = SIDE if x2 >= x1 else -SIDE  # around the boxes between, not through them
        side = (aside * 2 // 3, aside) if passes_a_level else (0, 0)
        return _arrow(x1 + BOX_WIDTH // 2, y1 + BOX_HEIGHT, x2 + BOX_WIDTH // 2, y2, *side)

    def _line_up(self, lower: str, upper: str) -> str:
        (x1, y1), (x2, y2) = self.places[lower], self.places[upper]
        right = f"{x1 + BOX_WIDTH} {y1 + BOX_HEIGHT // 2}"
        path = f"M{right}C{x1 + BOX_WIDTH + SIDE} {y1} {x2 + BOX_WIDTH + SIDE} {y2 + BOX_HEIGHT} "
        return f'<path class="arrow up" d="{path}{x2 + BOX_WIDTH} {y2 + BOX_HEIGHT // 2}" marker-end="url(#tip)"/>'


def _arrow(x1: int, y1: int, x2: int, y2: int, shift: int = 0, bulge: int = 0) -> str:
    """Return a curve whose ends are moved sideways by ``shift`` and whose middle is by ``bulge`` more."""
    bend = max((y2 - y1) // 2, 12)
    start, end = x1 + shift, x2 + shift
    path = f"M{start} {y1}C{start + bulge} {y1 + bend} {end + bulge} {y2 - bend} {end} {y2}"
    return f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>'


def _reachable(imports: Imports, start: str) -> set[str]:
    """Return what a room imports, directly or through others."""
    reached: set[str] = set()
    queue = list(imports[start])
    while queue:
        room = queue.pop()
        if room not in reached:
            reached.add(room)
            queue += imports[room]
    return reached


if __name__ == "__main__":
    print(picture(), end="")
