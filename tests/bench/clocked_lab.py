"""`macvm lab up` with a clock: notes which thread passed a step's boundary when, and the most memory it all had.

`python -m tests.bench.clocked_lab RESULT lab up …` writes that to the file RESULT, as JSON.
"""

import sys
import time

_BEGAN = time.monotonic()  # ahead of the imports, which are to be counted


def run(result: str, arguments: list[str]) -> None:
    """Writes `{"marks": [[mark, seconds of this boot's monotonic clock, lane]…], "peak": KB}`. Lane 0 is the command's
    own thread, each other one is a worker."""
    import threading

    marks: list[tuple[str, float, int]] = [("interpreter", _BEGAN, 0)]
    lanes = {threading.get_ident(): 0}

    def mark(name: str) -> None:
        lane = lanes.setdefault(threading.get_ident(), len(lanes))
        marks.append((name, time.monotonic(), lane))

    def marked(module, name, before, after):  # type: ignore[no-untyped-def]  # whatever the function takes
        """Marks where a function begins, and where it ends."""
        act = getattr(module, name)

        def marking(*given, **named):  # type: ignore[no-untyped-def]
            mark(before)
            try:
                return act(*given, **named)
            finally:
                mark(after)

        setattr(module, name, marking)

    from provisioner.actions import machines
    from provisioner.actions.labs import bringing, file, runner, up
    from provisioner.cli import labs, main, run

    assert labs.lab
    marked(file, "load", "options and settings", "the file")
    marked(up, "look", "lock and journal", "the plan")
    marked(bringing.Bringing, "_become", "networks and shims", "machines")
    marked(machines, "make_plan", "image", "plan")
    marked(runner._Worker, "do", "begun", "journal")
    mark("imports")

    def watch(context):  # type: ignore[no-untyped-def]  # its class is not to be imported for a name
        context.checkpoint = mark

    run.context_hook = watch
    try:
        main.main(arguments)
    except SystemExit as end:
        import json
        from pathlib import Path

        mark("close, show, print")
        # That of the memory itself: what getrusage says begins with that of the process which this one came from.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found = {"marks": marks, "peak": int(status["VmHWM"].split()[0])}
        Path(result).write_text(json.dumps(found))
        main.leave(int(end.code or 0))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
