"""What outlives a session: napari's own Preferences for this plugin, and how the forms were last filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings, get_settings

from mepdiff_core.config import dump_yaml, read_yaml
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_error, write_text

PLUGIN = "napari-mepdiff"


def preferences() -> Any:
    """The plugin's page of Preferences: device, threads, stream_rate, runs_folder, last_folder; to read and to set."""
    return get_plugin_settings(PLUGIN).run


def runs_folder() -> Path:
    """Where runs are kept."""
    return Path(preferences().runs_folder).expanduser()


def last_folder() -> Path:
    """Where dialogs begin."""
    folder = Path(preferences().last_folder).expanduser()
    return folder if folder.is_dir() else Path.home()


def remember_folder(path: Path) -> None:
    """Let dialogs begin there."""
    preferences().last_folder = str(path)


def recall(form: str) -> dict[str, Any]:
    """How a form was last filled in; nothing where nobody knows (a damaged file is no reason to refuse work)."""
    path = _forms_path()
    try:
        values = read_yaml(path).get(form, {}) if path is not None and path.exists() else {}
    except InputError:
        return {}
    return values if isinstance(values, dict) else {}


def remember(form: str, values: dict[str, Any]) -> None:
    """Keep how a form is filled in, for the next start.

    Raises:
        InputError: the settings folder cannot be written.
    """
    path = _forms_path()
    if path is None:
        return
    try:
        forms = read_yaml(path) if path.exists() else {}
    except InputError:
        forms = {}
    if forms.get(form) != values:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from None
        write_text(path, dump_yaml({**forms, form: values}))


def _forms_path() -> Path | None:
    """Beside napari's own settings; None where napari keeps none."""
    config = get_settings().config_path
    return None if config is None else Path(config).parent / f"{PLUGIN}-forms.yaml"
