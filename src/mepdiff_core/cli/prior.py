"""mepdiff prior"""

from __future__ import annotations

import argparse
from typing import Any

from mepdiff_core.cli.common import add_json, emit


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("prior", help="look at a prior", description="Look at a trained prior.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    inspect = actions.add_parser(
        "inspect",
        help="what a prior is, what it was trained on, how well it does",
        description="Show a prior's network, training and held-out loss by log-SNR; its weights are checked.",
    )
    inspect.add_argument("prior", metavar="NAME|FILE", help="embedded, or a file as mepdiff train writes it")
    add_json(inspect)
    inspect.set_defaults(run=run_inspect)
    pack = actions.add_parser(
        "pack",
        help="the same prior in half the space",
        description="Write a prior with its weights as float16, as the embedded one is; it still computes in float32.",
    )
    pack.add_argument("prior", metavar="FILE", help="a prior, as mepdiff train writes it (last.safetensors)")
    pack.add_argument("out", metavar="OUT.safetensors", help="file to write")
    add_json(pack)
    pack.set_defaults(run=run_pack)


def run_pack(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from mepdiff_core.config import check
    from mepdiff_core.weights import load_prior, prior_file, save_prior

    prior = load_prior(arguments.prior)
    out, source = Path(arguments.out), prior_file(arguments.prior)
    check(out.resolve() != source.resolve(), f"{out} is the prior itself; give another file to write")
    save_prior(out, dict(prior.network.named_parameters()), prior.config, prior.training, half=True)
    sizes = {"before": source.stat().st_size, "after": out.stat().st_size}
    text = f"{out}: {sizes['after'] / 1e6:.1f} MB instead of {sizes['before'] / 1e6:.1f} MB"
    emit(arguments, {"file": str(out), "bytes": sizes}, text)


def run_inspect(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from mepdiff_core.config import to_dict
    from mepdiff_core.runs import sha256
    from mepdiff_core.unet import costs
    from mepdiff_core.weights import load_prior, prior_file

    prior = load_prior(arguments.prior)
    config = prior.config
    rows = costs(config.network, config.shape)
    result = {
        "file": str(arguments.prior),
        "file_sha256": sha256(prior_file(arguments.prior)),
        "weights_sha256": prior.sha256,
        "parameters": rows[-1].parameters,
        "config": to_dict(config),
        "training": dict(prior.training),
        "costs": [asdict(row) for row in rows],
    }
    size, voxel = " x ".join(map(str, config.shape)), " x ".join(f"{v:g}" for v in config.voxel_size_A)
    lines = [
        f"{arguments.prior}: {rows[-1].parameters / 1e6:.1f} M parameters, {size} voxels of {voxel} Å (z, y, x)",
        f"sha256 {result['file_sha256']} of the file, {prior.sha256} of the weights (checked)",
        "",
        f"{'part':14} {'parameters':>12} {'multiply-adds':>16}  channels",
    ]
    lines += [f"{r.part:14} {r.parameters:>12,} {r.multiply_adds:>16,}  {r.channels}".rstrip() for r in rows]
    lines += ["", "diffusion", *(f"  {name:14} {value}" for name, value in to_dict(config.diffusion).items())]
    training = dict(prior.training)
    validation = training.pop("validation", None)
    lines += ["", "training", *(f"  {name:14} {value}" for name, value in training.items())]
    if validation is not None:
        lines += ["", f"held-out loss {validation['loss']:.4f}; of v by log-SNR (1 is what zeros would miss, about):"]
        edges = validation["edges"]
        for low, high, loss in zip(edges[:-1], edges[1:], validation["by_bin"], strict=True):
            lines.append(f"  {low:+5.0f} to {high:+5.0f}  {loss:8.5f}")
    emit(arguments, result, "\n".join(lines))
