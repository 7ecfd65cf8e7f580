"""What is said of wrong lab files, and the schema of right ones, against golden files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner.actions.labs.file import parse
from provisioner.actions.labs.forms import json_schema
from provisioner.actions.labs.mistakes import LabMistakes
from provisioner.cli.main import report
from tests.golden.test_golden import HERE, compare

LABS = sorted((HERE / "labs").glob("*.yaml"))


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_what_is_said_of_a_wrong_lab(
    path: Path, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    with pytest.raises(LabMistakes) as caught:
        parse(path.read_bytes(), path.relative_to(HERE), {"PASSWORD": "hunter2"})
    assert report(caught.value) == 2
    compare(capsys.readouterr().err, f"lab-{path.stem}.txt", pytestconfig)


def test_the_schema_is_as_its_golden_file(pytestconfig: pytest.Config) -> None:
    compare(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", "lab-schema.json", pytestconfig)


def test_no_golden_file_of_a_lab_is_left_over() -> None:
    expected = {"lab-schema.json"} | {f"lab-{path.stem}.txt" for path in LABS}
    assert {path.name for path in (HERE / "expected").glob("lab-*")} == expected
