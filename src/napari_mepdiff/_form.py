"""A form made from a config: one row a field, units understood, what is impossible red with its reason."""

from __future__ import annotations

import dataclasses
import html
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel, QLineEdit, QToolButton, QVBoxLayout, QWidget

from mepdiff_core.config import describe, from_dict, to_dict
from mepdiff_core.errors import InputError
from napari_mepdiff._units import SUFFIXES, read_quantity, show_quantity, unit_of

INVALID_STYLE = "QLineEdit { border: 1px solid #d1495b; }"


def label_of(name: str) -> str:
    """A field's name as words: "slice_thickness_A" is "slice thickness"."""
    suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
    return name[: len(name) - len(suffix)].replace("_", " ")


class TextField(QLineEdit):
    """A line for a number (with its unit), a list, words, or nothing where nothing is allowed."""

    edited = Signal()

    def __init__(self, name: str, hint: Any, missing: str = "") -> None:
        super().__init__()
        arguments = typing.get_args(hint)
        self._optional = type(None) in arguments
        plain = next((a for a in arguments if a is not type(None)), hint) if self._optional else hint
        self._number, self._words = plain is float, plain is str
        self._list = typing.get_origin(plain) is tuple
        self._unit = unit_of(name)
        self._shown: tuple[str, Any] = ("", None)
        self.setPlaceholderText(missing or ("automatic" if self._optional else ""))
        self.setMinimumSize(70, 25)
        self.textEdited.connect(lambda _: self.edited.emit())
        self.editingFinished.connect(self._tidy)

    def value(self) -> Any:
        """The number, list or None; a text that is none of these as it stands, for the config to refuse.

        Raises:
            InputError: no number, or a unit of another kind.
        """
        text = self.text().strip()
        if self._optional and not text:
            return None
        if text == self._shown[0]:
            return self._shown[1]  # a line shows nine digits; a value that nobody touched keeps all of its own
        if self._words:
            return self._shown[1] if self.text() == self._shown[0] else text
        if self._number:
            return read_quantity(text, self._unit)
        if self._list:
            return [read_quantity(part, self._unit) for part in text.strip("[]()").split(",") if part.strip()]
        return int(text.partition(".")[0]) if re.fullmatch(r"[+-]?\d{1,40}(\.0*)?", text) else text

    def set_value(self, value: Any) -> None:
        """Show a value."""
        if value is None:
            self.setText("")
        elif isinstance(value, (list, tuple)):
            self.setText(", ".join(show_quantity(v, self._unit) for v in value))
        elif isinstance(value, float) or self._number:
            self.setText(show_quantity(float(value), self._unit))
        else:
            self.setText(str(value))
        self._shown = (self.text(), value)
        self.setCursorPosition(0)

    def _tidy(self) -> None:
        """What was typed, with its unit, once it is a number."""
        try:
            self.set_value(self.value())
        except InputError:
            return


class CheckField(QCheckBox):
    """A tick."""

    edited = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.clicked.connect(lambda _: self.edited.emit())

    def value(self) -> bool:
        return bool(self.isChecked())

    def set_value(self, value: Any) -> None:
        self.setChecked(bool(value))


class ChoiceField(QComboBox):
    """One of a few words."""

    edited = Signal()

    def __init__(self, choices: Sequence[Any]) -> None:
        super().__init__()
        self._choices = list(choices)
        self.addItems([str(c) for c in choices])
        self.setMinimumContentsLength(8)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.activated.connect(lambda _: self.edited.emit())

    def value(self) -> Any:
        return self._choices[self.currentIndex()]

    def set_value(self, value: Any) -> None:
        self.setCurrentIndex(self._choices.index(value))


Field = TextField | CheckField | ChoiceField


def make_field(name: str, hint: Any, missing: str = "") -> Field:
    """The widget for a field with this annotation; ``missing`` is what an empty line means."""
    if typing.get_origin(hint) is typing.Literal:
        return ChoiceField(typing.get_args(hint))
    return CheckField() if hint is bool else TextField(name, hint, missing)


class Section(QWidget):
    """A heading that folds what is under it away."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.heading = QToolButton()
        self.heading.setText(title)
        self.heading.setCheckable(True)
        self.heading.setAutoRaise(True)
        self.heading.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.heading.setStyleSheet("QToolButton { border: none; font-weight: bold; background: transparent; }")
        self.heading.clicked.connect(lambda *_: self.unfold(self.heading.isChecked()))
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(2)
        self._layout.addWidget(self.heading)
        self._content: QWidget | None = None
        self.unfold(False)

    def set_content(self, content: QWidget) -> None:
        """Put this under the heading, in place of what was there."""
        if self._content is not None:
            self._layout.removeWidget(self._content)
            self._content.hide()  # Qt deletes it some time later
            self._content.deleteLater()
        self._content = content
        self._layout.addWidget(content)
        content.setVisible(self.heading.isChecked())

    def unfold(self, unfolded: bool) -> None:
        """Show what is under the heading, or not."""
        self.heading.setChecked(unfolded)
        self.heading.setArrowType(Qt.ArrowType.DownArrow if unfolded else Qt.ArrowType.RightArrow)
        if self._content is not None:
            self._content.setVisible(unfolded)


class ConfigForm(QWidget):
    """A config as rows to fill in.

    Args:
        default: the config shown first; its class says which fields there are.
        hide: fields that are shown elsewhere; they keep their value.
        opened: configs inside this one that are shown unfolded.
        names: for fields that map names to numbers: which names there can be, by the field's dotted name.
        check: further conditions on a config; raises InputError.
        missing: what an empty line means, by field; "automatic" elsewhere.

    Attributes:
        value_changed: emitted after every edit, possible or not.
        error: why the form has no value now, "" where it has one.
    """

    value_changed = Signal()

    def __init__(
        self,
        default: Any,
        hide: Collection[str] = (),
        opened: Collection[str] = (),
        names: Mapping[str, Sequence[str]] | None = None,
        check: Callable[[Any], object] | None = None,
        missing: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._class = type(default)
        self._missing = missing or {}
        self._hidden: dict[str, Any] = {}
        self._hide = frozenset(hide)
        self._opened = opened
        self._names = names or {}
        self._check = check
        self.fields: dict[str, Field] = {}
        self._meanings = {name: meaning for name, _, meaning in describe(default)}
        self._layout = QFormLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setVerticalSpacing(4)
        self._layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._add_rows(self._layout, default, "")
        self._rows_end = self._layout.rowCount()
        self._message = QLabel()
        self._message.setObjectName("form_error")
        self._message.setWordWrap(True)
        self._message.setStyleSheet("color: #d1495b;")
        self._message.hide()
        self._layout.addRow(self._message)
        self.error = ""
        self.set_value(default)

    def add_row(self, label: str, widget: QWidget) -> None:
        """A row of another kind, after those of the config."""
        self._layout.insertRow(self._rows_end, QLabel(label), widget)
        self._rows_end += 1

    def value(self) -> Any:
        """The config.

        Raises:
            InputError: what stands in the form is none.
        """
        config = from_dict(self._class, self._values(), "form")
        if self._check is not None:
            self._check(config)
        return config

    def set_value(self, config: Any) -> None:
        """Show a config; no signal is emitted."""
        flat = _flatten(to_dict(config), self._names)
        self._hidden = {name: value for name, value in flat.items() if name not in self.fields}
        for name, field in self.fields.items():
            field.set_value(flat.get(name))
        self.validate()

    def validate(self) -> bool:
        """Mark what is impossible; whether all is well."""
        wrong, self.error = set(), ""
        for name, field in self.fields.items():
            try:
                field.value()
            except InputError as error:
                wrong.add(name)
                self.error = self.error or f"{label_of(name.rpartition('.')[2])}: {error}"
        if not wrong:
            try:
                self.value()
            except InputError as error:
                self.error = re.sub(r"^form: (field )?", "", str(error))
                wrong = {n for n in self.fields if re.search(rf"\b{re.escape(n.rpartition('.')[2])}\b", self.error)}
        for name in self.fields:  # the rows' own words instead of the names that scripts use
            last = name.rpartition(".")[2]
            self.error = re.sub(rf"\b{re.escape(last)}\b", label_of(last), self.error)
        for name, field in self.fields.items():
            field.setStyleSheet(INVALID_STYLE if name in wrong else "")
            meaning = self._tooltip(name)
            field.setToolTip(
                meaning.replace("<qt>", f"<qt><b>{html.escape(self.error, quote=False)}</b><br><br>")
                if name in wrong
                else meaning
            )
        self._message.setText(self.error)
        self._message.setVisible(bool(self.error))
        return not self.error

    def _edited(self) -> None:
        self.validate()
        self.value_changed.emit()

    def _values(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        values = self._hidden | {name: field.value() for name, field in self.fields.items()}
        for name, value in values.items():
            *parents, last = name.split(".")
            target = result
            for parent in parents:
                target = target.setdefault(parent, {})
            if not (value is None and ".".join(parents) in self._names):
                target[last] = value
        return result

    def _tooltip(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        meaning = self._meanings.get(name) or self._meanings.get(parent, "")
        unit = unit_of(last) or ("Å" if parent in self._names and last.startswith("C") else "")
        text = meaning[:1].upper() + meaning[1:]
        return f"<qt>{text}{f' <br>A bare number is in {unit}; other units are converted.' if unit else ''}</qt>"

    def _add_rows(self, layout: QFormLayout, config: Any, prefix: str) -> None:
        hints = typing.get_type_hints(type(config))
        for spec in dataclasses.fields(config):
            name, value = prefix + spec.name, getattr(config, spec.name)
            if name in self._hide:
                continue
            if dataclasses.is_dataclass(value):
                rows = QFormLayout()
                self._section(layout, label_of(spec.name), rows, name in self._opened)
                self._add_rows(rows, value, f"{name}.")
            elif name in self._names:
                rows = QFormLayout()
                self._section(layout, f"further {label_of(spec.name)}", rows, opened=False)
                for key in self._names[name]:
                    unit_name = f"{key}_deg" if key.startswith("phi") else f"{key}_A"
                    field = TextField(unit_name, float | None, missing="0")
                    self._row(rows, f"{name}.{key}", key, field)
            else:
                field = make_field(name, hints[spec.name], self._missing.get(name, ""))
                self._row(layout, name, label_of(spec.name), field)

    def _row(self, layout: QFormLayout, name: str, label: str, field: Field) -> None:
        field.setObjectName(name)
        field.edited.connect(self._edited)
        self.fields[name] = field
        text = QLabel(label)
        text.setToolTip(self._tooltip(name))
        text.setBuddy(field)
        layout.addRow(text, field)

    def _section(self, layout: QFormLayout, title: str, rows: QFormLayout, opened: bool) -> None:
        rows.setVerticalSpacing(4)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        body = QWidget()
        body.setLayout(rows)
        section = Section(title)
        section.set_content(body)
        section.unfold(opened)
        layout.addRow(section)


def _flatten(values: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, names, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
