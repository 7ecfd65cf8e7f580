"""What several parts read and write, in /etc as in procfs and sysfs. Not pathlib: importing it takes milliseconds."""

from __future__ import annotations

import os


def listed(directory: str) -> list[str]:
    """The names in a directory; none where it is not there."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
