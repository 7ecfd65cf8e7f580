"""Click's own completion scripts of `macvm`: `python3 completions.py BASH ZSH FISH` writes these files.

Run by the Python that has macvm.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.shell_completion import get_completion_class

from provisioner.cli.main import cli


def script(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(cli, {}, "macvm", "_MACVM_COMPLETE").source()


if __name__ == "__main__":
    for shell, file in zip(("bash", "zsh", "fish"), sys.argv[1:], strict=True):
        Path(file).write_text(script(shell) + "\n")
