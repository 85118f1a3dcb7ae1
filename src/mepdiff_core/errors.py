"""The errors a user can meet. Each message is one line: what, what it got, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used. The command line answers with exit code 2."""


class Diverged(InputError):
    """A loop left the realm of finite or falling losses; its last good state was yielded before."""
