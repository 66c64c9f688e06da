"""Output for people: text, and progress as bars on a terminal or as plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_INTERVAL = 15.0  # seconds between two lines where there is no terminal

# no markup: ids, paths and texts may hold brackets, and are shown as they are
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
# where standard output is the result and nothing else
stderr = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

Advance = Callable[[float], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} audio-s/s")


@contextlib.contextmanager
def progress(
    label: str, total_seconds: float, shown: bool = True, to: Console = console
) -> Iterator[Advance]:
    """Yields a function that takes the seconds of audio just finished, and shows how far the work is."""
    if not shown:
        yield lambda seconds: None
    elif to.is_terminal:
        label_column, percentage = TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f} %")
        columns = (label_column, BarColumn(), percentage, _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=to, transient=True) as bar:
            task = bar.add_task(label, total=total_seconds)
            yield lambda seconds: bar.advance(task, seconds)
    else:
        yield _lines(label, total_seconds, to)


@contextlib.contextmanager
def steps_bar(total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar of optimizer steps under a line of text, for terminals.

    Yields a function that counts a step and shows its line.
    """
    columns = (BarColumn(None), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    lines = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
    with lines as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text)


def _lines(label: str, total: float, to: Console) -> Advance:
    start = printed = time.monotonic()
    done = 0.0

    def advance(seconds: float) -> None:
        nonlocal done, printed
        done += seconds
        now = time.monotonic()
        if now - printed >= LINE_INTERVAL and done < total:
            printed = now
            rate = done / (now - start)
            to.print(
                f"{label}: {done / total:.0%}, {rate:,.0f} audio-s/s, {(total - done) / rate:.0f} s left"
            )

    return advance
