"""Settings, and the opened host modules that every action takes. Built once by the CLI, or by a test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path("/etc/macvm/config.toml")


@dataclass
class Options:
    """The global options as typed; None or 0 where not given."""

    output: str = "table"
    yes: bool = False
    verbose: int = 0
    quiet: bool = False
    connect: str | None = None
    state_dir: str | None = None
