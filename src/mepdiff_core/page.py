"""One HTML page that holds everything: a table of metrics, figures inside the page, what was computed and how."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.config import dump_yaml
from mepdiff_core.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "ssim_2d": ("SSIM (slices)", 3),
    "ssim_3d": ("SSIM (3D)", 3),
    "ssim_atoms": ("SSIM (atoms)", 3),
    "psnr_dB": ("PSNR (dB)", 1),
    "nrmse": ("nRMSE", 3),
    "nrmse_atoms": ("nRMSE (atoms)", 3),
    "depth_correlation": ("depth corr.", 3),
    "r_factor": ("R", 4),
    "r_heldout": ("R held out", 4),
    "deviance": ("deviance", 4),
    "deviance_heldout": ("deviance held out", 4),
    "deviance_own_heldout": ("deviance held out, own model", 4),
    "steps": ("steps", 0),
    "seconds": ("seconds", 0),
}
"""What a metric is called in tables, and its decimals."""


def save_figure(figure: Figure, path: str | Path) -> bytes:
    """Write a figure as PNG, atomically; return its bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def format_value(name: str, value: Any) -> str:
    """A metric as a table shows it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.{COLUMNS[name][1]}f}" if name in COLUMNS else f"{value:g}"


def metrics_table(rows: Sequence[Mapping[str, Any]], leading: Sequence[str]) -> str:
    """An HTML table: those of the leading columns and of the metrics that any row fills."""
    texts = [name for name in leading if any(row.get(name) for row in rows)]
    shown = [name for name in COLUMNS if any(row.get(name) not in (None, "") for row in rows)]
    head = "".join(f'<th class="text">{html.escape(name.replace("_", " "))}</th>' for name in texts)
    head += "".join(f"<th>{html.escape(COLUMNS[name][0])}</th>" for name in shown)
    body = ""
    for row in rows:
        cells = "".join(f'<td class="text">{html.escape(str(row.get(name, "")))}</td>' for name in texts)
        cells += "".join(f"<td>{html.escape(format_value(name, row.get(name)))}</td>" for name in shown)
        body += f"<tr>{cells}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text_table(rows: Sequence[Mapping[str, Any]], leading: Sequence[str]) -> str:
    """The same table for a terminal."""
    leading = [name for name in leading if any(row.get(name) for row in rows)]
    shown = [name for name in COLUMNS if any(row.get(name) not in (None, "") for row in rows)]
    lines = [[*leading, *(COLUMNS[name][0] for name in shown)]]
    lines += [[*(str(row.get(n, "")) for n in leading), *(format_value(n, row.get(n)) for n in shown)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < len(leading) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def figure_block(png: bytes, caption: str) -> str:
    """A figure inside the page."""
    data = base64.b64encode(png).decode()
    alt = html.escape(caption, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def write_page(
    path: str | Path, title: str, lead: str, sections: Sequence[tuple[str, str]], record: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        title, lead: heading, and one line under it.
        sections: (heading, HTML) pairs.
        record: how it was computed; shown as YAML at the end.
    """
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    style = resources.files("mepdiff_core").joinpath("data/report.css").read_text(encoding="utf-8")
    details = f"<h2>How it was computed</h2><pre>{html.escape(dump_yaml(record))}</pre>"
    write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{style}</style><body><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(lead)}</p>{body}{details}</body></html>\n',
    )
