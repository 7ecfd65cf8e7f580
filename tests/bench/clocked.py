"""`macvm` with a clock: notes when each step's boundary was passed, and writes that to standard error at the end."""

import sys
import time

_BEGAN = time.monotonic()  # ahead of the imports, which are to be counted


def run(arguments: list[str]) -> None:
    """The last line on standard error is a JSON list of `[mark, seconds of this boot's monotonic clock]`."""
    marks: list[tuple[str, float]] = [("interpreter", _BEGAN)]

    def mark(name: str) -> None:
        marks.append((name, time.monotonic()))

    from provisioner.actions import machines
    from provisioner.cli import create, main, run

    assert create.create
    mark("imports")

    def watch(context):  # type: ignore[no-untyped-def]  # its class is not to be imported for a name
        mark("options and settings")
        context.checkpoint = mark

    def plan(*given: object, **named: object) -> object:
        found = make_plan(*given, **named)  # type: ignore[arg-type]
        mark("plan")
        return found

    run.context_hook = watch
    make_plan, machines.make_plan = machines.make_plan, plan  # type: ignore[assignment,attr-defined]
    try:
        main.main(arguments)
    except SystemExit as end:
        mark("close, show, print")
        import json

        print(json.dumps(marks), file=sys.stderr)
        main.leave(int(end.code or 0))


if __name__ == "__main__":
    run(sys.argv[1:])
