"""The table of exact matches and its thresholds; knows nothing of how an answer was made."""

from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table

AT_LEAST, AT_MOST = 0.95, 0.2


class Expected(Enum):
    """What a model should do with a task: its own, or anything else."""

    OWN = "own"
    OTHER = "other"


@dataclass(frozen=True)
class Cell:
    """One model on one task: the share of held-out inputs it answered exactly."""

    task: str
    model: str
    match: float
    expected: Expected
    count: int

    @property
    def met(self) -> bool:
        return self.match >= AT_LEAST if self.expected is Expected.OWN else self.match <= AT_MOST

    def __str__(self) -> str:
        bound = f">= {AT_LEAST}" if self.expected is Expected.OWN else f"<= {AT_MOST}"
        return f"{self.model} on {self.task}: {self.match:.2f}, wanted {bound}"


def problems(cells: list[Cell]) -> list[str]:
    return [str(cell) for cell in cells if not cell.met]


def show(cells: list[Cell], console: Console) -> None:
    """One row per task, one column per model; green where the threshold is met, red where it is not."""
    columns = list(dict.fromkeys(cell.model for cell in cells))
    table = Table("task", *columns, title="Exact match on held-out inputs")
    for task in dict.fromkeys(cell.task for cell in cells):
        row = {cell.model: cell for cell in cells if cell.task == task}
        table.add_row(task, *(mark(row[model]) if model in row else "" for model in columns))
    console.print(table)


def mark(cell: Cell) -> str:
    style = ("bold green" if cell.expected is Expected.OWN else "green") if cell.met else "bold red"
    return f"[{style}]{cell.match:.2f}[/] ({cell.count})"
