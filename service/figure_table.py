"""A table of figures in a terminal or a log: none of them is ever cut or broken over lines."""

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

# Columns take what they need of it; rich would else cut them to the width of the terminal, which
# where there is none, as in CI, it takes to be 80.
_ROOM = 10_000


class FigureTable(Table):
    """Columns of words, then of figures, each as wide as what is in it.

    Print it with `soft_wrap=True`: the console itself cuts what is wider than it.
    """

    def __init__(self, *words: str, figures: tuple[str, ...] = ()) -> None:
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for head in words:
            self.add_column(head)
        for head in figures:
            self.add_column(head, justify="right")

    def add_line(self, *cells: str) -> None:
        """Add a row of cells as they stand: in a plain string, `:x:` would become an emoji."""
        self.add_row(*map(Text, cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's own rendering, with room for every column."""
        yield from super().__rich_console__(console, options.update(max_width=_ROOM))
