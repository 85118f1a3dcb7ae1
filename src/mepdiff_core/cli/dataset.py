"""mepdiff dataset"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import ProgressBar, Stopped, add_json, add_settings, emit, read_settings

BUILD_EPILOG = """\
Structure files are CIF, POSCAR, extended XYZ and ASE databases, in a folder and those below it. Every crystal with a, b
and c under 20 Å is rendered along its a, b and c axis, with 1 % of its atoms removed: (16, 100, 100) voxels of (1.6, 0.2,
0.2) Å, in radians. rejected.csv in the store names every file that was left out, and why.

--structures prototypes needs no files: crystals of known structure types with sensible elements. --structures pyxtal makes
random ones (an optional extra: pip install "napari-mepdiff[pyxtal]").

Every setting and what it means: mepdiff info --settings dataset
Ctrl-C keeps what is there; the same command with --resume goes on.

examples:
  mepdiff dataset build --structures cifs --out store.zarr --workers 2
  mepdiff dataset build --structures prototypes --n 1000 --out store.zarr --set volumes.renderer=torch
  mepdiff dataset preview store.zarr
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "dataset",
        help="crystals to phase volumes: a store to train a prior with",
        description="Make and look at stores of phase volumes (docs/dataset.md).",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    build = actions.add_parser(
        "build", help="render crystals into a store", description="Render crystals into a store.", epilog=BUILD_EPILOG
    )
    build.add_argument(
        "--structures", required=True, metavar="DIR", help="a folder of structure files, prototypes, or pyxtal"
    )
    build.add_argument("--out", required=True, metavar="STORE.zarr", help="the store to make (or to finish, by --resume)")
    build.add_argument("--n", type=int, help="crystals to generate, for prototypes and pyxtal (default 1000)")
    build.add_argument("--seed", type=int, help="random seed: of generated crystals, origins and vacancies (default 0)")
    build.add_argument("--renderer", metavar="NAME", help="abtem (default, the reference) or torch (ours, faster)")
    build.add_argument("--disorder", metavar="HOW", help="partly occupied and mixed sites: reject (default) or sample")
    build.add_argument("--workers", type=int, default=1, help="processes on this computer (default 1)")
    build.add_argument("--scheduler", metavar="ADDRESS", help="use the workers of this Dask scheduler instead")
    build.add_argument("--resume", action="store_true", help="finish a store that was begun")
    add_settings(build, "build's settings")
    add_json(build)
    build.set_defaults(run=run_build)
    info = actions.add_parser("info", help="what is in a store", description="Count and measure what is in a store.")
    info.add_argument("store", metavar="STORE.zarr")
    add_json(info)
    info.set_defaults(run=run_info)
    preview = actions.add_parser("preview", help="a contact sheet of a store", description="Draw some volumes as a PNG.")
    preview.add_argument("store", metavar="STORE.zarr")
    preview.add_argument("--out", metavar="FILE.png", help="the picture (default: the store's name with .png)")
    preview.add_argument("--n", type=int, default=24, help="how many volumes, drawn at random (default 24)")
    preview.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    add_json(preview)
    preview.set_defaults(run=run_preview)


def run_build(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import from_dict, merge, to_dict
    from mepdiff_core.dataset import BuildConfig, build
    from mepdiff_core.store import VolumeStore, folder_bytes

    given: dict[str, Any] = {"structures": arguments.structures}
    shortcuts = (
        ("n", ("n",)),
        ("seed", ("volumes", "seed")),
        ("renderer", ("volumes", "renderer")),
        ("disorder", ("read", "disorder")),
    )
    for option, path in shortcuts:
        value = getattr(arguments, option)
        if value is not None:
            for name in reversed(path):
                value = {name: value}
            given = merge(given, value)
    base = to_dict(BuildConfig(arguments.structures))
    config = from_dict(BuildConfig, merge(merge(base, read_settings(arguments)), given), "dataset")
    out = Path(arguments.out)
    stage, bar = "", ProgressBar("")
    try:
        for step in build(config, out, arguments.workers, arguments.scheduler, arguments.resume):
            if step.stage != stage:
                bar.close()
                stage, bar = step.stage, ProgressBar(step.stage, step.stage[:-1])
            bar.show(step.done, step.total)
    except KeyboardInterrupt:
        if not (out / "zarr.json").exists():
            raise
        raise Stopped("stopped; the same command with --resume goes on") from None
    finally:
        bar.close()
    store = VolumeStore(out)
    rejected = max(0, len((out / "rejected.csv").read_text(encoding="utf-8").splitlines()) - 1)
    size = folder_bytes(out)
    result = {"store": str(out), "volumes": len(store), "crystals": len(store.crystals), "rejected": rejected, "bytes": size}
    text = f"{out}: {len(store):,} volumes of {len(store.crystals):,} crystals, {size / 1e6:,.1f} MB"
    if rejected:
        text += f"; {rejected} structures were left out, see {out / 'rejected.csv'}"
    emit(arguments, result, text)


def run_info(arguments: argparse.Namespace) -> None:
    from mepdiff_core.store_summary import summarize, summary_text

    summary = summarize(arguments.store)
    emit(arguments, summary, summary_text(summary))


def run_preview(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import check
    from mepdiff_core.figures import contact_sheet
    from mepdiff_core.files import check_writable
    from mepdiff_core.page import save_figure
    from mepdiff_core.store import VolumeStore
    from mepdiff_core.store_summary import draw_volumes

    check(arguments.n >= 1, f"--n is {arguments.n}; expected at least 1")
    store = VolumeStore(arguments.store)
    out = Path(arguments.out) if arguments.out else Path(f"{Path(arguments.store).name.removesuffix('.zarr')}.png")
    check_writable(out)
    volumes, titles = draw_volumes(store, arguments.n, arguments.seed)
    save_figure(contact_sheet(volumes, titles), out)
    emit(arguments, {"file": str(out), "volumes": len(volumes)}, f"{out}: {len(volumes)} of {len(store):,} volumes")
