"""``python -m mepdiff_core``: the same as ``mepdiff``."""

import sys

from mepdiff_core.cli import main

sys.exit(main())
