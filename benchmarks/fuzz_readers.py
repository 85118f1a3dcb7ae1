"""Damaged files: every one is read or refused with one line, soon, in little memory, and nothing is written elsewhere.

    python benchmarks/fuzz_readers.py [--files 2000] [--seed 0] [--first 0] [--only NAME] [--out fuzz.csv]

Each file is a good one that was cut, had bits flipped, fields swapped, bytes put in or taken out, or numbers set to extreme
values. A process of its own reads it; one that dies or hangs is a failure as any other. The table counts by kind of file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

MOST_SECONDS, MOST_BYTES = 10.0, 1e9
HANGS_SECONDS = 30.0
KNOWN = {
    "optics": {"energy_eV": 200e3, "semiangle_mrad": 10.0, "overfocus_A": 0.0},
    "scan_step_A": 0.5,
    "scan_rotation_deg": 0.0,
    "k_step_invA": 0.08,
    "electrons_per_count": 1.0,
}
STRUCTURE = (resources.files("mepdiff_core") / "data" / "SrTiO3.cif").read_text()
POSCAR = "SrTiO3\n3.905\n1 0 0\n0 1 0\n0 0 1\nSr Ti O\n1 1 3\nDirect\n0 0 0\n.5 .5 .5\n.5 .5 0\n.5 0 .5\n0 .5 .5\n"
XYZ = (
    '5\nLattice="3.905 0 0 0 3.905 0 0 0 3.905" Properties=species:S:1:pos:R:3 pbc="T T T"\nSr 0 0 0\n'
    "Ti 1.95 1.95 1.95\nO 1.95 1.95 0\nO 1.95 0 1.95\nO 0 1.95 1.95\n"
)


@dataclass(frozen=True)
class Kind:
    """Files of a kind.

    Attributes:
        name: of the file that is read; it may come with others.
        write: makes a good one.
        read: reads it, and writes what is made of it beside it.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``result`` is read, refused, or the failure's name."""

    kind: str
    number: int
    change: str
    result: str
    detail: str
    seconds: float
    megabytes: float


def kinds() -> dict[str, Kind]:
    """All that we read, by name."""
    import scipy.io
    import tifffile

    import vendor_files as vendor

    counts, wide = vendor.make_counts(), vendor.make_counts((2, 2, 128, 128))
    stack = counts.reshape(12, 16, 16)

    def of(writer: Callable[[Path, Any], object], array: Any = counts) -> Callable[[Path], object]:
        return lambda path: writer(path, array)

    found = [
        Kind("own.h5", _write_scan, _read_own),
        Kind("scan.xml", of(vendor.write_empad, wide), _read_foreign),
        Kind("scan_x2_y2.raw", of(vendor.write_empad_raw, wide), _read_foreign),
        Kind("scan.mib", of(vendor.write_merlin), _read_foreign),
        Kind("a_master.h5", of(vendor.write_arina), _read_stack),
        Kind("velox.emd", of(vendor.write_velox), _read_stack),
        Kind("py4dstem.h5", of(vendor.write_py4dstem), _read_foreign),
        Kind("ncem.emd", of(vendor.by_rosettasciio("emd")), _read_foreign),
        Kind("scan.hspy", of(vendor.by_rosettasciio("hspy")), _read_foreign),
        Kind("scan.zspy", of(vendor.write_zspy), _read_foreign),
        Kind("scan.nxs", of(vendor.by_rosettasciio("nexus")), _read_foreign),
        Kind("scan.blo", of(vendor.write_blockfile), _read_foreign),
        Kind("scan_000.tvips", of(vendor.by_rosettasciio("tvips")), _read_stack),
        Kind("scan.dm4", of(vendor.write_dm), _read_foreign),
        Kind("scan.npy", of(np.save), _read_foreign),
        Kind("old.mat", lambda path: scipy.io.savemat(path, {"cbed": counts}), _read_foreign),
        Kind("new.mat", of(vendor.write_matlab73), _read_foreign),
        Kind("stack.tif", lambda path: tifffile.imwrite(path, stack), _read_stack),
        Kind("packed.tif", lambda path: tifffile.imwrite(path, stack, compression="zlib"), _read_stack),
        Kind("scan.zarr", of(vendor.write_zarr), _read_foreign),
        Kind("model.hdf5", _write_ptyrad, _read_ptyrad),
        Kind("run", _write_run, _read_run),
        Kind("prior.safetensors", _write_prior, _read_prior),
        Kind("crystal.cif", lambda path: path.write_text(STRUCTURE), _read_crystal),
        Kind("crystal.vasp", lambda path: path.write_text(POSCAR), _read_crystal),
        Kind("crystal.xyz", lambda path: path.write_text(XYZ), _read_crystal),
        Kind("calibration.yaml", _write_yaml, _read_yaml),
    ]
    return {kind.name: kind for kind in found}


def _write_scan(path: Path) -> None:
    import vendor_files as vendor
    from mepdiff_core.optics import Optics
    from mepdiff_core.scan import Scan, Truth, raster_positions, save_scan

    truth = Truth(np.ones((2, 8, 9), np.float32), (1.6, 0.2, 0.2), (0.0, 0.0, 0.0))
    probe = np.full((1, 16, 16), 1 / 16, np.complex64)
    optics, positions = Optics(semiangle_mrad=10.0), raster_positions((3, 4), 0.5)
    blind = np.eye(16, dtype=bool)
    save_scan(Scan(vendor.make_counts(), positions, optics, 0.08, 1e4, 3.2, probe, truth, {"seed": 1}, blind), path)


def _write_ptyrad(path: Path) -> None:
    import vendor_files as vendor

    phase = np.random.default_rng(0).random((3, 20, 20))
    vendor.write_ptyrad_result(path, phase, np.ones((1, 16, 16), np.complex64), 0.2, 1.6)


def _write_run(path: Path) -> None:
    from mepdiff_core.runs import RunFolder
    from mepdiff_core.states import State

    record = {
        "method": "adam",
        "config": {"iterations": 3},
        "voxel_size_A": [1.6, 0.2, 0.2],
        "origin_A": [0.0, 0.0, 0.0],
        "input_sha256": "0" * 64,
    }
    folder = RunFolder.create(path, record)
    volume = np.random.default_rng(0).random((2, 10, 12)).astype(np.float32)
    checkpoint = {"step": np.array(2), "volume": volume}
    loop = folder.follow(State(step, 4, volume, 1 / step, 0.1, step, checkpoint=checkpoint) for step in (1, 2))
    next(loop)
    next(loop)
    loop.close()  # stopped before its end, so that it has a checkpoint


def _write_prior(path: Path) -> None:
    from mepdiff_core.unet import UNet, UNetConfig
    from mepdiff_core.weights import PriorConfig, save_prior

    network = UNetConfig((8,), (8,), blocks=1, head_channels=8, embedding=8)
    config = PriorConfig(network, shape=(4, 8, 8))
    save_prior(path, UNet(network).state_dict(), config, {"steps": 1})


def _write_yaml(path: Path) -> None:
    from mepdiff_core.config import dump_yaml

    path.write_text(dump_yaml({**KNOWN, "thickness_A": 20.0}))


def _read_own(path: Path) -> None:
    from mepdiff_core.scan import load_scan

    load_scan(path)


def _read_foreign(path: Path) -> None:
    _convert(path, None)


def _read_stack(path: Path) -> None:
    _convert(path, (3, 4))


def _convert(path: Path, scan_shape: tuple[int, int] | None) -> None:
    from mepdiff_core.convert import convert
    from mepdiff_core.inspection import inspect_patterns
    from mepdiff_core.raw_scan import ScanOptions
    from mepdiff_core.readers import open_raw
    from mepdiff_core.scan import load_scan

    options = ScanOptions(scan_shape=scan_shape, clip=True)
    with open_raw(path, options) as raw:
        for _ in inspect_patterns(raw):
            pass
    out = path.with_name("converted.h5")
    for _ in convert(path, out, KNOWN, options):
        pass
    load_scan(out)


def _read_ptyrad(path: Path) -> None:
    from mepdiff_core.ptyrad_result import read_ptyrad_result

    read_ptyrad_result(path)


def _read_run(path: Path) -> None:
    from mepdiff_core.runs import RunFolder
    from mepdiff_core.volume_files import read_volume

    folder = RunFolder.reopen(path)
    folder.load_checkpoint()
    read_volume(path / "volume.ome.tif")


def _read_prior(path: Path) -> None:
    from mepdiff_core.weights import load_prior

    load_prior(path)


def _read_crystal(path: Path) -> None:
    from mepdiff_core.structure_files import read_crystal

    read_crystal(path)


def _read_yaml(path: Path) -> None:
    from mepdiff_core.config import from_dict, read_yaml
    from mepdiff_core.file_calibration import FileCalibration

    from_dict(FileCalibration, read_yaml(path), str(path))


# damage


def damage(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """A file's bytes with something wrong in them, and what."""
    data = bytearray(content)
    change = str(random.choice(["cut", "bits", "swap", "insert", "remove", "number", "blank"]))
    n = len(data)
    if n < 4:
        return bytes(data), "nothing"
    # the beginning, where headers are, as often as the rest
    ends = n if random.random() < 0.5 else min(n, 512)
    at = int(random.integers(ends))
    length = int(min(1 << int(random.integers(7)), n - at))
    if change == "cut":
        del data[int(n * random.random()) :]
    elif change == "bits":
        for _ in range(int(1 << random.integers(6))):
            data[int(random.integers(ends))] ^= 1 << int(random.integers(8))
    elif change == "swap":
        other = int(random.integers(n))
        length = min(length, n - other, abs(at - other) or 1)
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    elif change == "insert":
        data[at:at] = random.bytes(length)
    elif change == "remove":
        del data[at : at + length]
    elif change == "number":
        value = int(random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 33, 100000]))
        form = str(random.choice(["<Q", "<I", ">Q", ">I"]))
        new = struct.pack(form, value & (2 ** (8 * struct.calcsize(form)) - 1))
        data[at : at + len(new)] = new
    else:
        data[at : at + length] = bytes(length)
    return bytes(data), change


def make_damaged(good: Path, folder: Path, name: str, random: np.random.Generator) -> str:
    """A damaged copy of a good file (and of those beside it); returns what was done to which."""
    shutil.copytree(good, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    victim = files[int(random.integers(len(files)))]
    content, change = damage(victim.read_bytes(), random)
    victim.write_bytes(content)
    return f"{change} {victim.name}" if len(files) > 1 else change


# reading


def peak_bytes() -> float:
    """The most memory this process had since it was last asked for."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            peak = next(float(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        return peak
    except (OSError, StopIteration):
        return 0.0  # no Linux


def work(connection: Any, root: str, seed: int) -> None:
    """Read damaged files until there are no more; each is made here, for its number and the seed say how."""
    from mepdiff_core.errors import explain

    known = kinds()
    folder = Path(root) / "inside" / "file"
    peak_bytes()
    while True:
        task = connection.recv()
        if task is None:
            return
        name, number = task
        shutil.rmtree(folder, ignore_errors=True)
        change = make_damaged(Path(root) / "good" / name, folder, name, np.random.default_rng([seed, number]))
        result, detail, noise = "read", "", io.StringIO()
        before, began = peak_bytes(), time.perf_counter()
        try:
            with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
                known[name].read(folder / name)
        except Exception as error:
            line = explain(error)
            result, detail = "refused", line or ""
            if line is None:
                result, detail = type(error).__name__, traceback.format_exc()
            elif "\n" in line:
                result = "several lines"
        seconds = time.perf_counter() - began
        more = max(0.0, peak_bytes() - before)
        if result in ("read", "refused"):
            if noise.getvalue():
                result, detail = "noise", noise.getvalue()
            elif seconds > MOST_SECONDS:
                result = "slow"
            elif more > MOST_BYTES:
                result = "memory"
            elif (left := [p.name for p in folder.iterdir() if p.name.startswith(".")]) and not name.endswith("r"):
                result, detail = "left behind", ", ".join(left)
        connection.send(Outcome(name, number, change, result, detail, seconds, more / 1e6))


def fuzz(files: int, seed: int, first: int = 0, only: str | None = None, show: bool = True) -> list[Outcome]:
    """Read so many damaged files, kind after kind in turn."""
    names = [name for name in kinds() if only in (None, name)]
    context = multiprocessing.get_context("spawn")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            good = Path(root) / "good" / name
            good.mkdir(parents=True)
            kinds()[name].write(good / name)
        (Path(root) / "inside").mkdir()
        process = connection = None
        for number in tqdm(range(first, first + files), disable=not show, unit="file"):
            name = names[number % len(names)]
            if process is None or connection is None:
                connection, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, root, seed), daemon=True)
                process.start()
                theirs.close()
            connection.send((name, number))
            outcome = None
            if connection.poll(HANGS_SECONDS + 60 * (not outcomes)):  # a first one imports everything
                with contextlib.suppress(EOFError):
                    outcome = connection.recv()
            if outcome is None:
                hangs = process.is_alive()
                process.kill()
                process.join()
                outcome = Outcome(name, number, "", "hangs" if hangs else "died", f"exit code {process.exitcode}", 0.0, 0.0)
                process = connection = None
            elif elsewhere := [p.name for p in Path(root).iterdir() if p.name not in ("good", "inside")]:
                outcome = Outcome(name, number, outcome.change, "wrote elsewhere", ", ".join(elsewhere), 0.0, 0.0)
            outcomes.append(outcome)
        if process is not None and connection is not None:
            connection.send(None)
            process.join()
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind of file."""
    lines = [f"{'file':20} {'files':>6} {'read':>6} {'refused':>8} {'failed':>7} {'slowest (s)':>12} {'most (MB)':>10}"]
    names = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    for name in [*names, "all"]:
        rows = [o for o in outcomes if name in (o.kind, "all")]
        read, refused = (sum(o.result == result for o in rows) for result in ("read", "refused"))
        slowest, most = max(o.seconds for o in rows), max(o.megabytes for o in rows)
        failed = len(rows) - read - refused
        lines.append(f"{name:20} {len(rows):6} {read:6} {refused:8} {failed:7} {slowest:12.2f} {most:10.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file: to go on, or to see one again")
    parser.add_argument("--only", help="files of one kind")
    parser.add_argument("--out", help="a CSV file of all outcomes")
    arguments = parser.parse_args()
    outcomes = fuzz(arguments.files, arguments.seed, arguments.first, arguments.only)
    print(table(outcomes))
    for outcome in outcomes:
        if outcome.result not in ("read", "refused"):
            print(f"\n{outcome.kind}, file {outcome.number}, {outcome.change}: {outcome.result}\n{outcome.detail}")
    if arguments.out:
        with open(arguments.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Outcome.__dataclass_fields__)
            writer.writerows([getattr(o, name) for name in Outcome.__dataclass_fields__] for o in outcomes)


if __name__ == "__main__":
    main()
