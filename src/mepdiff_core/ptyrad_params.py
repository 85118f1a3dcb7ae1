"""PtyRAD 1.0's parameter file as our settings: calibration, preparation, method; and what of it we cannot take, by name.

What the file leaves out is ours to choose, not PtyRAD's default. Nothing of ptyrad is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mepdiff_core.config import check, from_dict, read_yaml, to_dict
from mepdiff_core.optics import ABERRATION_ORDERS, wavelength_A
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan
from mepdiff_core.settings import MOST_MODES

SECTIONS = ("init_params", "hypertune_params", "model_params", "loss_params", "constraint_params", "recon_params")
NO_MATTER = {
    *("probe_illum_type", "pos_N_scans", "probe_normalization", "meas_normalization", "meas_params", "meas_source"),
    *("meas_export", "probe_params", "pos_params", "obj_params", "meas_permute", "meas_reshape", "preload_data"),
    *("scheduler_params", "SAVE_ITERS", "output_dir", "recon_dir_affixes", "prefix_time", "prefix", "postfix"),
    *(
        "save_result",
        "result_modes",
        "selected_figs",
        "copy_params",
        "compiler_configs",
        "convergence_monitor",
        "fix_probe_int",
    ),
    *("ortho_pmode", "pos_recenter", "random_seed"),
}
"""Where PtyRAD reads, keeps and draws things, and scales that our models do not have."""
POSITION_RATE_A, PROBE_RATE = 0.05, 0.01
"""Ours: PtyRAD's rates are for a mini-batch and for a probe of another scale."""


@dataclass
class PtyradParams:
    """A parameter file, taken over.

    Attributes:
        calibration: changes of the scan's calibration, as for ``calibrate``.
        prepare: what to do to the scan, of the fields of PrepareConfig.
        method: adam or lbfgs; settings: its own.
        k_step: how the detector pixel is given, and the number.
        shape: (scan_y, scan_x, pixels) that the file speaks of; None where it does not.
        left_out: what cannot be taken, a line each.
    """

    calibration: dict[str, Any] = field(default_factory=dict)
    prepare: dict[str, Any] = field(default_factory=dict)
    method: str = "adam"
    settings: dict[str, Any] = field(default_factory=dict)
    k_step: tuple[str, float | None] = ("fitRBF", None)
    shape: tuple[int | None, int | None, int | None] = (None, None, None)
    left_out: list[str] = field(default_factory=list)

    def prepare_config(self) -> PrepareConfig:
        return from_dict(PrepareConfig, self.prepare, "PtyRAD's init_params")

    def calibration_for(self, scan: Scan) -> dict[str, Any]:
        """The calibration, with the detector pixel of a scan's own size.

        Raises:
            InputError: the file speaks of another scan.
        """
        for name, given, there in zip(
            ("pos_N_scan_slow", "pos_N_scan_fast", "meas_Npix"), self.shape, (*scan.shape, scan.n_pixels), strict=True
        ):
            check(given is None or given == there, f"PtyRAD's {name} is {given}; the scan has {there}: is it another scan?")
        return self._with_pixel(scan.n_pixels, to_dict(scan.optics))

    def calibration_of_file(self, n_pixels: int) -> dict[str, Any]:
        """The calibration for patterns of this size, of a file that is no scan yet."""
        return self._with_pixel(n_pixels, {})

    def _with_pixel(self, n: int, known: Mapping[str, Any]) -> dict[str, Any]:
        optics = {**known, **self.calibration.get("optics", {})}
        mode, value = self.k_step
        if value is None or not {"energy_eV", "semiangle_mrad"} <= {*optics}:
            return self.calibration
        wavelength = wavelength_A(float(optics["energy_eV"]))
        aperture = float(optics["semiangle_mrad"]) * 1e-3 / wavelength
        steps = {
            "dx": 1 / (value * n),
            "dk": value,
            "kMax": 2 * value / n,
            "da": value * 1e-3 / wavelength,
            "angleMax": 2 * value * 1e-3 / wavelength / n,
            "n_alpha": 2 * value * aperture / n,
            "RBF": aperture / value,
        }
        return {**self.calibration, "k_step_invA": steps[mode]}

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings that a method has; those of others are told as left out."""
        from mepdiff_core.reconstruction import method_config

        names = to_dict(method_config(method))
        gone = [name for name in self.settings if name not in names]
        self.left_out += [f"{name}: the method {method} has no such setting" for name in gone]
        return {name: value for name, value in self.settings.items() if name in names}

    def calibration_beside(self, scan: Scan, scan_path: str, params_path: str) -> dict[str, Any]:
        """The calibration still to be put in: all of it, or none for a scan that was prepared by this file.

        Raises:
            InputError: the file wants things done to the scan that have not been done.
        """
        wanted, done = self.prepare_config(), scan.info.get("prepared") or []
        if wanted == PrepareConfig():
            return self.calibration_for(scan)
        check(
            any(entry["config"] == to_dict(wanted) for entry in done),
            f"{params_path} prepares the scan ({', '.join(self.prepare)}); do that first, and reconstruct READY.h5: "
            f"mepdiff prepare {scan_path} READY.h5 --ptyrad-params {params_path}",
        )
        return {}

    def words(self) -> str:
        """One block of what the file wants and cannot have; "" where all is taken."""
        if not self.left_out:
            return ""
        return "\n".join(["Of PtyRAD's parameters these are not taken:", *(f"  {line}" for line in self.left_out)])


def read_ptyrad_params(path: str | Path) -> PtyradParams:
    """Read PtyRAD's parameter file.

    Raises:
        InputError: no such file, not YAML, or none of PtyRAD's.
    """
    data = read_yaml(path)
    known = [name for name in SECTIONS if name in data]
    check("init_params" in known, f"{path} is no parameter file of PtyRAD: it has no init_params")
    for name in known:
        check(isinstance(data[name] or {}, Mapping), f"{path}: {name} is {data[name]!r}; expected names and values")
    found = PtyradParams(left_out=[f"{name}: unknown" for name in data if name not in SECTIONS])
    sections = {name: dict(data.get(name) or {}) for name in SECTIONS}
    try:
        _experiment(sections["init_params"], found)
        _patterns(sections["init_params"], found)
        _model(sections["init_params"], sections["model_params"], found)
        _losses(sections["loss_params"], found)
        _constraints(sections["constraint_params"], found)
        _loop(sections["recon_params"], found)
        if sections["hypertune_params"].get("if_hypertune"):
            found.left_out.append("hypertune_params: try settings with 'mepdiff evaluate'")
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        check(False, f"{path} has a value that PtyRAD does not take ({type(error).__name__}: {error})")
    for section in ("init_params", "model_params", "recon_params"):
        found.left_out += [f"{k}: {v!r}, unknown" for k, v in sections[section].items() if k not in NO_MATTER]
    return found


def _taken(section: dict[str, Any], name: str) -> Any:
    """A value, taken out of its section; None where it is not there or null."""
    return section.pop(name, None)


def _experiment(init: dict[str, Any], found: PtyradParams) -> None:
    optics: dict[str, Any] = {}
    voltage, angle = _taken(init, "probe_kv"), _taken(init, "probe_conv_angle")
    if voltage is not None:
        optics["energy_eV"] = 1e3 * float(voltage)
    if angle is not None:
        optics["semiangle_mrad"] = float(angle)
    names = {f"{kind}{n}{m}" for n, m in ABERRATION_ORDERS for kind in (("C", "phi") if m else ("C",))}
    for name, value in (_taken(init, "probe_aberrations") or {}).items():
        if name in ("C10", "defocus"):  # PtyRAD's defocus is -C10, positive for under focus
            optics["overfocus_A"] = float(value) * (1 if name == "C10" else -1)
        elif name in ("C30", "Cs"):
            optics["Cs_A"] = float(value)
        elif name in names:
            optics.setdefault("aberrations", {})[name] = float(value)
        else:
            found.left_out.append(f"probe_aberrations {name}: give it in Krivanek's polar notation, like C12 and phi12")
    if optics:
        found.calibration["optics"] = optics
    step, affine = _taken(init, "pos_scan_step_size"), _taken(init, "pos_scan_affine")
    scale, asymmetry, rotation, shear = affine or (1, 0, 0, 0)
    if step is not None:
        # PtyRAD turns its positions the other way round
        found.calibration |= {"scan_step_A": float(step) * float(scale), "scan_rotation_deg": 0.0 - float(rotation)}
    if asymmetry or shear:
        found.left_out.append(f"pos_scan_affine: asymmetry {asymmetry} and shear {shear}; refine.position_rate_A finds them")
    if any(_taken(init, "pos_scan_flipT") or ()):
        found.left_out.append("pos_scan_flipT: mirror the patterns instead, by meas_flipT")
    if _taken(init, "pos_scan_rand_std"):
        found.left_out.append("pos_scan_rand_std: positions begin where they are")
    slow, fast, pixels = (_taken(init, name) for name in ("pos_N_scan_slow", "pos_N_scan_fast", "meas_Npix"))
    found.shape = (slow, fast, pixels)
    calibration = _taken(init, "meas_calibration")
    if calibration is not None:
        mode, value = calibration.get("mode", "fitRBF"), calibration.get("value")
        modes = ("dx", "dk", "kMax", "da", "angleMax", "n_alpha", "RBF", "fitRBF")
        check(mode in modes, f"PtyRAD's meas_calibration has mode {mode!r}; expected {', '.join(modes)}")
        if mode == "fitRBF":
            found.prepare["calibrate"] = "k_step"
        else:
            found.k_step = (mode, float(value))
            check(float(value) > 0, f"PtyRAD's meas_calibration is {value}; expected more than 0")


def _patterns(init: dict[str, Any], found: PtyradParams) -> None:
    prepare, left = found.prepare, found.left_out
    flips = [bool(v) for v in _taken(init, "meas_flipT") or (0, 0, 0)]
    prepare |= {name: True for name, wanted in zip(("flip_ky", "flip_kx", "transpose"), flips, strict=True) if wanted}
    crop = [*(_taken(init, "meas_crop") or ()), None, None, None, None][:4]
    for name, (first, second), size in (
        ("scan_crop", crop[:2], found.shape[:2]),
        ("detector_crop", crop[2:], (found.shape[2], found.shape[2])),
    ):
        if first is not None or second is not None:
            check(None not in size, f"PtyRAD's meas_crop needs the size of what is cut for {name}")
            prepare[name] = [*(first or (0, size[0])), *(second or (0, size[1]))]
    if "detector_crop" in prepare:
        prepare.setdefault("centre", "mean")
    pad = _taken(init, "meas_pad") or {}
    if pad.get("mode"):
        if pad.get("padding_type") == "constant" and not pad.get("value"):
            prepare["detector_pixels"] = int(pad["target_Npix"])
        else:
            left.append(f"meas_pad {pad.get('padding_type', 'power')}: model the scattering beyond with model.sampling=2")
    resample = _taken(init, "meas_resample") or {}
    if resample.get("mode"):
        factor = 1 / float(resample["scale_factors"][0])
        if factor > 1 and factor == int(factor):
            prepare["bin"] = int(factor)
        else:
            left.append(f"meas_resample by {resample['scale_factors'][0]}: take model.window=2 for finer patterns")
    negative = _taken(init, "meas_remove_neg_values") or {}
    if negative.get("mode") == "subtract_value" and negative.get("force"):
        prepare["background"] = float(negative["value"])
    elif negative.get("mode") == "clip_value" and negative.get("force"):
        prepare["noise_floor"] = float(negative["value"])
    elif negative.get("mode") in ("subtract_min", "subtract_value", "clip_value"):
        left.append(f"meas_remove_neg_values {negative['mode']}: a scan holds no negative counts")
    for name in ("meas_add_source_size", "meas_add_detector_blur", "meas_add_poisson_noise"):
        if _taken(init, name) is not None:
            left.append(f"{name}: for simulations; measured counts are taken as they are")


def _model(init: dict[str, Any], model: dict[str, Any], found: PtyradParams) -> None:
    settings, left = found.settings, found.left_out
    layers, thickness = _taken(init, "obj_Nlayer"), _taken(init, "obj_slice_thickness")
    settings |= {} if layers is None else {"slices": int(layers)}
    settings |= {} if thickness is None else {"slice_thickness_A": float(thickness)}
    modes = int(_taken(init, "probe_pmode_max") or 1)
    if int(_taken(init, "obj_omode_max") or 1) > 1:
        left.append("obj_omode_max: the object has one mode")
    init.pop("obj_omode_init_occu", None)
    init.pop("probe_pmode_init_pows", None)
    wanted, match = _taken(init, "simu_Npix"), _taken(init, "simu_match_mode")
    if wanted is not None and found.shape[2] is not None and wanted != found.shape[2]:
        factor, name = wanted / found.shape[2], {"crop": "sampling", "resample": "window"}.get(match or "")
        if name is not None and factor == int(factor):
            settings.setdefault("model", {})[name] = int(factor)
        else:
            left.append(f"simu_Npix {wanted} with {match}: model.sampling and model.window are whole numbers")
    tilt = _taken(init, "tilt_params")
    if isinstance(tilt, Mapping):
        angles = tilt.get("init_tilts") or [[0, 0]]
        if len(angles) > 1:
            left.append("tilt_params: a tilt for each position")
        elif any(angles[0]):
            settings.setdefault("model", {})["tilt_mrad"] = [float(a) for a in angles[0]]
    for name in ("probe_source", "pos_source", "obj_source", "tilt_source"):
        source = _taken(init, name)
        if source not in (None, "simu"):
            left.append(f"{name} {source}: give --start, --probe or --positions")
    for name in ("probe_permute", "probe_z_shift", "obj_preblur_std", "obj_z_crop", "obj_z_pad", "obj_z_resample"):
        if _taken(init, name) is not None:
            left.append(f"{name}: not here")
    if _taken(model, "obj_preblur_std"):
        left.append("obj_preblur_std: the object is taken as it is")
    if _taken(model, "detector_blur_std"):
        left.append("detector_blur_std: the detector is taken as sharp")
    optimizer = (_taken(model, "optimizer_params") or {}).get("name", "Adam")
    found.method = "lbfgs" if optimizer == "LBFGS" else "adam"
    if optimizer not in ("Adam", "LBFGS"):
        left.append(f"optimizer {optimizer}: Adam instead")
    rates = _taken(model, "update_params") or {}
    active = {k: v for k, v in rates.items() if (v or {}).get("start_iter") is not None and (v or {}).get("lr")}
    if "objp" in active:
        rate = float(active["objp"]["lr"])
        settings |= {"learning_rates": [rate]} if found.method == "lbfgs" else {"learning_rate": rate}
    refine: dict[str, Any] = {}
    if "probe_pos_shifts" in active:
        refine["position_rate_A"] = POSITION_RATE_A
    if "probe" in active:
        refine["probe_rate"] = PROBE_RATE
    if modes > 1 and "probe" in active and found.method == "adam":
        refine["probe_modes"] = min(modes, MOST_MODES)
    if modes > refine.get("probe_modes", 1):
        left.append(
            f"probe_pmode_max {modes}: a probe that is refined has up to {MOST_MODES} modes; others, those of a source"
        )
    if refine and found.method == "adam":
        start = max(int(active[n]["start_iter"]) for n in ("probe_pos_shifts", "probe") if n in active)
        settings |= {"engine": "fast", "refine": {**refine, "start": start}}
        rated = ", ".join(name for name in refine if name.endswith(("_rate", "_rate_A")))
        left.append(f"the rates of what is refined ({rated}): ours, for theirs are of other units")
    elif refine:
        left.append("probe and positions: L-BFGS does not refine them")
    if "model" in settings and {"window", "sampling"} & {*settings["model"]}:
        settings["engine"] = "fast"
    for name, what in (("obja", "the amplitude stays 1"), ("obj_tilts", "see mepdiff fit-thickness --tilt")):
        if name in active:
            left.append(f"{name}: {what}")
    if "slice_thickness" in active:
        left.append("slice_thickness: see mepdiff fit-thickness")


def _losses(losses: dict[str, Any], found: PtyradParams) -> None:
    active = {name: value for name, value in losses.items() if (value or {}).get("state")}
    poisson, single = "loss_poissn" in active, "loss_single" in active
    found.settings |= {"likelihood": "poisson" if poisson and not single else "amplitude"} if poisson or single else {}
    for name, value in active.items():
        if name == "loss_single" and float(value.get("dp_pow", 0.5)) == 0.5:
            continue
        if name == "loss_poissn" and not single:
            continue
        found.left_out.append(f"{name}: one loss at a time, amplitude or poisson")


def _constraints(constraints: dict[str, Any], found: PtyradParams) -> None:
    active = {k: v for k, v in constraints.items() if (v or {}).get("start_iter") is not None and k not in NO_MATTER}
    ours: dict[str, Any] = {}
    for name, value in active.items():
        late = int(value["start_iter"]) > 1 or value.get("step", 1) != 1 or value.get("end_iter") is not None
        if late and name in ("obj_zblur", "kz_filter", "objp_postiv"):
            found.left_out.append(f"{name}: its start, step and end; here it holds in every pass")
        if name == "obj_zblur":
            ours["depth_blur_slices"] = float(value.get("std", 1))
        elif name == "kz_filter":
            ours |= {"kz_beta": float(value.get("beta", 1)), "kz_alpha": float(value.get("alpha", 1))}
        elif name == "objp_postiv" and not value.get("relax") and value.get("mode", "clip_neg") == "clip_neg":
            ours["positivity"] = True
        else:
            found.left_out.append(f"{name}: no constraint of ours")
    if ours and found.method == "adam":
        found.settings["constraints"] = ours
    elif ours:
        found.left_out.append(f"{', '.join(ours)}: L-BFGS has no constraints")


def _loop(recon: dict[str, Any], found: PtyradParams) -> None:
    passes, batch = _taken(recon, "NITER"), _taken(recon, "BATCH_SIZE") or {}
    found.settings |= {} if passes is None else {"iterations": int(passes)}
    found.settings |= {"batch_size": int(batch["size"])} if "size" in batch else {}
    if int(batch.get("grad_accumulation", 1)) != 1:
        found.left_out.append("grad_accumulation: take a larger batch_size")
    if (_taken(recon, "GROUP_MODE") or "random") != "random":
        found.left_out.append("GROUP_MODE: mini-batches are drawn at random")
    if (_taken(recon, "INDICES_MODE") or {}).get("mode", "full") != "full":
        found.left_out.append("INDICES_MODE: cut a part out with mepdiff prepare --set scan_crop=[...]")
