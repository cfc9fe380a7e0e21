"""A self-contained HTML report: one file, no external resources, every text from data escaped."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluralpref._version import __version__
from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #5a5a5a; --line: #d4d4d4; --paper: #ffffff; --shade: #f4f6f8;
  --accent: #0072b2; --notice: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #a9a9a9; --line: #3c4043; --paper: #17191c;
  --shade: #22262a; --accent: #56b4e9; --notice: #3a3015; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
nav a { color: var(--accent); margin-right: 1rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .3rem 0; caption-side: top; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--shade); } td.number, th.number { text-align: right; white-space: nowrap; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); } pre { background: var(--shade); padding: .8rem; overflow-x: auto; }
aside { background: var(--notice); padding: .6rem 1rem; border-radius: 4px; margin: 1rem 0; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


@dataclass(frozen=True)
class Table:
    """A table of a report.

    :param columns: the headings.
    :param rows: one value for each column; numbers are set in four significant digits, a pair of numbers as an
        interval, ``None`` as a dash.
    :param caption: what the table shows.
    :raises ConfigError: if a row's length isn't that of the headings.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigError(f"row {number} of a table has {len(row)} values for {len(self.columns)} columns")

    @classmethod
    def from_frame(cls, frame: Any, caption: str = "", index_name: str = "") -> Table:
        """From a pandas ``DataFrame``, its index as the first column."""
        rows = [[label, *values] for label, values in zip(frame.index, frame.itertuples(index=False), strict=True)]
        return cls([index_name, *map(str, frame.columns)], rows, caption)


class Report:
    """Sections with text, tables, figures, written as one HTML file.

    ::

        report = Report("MixDPO on HH-RLHF")
        report.add_section("Training")
        report.add_table(Table(["family", "cv"], [["LogNormal", 0.61]], "The law at the end of training."))
        report.add_figure(plot_training(rows), "Metrics over the steps.")
        report.write("run/report.html")

    :param title: the page's heading.
    :param subtitle: a line under it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []
        self._body: list[str] = []

    def add_section(self, heading: str) -> None:
        """Begin a section; what is added next belongs to it."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append((anchor, heading))
        self._body.append(f'<h2 id="{anchor}">{escape(heading)}</h2>')

    def add_text(self, text: str, *, soft: bool = False) -> None:
        """Paragraphs, separated by blank lines. Plain text: markup is shown, not interpreted."""
        kind = ' class="soft"' if soft else ""
        self._body += [f"<p{kind}>{escape(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip()]

    def add_notice(self, text: str) -> None:
        """A highlighted remark: a warning that a reader must not miss."""
        self._body.append(f'<aside role="note"><p>{escape(text)}</p></aside>')

    def add_code(self, text: str) -> None:
        """A block of commands or code."""
        self._body.append(f"<pre><code>{escape(text)}</code></pre>")

    def add_key_values(self, values: Mapping[str, Any]) -> None:
        """Names and values, such as a configuration."""
        items = "".join(f"<dt>{escape(str(name))}</dt><dd>{_cell(value)}</dd>" for name, value in values.items())
        self._body.append(f"<dl>{items}</dl>")

    def add_table(self, table: Table) -> None:
        """A table; wide ones scroll by themselves on a narrow screen."""
        numeric = [
            bool(table.rows) and all(_is_number(row[k]) or row[k] is None for row in table.rows)
            for k in range(len(table.columns))
        ]
        kind = [' class="number"' if flag else "" for flag in numeric]
        head = "".join(f'<th scope="col"{kind[k]}>{escape(str(name))}</th>' for k, name in enumerate(table.columns))
        body = "".join(
            "<tr>" + "".join(f"<td{kind[k]}>{_cell(value)}</td>" for k, value in enumerate(row)) + "</tr>"
            for row in table.rows
        )
        caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
        self._body.append(
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def add_figure(self, figure: Figure, caption: str, *, dpi: int = 130) -> None:
        """A matplotlib figure as an embedded PNG.

        :param caption: also the image's alternative text.
        """
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        self._body.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The page."""
        links = "".join(f'<a href="#{anchor}">{escape(heading)}</a> ' for anchor, heading in self._sections)
        subtitle = f'<p class="soft">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>\n<body><header><h1>{escape(self.title)}</h1>"
            f'{subtitle}<nav aria-label="Sections">{links}</nav></header>\n<main>\n'
            + "\n".join(self._body)
            + f'\n</main><footer class="soft"><p>pluralpref {escape(__version__)}</p></footer></body></html>\n'
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; the file appears complete or not at all.

        :raises DataError: if the folder doesn't exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise DataError(f"{target}: the folder {target.parent} doesn't exist; make it first")
        with written_aside(target) as partial:
            partial.write_text(self.html(), encoding="utf-8")
        return target


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple) and len(value) == 2 and all(_is_number(part) for part in value):
        return f"{format_number(value[0])} to {format_number(value[1])}"
    if _is_number(value):
        return format_number(value)
    if isinstance(value, Mapping):
        return escape(", ".join(f"{name}: {entry}" for name, entry in value.items()))
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return escape(", ".join(map(str, value)))
    return escape(str(value))


def format_number(value: Any) -> str:
    """A number in four significant digits; integers in full, with separators."""
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    number = float(value)
    if math.isnan(number):
        return "not a number"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number == 0:
        return "0"
    if number.is_integer() and abs(number) < 1e9:
        return f"{int(number):,}"
    digits = 3 - math.floor(math.log10(abs(number)))
    text = f"{number:.{digits}f}" if 0 <= digits <= 7 else f"{number:.3e}" if digits > 7 else f"{number:,.0f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text
