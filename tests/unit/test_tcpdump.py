"""One pcap stream out of several runs of tcpdump, however their bytes come; and tcpdump itself, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import Unable
from provisioner.host import tcpdump
from provisioner.host.commands import ToolFailed
from provisioner.host.tcpdump import Stream

HEADER = struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)


def packet(data: bytes) -> bytes:
    return struct.pack("=IIII", 1, 2, len(data), len(data) + 5) + data


_RUN = st.tuples(
    st.lists(st.binary(max_size=40), max_size=4), st.integers(0, 20), st.lists(st.integers(0, 60), max_size=8)
)


@given(st.lists(_RUN, min_size=1, max_size=4))
def test_runs_become_one_file_of_whole_packets(runs: list[tuple[list[bytes], int, list[int]]]) -> None:
    """Each run's bytes come in pieces of any size, and its last packet may be cut off."""
    written: list[bytes] = []
    stream = Stream(written.append)
    expected = HEADER
    for packets, cut, sizes in runs:
        whole = b"".join(packet(data) for data in packets)
        expected += whole
        data = HEADER + whole + packet(b"x" * 20)[:cut]
        stream.begin()
        for size in sizes:
            stream.feed(data[:size])
            data = data[size:]
        stream.feed(data)
    assert b"".join(written) == expected
    assert all(written)


def test_a_run_that_ended_before_its_header_counts_for_none() -> None:
    written: list[bytes] = []
    stream = Stream(written.append)
    for piece in (b"", HEADER[:10], HEADER + packet(b"a")):
        stream.begin()
        stream.feed(piece)
    assert b"".join(written) == HEADER + packet(b"a")


# --- with tcpdump -----------------------------------------------------------------------------------------------------

#: Captures on loopback until a signal comes, with a packet's bytes on standard output.
SCRIPT = """
import sys
from provisioner.host import tcpdump
def sink(data): sys.stdout.buffer.write(data); sys.stdout.buffer.flush()
with tcpdump.interruptible() as interrupt:
    again = tcpdump.run(tcpdump.argv("lo", sys.argv[1:], raw=True), interrupt, tcpdump.Stream(sink), lambda text: print(text, file=sys.stderr, flush=True))
sys.exit(again)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_all_packets_written(number: int, tmp_path: Path, as_root: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        port = sender.getsockname()[1]
        argv = [sys.executable, "-c", SCRIPT, "udp", "port", str(port)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stderr
            assert b"listening on lo" in child.stderr.readline()
            sender.sendto(b"hello", ("127.0.0.1", port))
            first = child.stdout.read(24 + 16 + 14 + 20 + 8 + 5)
            child.send_signal(number)
            rest = child.stdout.read()
            assert child.wait(10) == 0
    assert first.endswith(b"hello")
    # On loopback a packet may be seen twice.
    assert rest in (b"", first[24:])


def test_a_filter_with_a_mistake(as_root: None) -> None:
    with tcpdump.interruptible() as interrupt, pytest.raises(ToolFailed, match="syntax error"):
        tcpdump.run(tcpdump.argv("lo", ["bad", "filter"], raw=False), interrupt, None, print)


def test_words_are_never_options(as_root: None) -> None:
    with tcpdump.interruptible() as interrupt, pytest.raises(ToolFailed, match="syntax error"):
        tcpdump.run(tcpdump.argv("lo", ["-w", "/proc/none/x"], raw=False), interrupt, None, print)


def test_no_such_device_is_waited_for(as_root: None) -> None:
    with tcpdump.interruptible() as interrupt:
        assert tcpdump.run(tcpdump.argv("nope0", [], raw=False), interrupt, None, print)


def test_signals_are_as_they_were_afterwards() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with tcpdump.interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_without_tcpdump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with tcpdump.interruptible() as interrupt, pytest.raises(Unable) as raised:
        tcpdump.run(tcpdump.argv("lo", [], raw=False), interrupt, None, print)
    assert raised.value.hint == "apt install tcpdump"
