"""Downloads from a server that does everything wrong: never a bad file in place, and what was resumed is byte-equal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.errors import MacvmError, Unable, Usage
from provisioner.host import download
from provisioner.host.disks import ImageRefused
from provisioner.host.web import DownloadFailed
from provisioner.model.checksum import Checksum
from tests.conftest import Require
from tests.unit.web_site import PIECE, Handler, Site, answer, listening, proxying, serving


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder / "disk.img"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited between two tries."""
    noted: list[float] = []
    monkeypatch.setattr(download.time, "sleep", noted.append)
    return noted


def fetch(url: str, target: Path, checksum: Checksum | None, **options: object) -> None:
    download.fetch(url, target, checksum, **{"pause": 0.001, "timeout": 20.0, **options})  # type: ignore[arg-type]


def part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def assert_only(target: Path, content: bytes) -> None:
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def assert_refused(
    kind: type[MacvmError], match: str, url: str, target: Path, checksum: Checksum | None, **options: object
) -> MacvmError:
    """And nothing is left behind."""
    with pytest.raises(kind, match=match) as error:
        fetch(url, target, checksum, **options)
    assert list(target.parent.iterdir()) == []
    assert error.value.hint
    return error.value


def cut_once(site: Site, size: int, then: Callable[[], object] = lambda: None) -> None:
    """The next answer is cut after `size` bytes of its body."""

    def give(handler: Handler) -> None:
        handler.give_file(cut=size)
        then()

    site.instead.append(give)


known = pytest.mark.parametrize("is_known", [True, False], ids=["checksum", "no-checksum"])


@known
def test_a_whole_file_comes_in_one_request(site: Site, target: Path, is_known: bool) -> None:
    told: list[tuple[int, int | None]] = []
    fetch(site.url, target, site.sha256 if is_known else None, progress=lambda *one: told.append(one))
    assert_only(target, site.content)
    assert site.ranges == [""]
    assert told[-1] == (len(site.content), len(site.content))
    assert [total for _, total in told] == [len(site.content)] * len(told)


def test_progress_is_told_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(download.time, "monotonic", lambda: clock)
    told: list[int] = []
    tell = download._throttled(lambda done, _: told.append(done))
    for number in range(1, 1001):
        clock += 0.01
        tell(number, 1000)
    assert 95 <= len(told) <= 101
    assert told[-1] == 1000


@known
def test_a_server_that_cuts_at_every_64_kib_gives_an_equal_file(site: Site, target: Path, is_known: bool) -> None:
    site.cut = PIECE
    fetch(site.url, target, site.sha256 if is_known else None)
    assert_only(target, site.content)
    assert site.ranges == ["", *(f"bytes={at}-" for at in range(PIECE, len(site.content), PIECE))]
    assert {one.if_range for one in site.asked[1:]} == {'"1"'}


@known
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_cuts_anywhere_give_an_equal_file(
    is_known: bool, cuts: list[int], tmp_path_factory: pytest.TempPathFactory, small_site: Site
) -> None:
    small_site.instead.clear()
    for size in cuts:
        cut_once(small_site, size)
    target = tmp_path_factory.mktemp("cuts") / "disk.img"
    fetch(small_site.url, target, small_site.sha256 if is_known else None)
    assert_only(target, small_site.content)


@pytest.fixture(scope="module")
def small_site() -> Iterator[Site]:
    with serving(3000) as found:
        yield found


def test_a_chunked_answer_is_whole_or_gone_on_with(site: Site, target: Path) -> None:
    site.is_chunked = True
    cut_once(site, 3 * PIECE)
    fetch(site.url, target, None)
    assert_only(target, site.content)
    assert site.ranges == ["", f"bytes={3 * PIECE}-"]


def test_a_server_that_ignores_ranges_and_cuts_is_given_up(site: Site, target: Path) -> None:
    site.takes_ranges, site.cut = False, PIECE
    with pytest.raises(DownloadFailed, match="connection broke"):
        fetch(site.url, target, site.sha256)
    assert not target.exists()
    assert len(site.asked) == 5
    site.cut = None
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)


def test_a_length_that_is_too_large_leaves_no_file_but_where_the_checksum_is_right(site: Site, target: Path) -> None:
    site.lie = 1000
    assert_refused(DownloadFailed, "go on|broke", site.url, target, None)
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)


def test_a_length_that_is_too_small_gives_wrong_bytes(site: Site, target: Path) -> None:
    site.lie = -1000
    assert_refused(ImageRefused, "checksum", site.url, target, site.sha256)


def test_wrong_bytes_are_refused_with_both_digests(site: Site, target: Path) -> None:
    right = site.sha256
    site.content = site.content[:-1] + bytes([site.content[-1] ^ 1])
    error = assert_refused(ImageRefused, "does not have the checksum", site.url, target, right)
    assert right.digest in error.hint
    assert site.sha256.digest in error.hint
    assert len(site.asked) == 1


@known
@pytest.mark.parametrize("validator", ["etag", "last_modified", "none", "weak"])
def test_a_file_that_changes_between_two_parts_is_fetched_again_whole(
    site: Site, target: Path, validator: str, is_known: bool
) -> None:
    new = bytes(byte ^ 255 for byte in site.content)
    site.etag = {"etag": '"1"', "weak": 'W/"1"'}.get(validator, "")
    site.last_modified = "Sat, 01 Nov 2025 10:00:00 GMT" if validator == "last_modified" else ""

    def change() -> None:
        site.content = new
        site.etag = site.etag.replace("1", "2")
        site.last_modified = site.last_modified.replace("01", "02")

    cut_once(site, 5 * PIECE, change)
    expected = Checksum("sha256", hashlib.sha256(new).hexdigest())
    fetch(site.url, target, expected if is_known else None)
    assert_only(target, new)
    sent = {"etag": '"1"', "last_modified": "Sat, 01 Nov 2025 10:00:00 GMT"}.get(validator, "")
    assert site.asked[1].if_range == sent


def test_a_file_that_is_wrong_in_two_pieces_and_in_one_is_refused(site: Site, target: Path) -> None:
    wrong = Checksum("sha256", "0" * 64)
    site.etag, site.cut = "", PIECE
    assert_refused(ImageRefused, "does not have the checksum", site.url, target, wrong)
    assert site.ranges.count("") == 2


def test_what_an_earlier_run_left_is_gone_on_with_or_thrown_away(site: Site, target: Path) -> None:
    for left, asked in (
        (site.content[:1000], ["bytes=1000-"]),
        (site.content, []),
        (b"stale" * 100, ["bytes=500-", ""]),
        (bytes(len(site.content)), [f"bytes={len(site.content)}-", ""]),
        (bytes(len(site.content) + 9), [f"bytes={len(site.content) + 9}-", ""]),
        (b"", [""]),
    ):
        site.asked.clear()
        target.unlink(missing_ok=True)
        part(target).write_bytes(left)
        fetch(site.url, target, site.sha256)
        assert_only(target, site.content)
        assert site.ranges == asked


def test_what_an_earlier_run_left_is_not_trusted_without_a_checksum(site: Site, target: Path) -> None:
    part(target).write_bytes(site.content)
    site.cut = PIECE
    fetch(site.url, target, None)
    assert_only(target, site.content)
    assert site.ranges[0] == ""


def test_a_target_that_is_there_already_is_not_fetched_again(site: Site, target: Path) -> None:
    target.write_bytes(site.content)
    part(target).write_bytes(b"left over")
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)
    assert site.asked == []
    target.write_bytes(b"something else")
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)


@pytest.mark.parametrize(
    "wrong",
    [
        answer(206, b"x" * 100, Content_Range="bytes 5-104/1048576"),
        answer(206, b"x" * 100, Content_Range=f"bytes {PIECE}-{PIECE + 99}/999999"),
        answer(206, b"x" * 100, Content_Range="pages 1-2/3"),
        answer(206, b"x" * 100),
        answer(416, Content_Range="bytes */77"),
        answer(416),
        answer(206, b"", Content_Range=f"bytes {PIECE}-1048575/1048576"),
        answer(206, b"x" * 2_000_000, Content_Range=f"bytes {PIECE}-1048575/1048576"),
    ],
    ids=["elsewhere", "other-total", "no-range", "no-header", "other-size", "416", "nothing", "too-much"],
)
@known
def test_a_wrong_answer_to_a_range_begins_again(
    site: Site, target: Path, wrong: Callable[[Handler], None], is_known: bool
) -> None:
    cut_once(site, PIECE)
    site.instead.append(wrong)
    fetch(site.url, target, site.sha256 if is_known else None)
    assert_only(target, site.content)


def test_a_range_of_which_a_part_comes_is_gone_on_with(site: Site, target: Path) -> None:
    cut_once(site, PIECE)
    whole = len(site.content)
    some = site.content[PIECE : 2 * PIECE]
    site.instead.append(answer(206, some, Content_Range=f"bytes {PIECE}-{2 * PIECE - 1}/{whole}"))
    site.instead.append(answer(206, site.content[2 * PIECE :], Content_Range=f"bytes {2 * PIECE}-{whole - 1}/*"))
    fetch(site.url, target, None)
    assert_only(target, site.content)
    assert len(site.asked) == 3


def test_416_for_all_that_is_there_is_the_end(site: Site, target: Path) -> None:
    def all_but_its_end(handler: Handler) -> None:
        handler.say(200, {"Transfer-Encoding": "chunked", "ETag": site.etag})
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(site.content), site.content))

    site.instead.append(all_but_its_end)
    fetch(site.url, target, None)
    assert_only(target, site.content)
    assert site.ranges == ["", f"bytes={len(site.content)}-"]


def test_416_for_less_than_is_known_to_come_is_no_end(site: Site, target: Path) -> None:
    site.is_chunked = True
    cut_once(site, PIECE)
    site.instead.append(answer(416))
    fetch(site.url, target, None)
    assert_only(target, site.content)


def test_an_end_that_cannot_be_told_wants_a_checksum(site: Site, target: Path) -> None:
    site.length = False
    assert_refused(DownloadFailed, "does not say where it ends", site.url, target, None)
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)
    target.unlink()
    cut_once(site, PIECE)
    assert_refused(ImageRefused, "checksum", site.url, target, site.sha256)


@known
def test_an_empty_file_is_refused(site: Site, target: Path, is_known: bool) -> None:
    site.content = b""
    assert_refused(ImageRefused, "empty", site.url, target, site.sha256 if is_known else None)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_file_above_the_limit_is_refused(site: Site, target: Path, is_chunked: bool) -> None:
    site.is_chunked = is_chunked
    said = "larger than" if is_chunked else "it has 1.0 MiB, and at most"
    assert_refused(ImageRefused, said, site.url, target, site.sha256, most=len(site.content) - 1)
    fetch(site.url, target, site.sha256, most=len(site.content))
    assert_only(target, site.content)


def test_a_server_that_falls_silent_is_asked_again(site: Site, target: Path) -> None:
    site.is_slow = True
    cut_once(site, 2 * PIECE)
    fetch(site.url, target, site.sha256, timeout=0.5)
    assert_only(target, site.content)
    assert site.ranges[:2] == ["", f"bytes={2 * PIECE}-"]


def test_a_server_that_never_answers_is_given_up(site: Site, target: Path) -> None:
    site.instead = [lambda _: site.stalls.wait(60)] * 5  # type: ignore[list-item]
    assert_refused(DownloadFailed, "nothing has come for 0.1 s", site.url, target, None, timeout=0.1)


@pytest.mark.parametrize(
    ("status", "tries", "hint"),
    [
        (404, 1, "newer release"),
        (403, 1, "USER:PASSWORD"),
        (500, 5, "try again later"),
        (204, 1, "browser"),
        (304, 1, "browser"),
    ],
)
def test_a_status_is_said_with_what_to_do(
    site: Site, target: Path, pauses: list[float], status: int, tries: int, hint: str
) -> None:
    site.instead = [answer(status)] * 5
    error = assert_refused(DownloadFailed, f"{site.url} is not given: {status}", site.url, target, None)
    assert hint in error.hint
    assert len(site.asked) == tries
    assert pauses == [0.001, 0.002, 0.004, 0.008][: tries - 1]


def test_a_server_that_was_busy_is_asked_again_when_it_says_so(site: Site, target: Path, pauses: list[float]) -> None:
    site.instead = [answer(503, Retry_After="7"), answer(429, Retry_After="86400"), answer(502)]
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)
    assert pauses == [7.0, 60.0, 0.004]


def test_a_file_that_goes_missing_half_way_fails_and_keeps_its_part(site: Site, target: Path) -> None:
    cut_once(site, PIECE)
    site.instead.append(answer(404))
    with pytest.raises(DownloadFailed, match="404"):
        fetch(site.url, target, site.sha256)
    assert part(target).read_bytes() == site.content[:PIECE]
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)
    assert site.ranges[-1] == f"bytes={PIECE}-"


def test_redirects_are_followed(site: Site, target: Path) -> None:
    for location in ("/other/disk.img", "//" + site.url.removeprefix("http://"), site.url):
        site.instead = [answer(302, Location=location), answer(307, Location="disk.img?x=1")]
        target.unlink(missing_ok=True)
        fetch(site.url, target, site.sha256)
        assert_only(target, site.content)


@pytest.mark.parametrize("location", ["/disk.img", "ftp://192.0.2.1/x", "http://[", "file:///etc/passwd", "http:///x"])
def test_redirects_without_end_or_to_nowhere_are_refused(site: Site, target: Path, location: str) -> None:
    site.instead = [answer(301, Location=location)] * 20
    assert_refused(DownloadFailed, "without end|nowhere", site.url, target, None)


def test_a_password_is_sent_to_its_own_server_and_never_shown(site: Site, target: Path, pauses: list[float]) -> None:
    url = site.url.replace("http://", "http://me:s%C3%A4cret@") + "?key=secret2"
    with serving() as other:
        site.instead = [answer(302, Location=other.url)]
        fetch(url, target, other.sha256)
    assert site.asked[0].login == "Basic bWU6c8OkY3JldA=="
    assert other.asked[0].login == ""
    target.unlink()
    for trouble in (answer(404), answer(500), answer(302, Location="http://["), lambda handler: None):
        site.instead = [trouble] * 5
        error = assert_refused(DownloadFailed, "me:[*]{3}@127", url, target, None)
        assert "cret" not in f"{error.message} {error.hint}"
    for wrong in ("me:secret@host", "http://me:secret@host:99999/", "http://me:secret@[/x", "http://me:secret@ho st/x"):
        error = assert_refused(Usage, "no address", wrong, target, None)
        assert "secret" not in f"{error.message} {error.hint}"


@pytest.mark.parametrize(
    "url", ["", "disk.img", "/etc/passwd", "ftp://host/x", "http://", "http://host/a\nb", f"http://{'a' * 70}/x"]
)
def test_what_is_no_address_is_refused(url: str, target: Path) -> None:
    assert_refused(Usage, "no address", url, target, None)


def test_a_server_that_is_not_there_is_said_at_once(target: Path, pauses: list[float]) -> None:
    with serving() as gone:
        pass
    assert_refused(DownloadFailed, "127.0.0.1 cannot be reached: Connection refused", gone.url, target, None)
    assert pauses == []


def test_a_server_that_goes_away_half_way_is_waited_for(target: Path, pauses: list[float]) -> None:
    with serving() as site:

        def give(handler: Handler) -> None:
            handler.server.socket.shutdown(socket.SHUT_RDWR)
            handler.give_file(cut=PIECE)

        site.instead.append(give)
        with pytest.raises(DownloadFailed, match="cannot be reached"):
            fetch(site.url, target, site.sha256)
    assert len(pauses) == 4
    assert part(target).stat().st_size == PIECE


FETCH = "import sys; from pathlib import Path; from provisioner.host.download import fetch; from provisioner.model.checksum import parse_checksum\n"
FETCH += "from provisioner.errors import MacvmError\n"
FETCH += "try: fetch(sys.argv[1], Path(sys.argv[2]), parse_checksum(sys.argv[3]) if len(sys.argv) > 3 else None)\n"
FETCH += "except MacvmError as error: print(type(error).__name__, error.message, error.hint)\n"


def elsewhere(url: str, target: Path, checksum: Checksum | None) -> list[str]:
    """The same as a command of its own."""
    return [sys.executable, "-c", FETCH, url, str(target), *([str(checksum)] if checksum else [])]


def until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_killed_download_is_gone_on_with(site: Site, target: Path) -> None:
    site.is_slow = True
    for size in (3 * PIECE, 2 * PIECE, PIECE):
        cut_once(site, size)
        had = part(target).stat().st_size if part(target).exists() else 0
        with subprocess.Popen(elsewhere(site.url, target, site.sha256)) as process:
            until(lambda had=had, size=size: part(target).exists() and part(target).stat().st_size == had + size)
            process.send_signal(signal.SIGKILL)
        assert not target.exists()
    fetch(site.url, target, site.sha256)
    assert_only(target, site.content)
    assert site.ranges == ["", *(f"bytes={pieces * PIECE}-" for pieces in (3, 5, 6))]


@known
def test_of_several_at_once_all_wait_for_the_first(site: Site, target: Path, is_known: bool) -> None:
    site.is_slow = True
    cut_once(site, PIECE)
    command = elsewhere(site.url, target, site.sha256 if is_known else None)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        until(lambda: part(target).exists() and part(target).stat().st_size == PIECE)
        others = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(2)]
        until(lambda: all(_waits_for_a_lock(one.pid) for one in others))
        site.stalls.set()
        assert [one.communicate()[0] for one in (first, *others)] == [b""] * 3
    assert_only(target, site.content)
    # Without a checksum nothing tells the others that theirs has come.
    assert site.ranges == ["", f"bytes={PIECE}-", *([] if is_known else ["", ""])]


def _waits_for_a_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "-> FLOCK" in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_full_disk_is_said_and_nothing_is_in_place(site: Site, target: Path, require: Require) -> None:
    require(os.geteuid() == 0, "mounting a small disk needs root")
    mount = f'mount -t tmpfs -o size=512k small {target.parent} && "$@" && ls {target.parent}'
    for is_chunked, said in ((False, "1.0 MiB more do not fit into"), (True, "is full")):
        site.is_chunked = is_chunked
        command = ["unshare", "-m", "sh", "-c", mount, "sh", *elsewhere(site.url, target, site.sha256)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert output.startswith("Unable ")
        assert said in output
        assert output.splitlines()[1:] == (["disk.img.part"] if is_chunked else [])


def test_a_host_without_network_says_what_is_missing(target: Path, require: Require) -> None:
    require(os.geteuid() == 0, "an empty network namespace needs root")
    for host, said in (
        ("192.0.2.1", "192.0.2.1 cannot be reached: Network is unreachable"),
        ("macvm.invalid", "the name macvm.invalid cannot be resolved"),
    ):
        command = ["unshare", "-n", *elsewhere(f"http://{host}/x", target, Checksum("sha256", "0" * 64))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert output.startswith(f"DownloadFailed {said}")


def test_a_folder_that_is_not_there_is_said(site: Site, target: Path) -> None:
    with pytest.raises(MacvmError, match="No such file") as error:
        fetch(site.url, target.parent / "none" / "disk.img", site.sha256)
    assert not isinstance(error.value, (DownloadFailed, Unable))


class Secure:
    """A key, and the certificate that it signed itself."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "cert.pem"
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        words += [
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, folder / "key.pem")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Secure:
    return Secure(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_site(secure: Secure) -> Iterator[Site]:
    class Mine(Handler):
        def setup(self) -> None:
            self.request = secure.context.wrap_socket(self.request, server_side=True)
            super().setup()

    with listening(Mine) as address:
        Mine.site = Site(address, os.urandom(3 * PIECE))
        Mine.site.url = f"https://{address}/disk.img"
        yield Mine.site


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_site: Site, target: Path, pauses: list[float]) -> None:
    error = assert_refused(
        DownloadFailed, "127.0.0.1 cannot be trusted: self-signed", tls_site.url, target, tls_site.sha256
    )
    assert "clock" in error.hint
    assert pauses == tls_site.asked == []


def test_a_way_from_https_to_http_is_not_taken(
    tls_site: Site, site: Site, secure: Secure, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.certificate))
    tls_site.instead = [answer(302, Location=site.url)]
    assert_refused(DownloadFailed, "not encrypted", tls_site.url, target, site.sha256)
    assert site.asked == []
    cut_once(tls_site, PIECE)
    fetch(tls_site.url, target, tls_site.sha256)
    assert_only(target, tls_site.content)


def test_the_environments_proxy_is_gone_through(
    tls_site: Site, site: Site, secure: Secure, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.certificate))
    with proxying() as (proxy, seen):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        for one, asked in (
            (site, site.url),
            (tls_site, tls_site.url.removeprefix("https://").removesuffix("/disk.img")),
        ):
            cut_once(one, PIECE)
            fetch(one.url, target, one.sha256)
            assert_only(target, one.content)
            assert seen == [asked] * 2
            seen.clear()
            target.unlink()
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        fetch(site.url, target, site.sha256)
        assert seen == []


def test_a_proxy_that_wants_a_login_or_is_not_there(
    site: Site, tls_site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxying("Basic bWU6c2VjcmV0") as (proxy, _):
        monkeypatch.setenv("https_proxy", f"http://me:wrong@{proxy}")
        assert_refused(DownloadFailed, "through the proxy: .*407", tls_site.url, target, None)
        monkeypatch.setenv("http_proxy", f"http://me:secret@{proxy}")
        fetch(site.url, target, site.sha256)
        target.unlink()
    error = assert_refused(DownloadFailed, "through the proxy: Connection refused", site.url, target, None)
    assert "no_proxy" in error.hint
    for wrong, said in (
        ("socks5://me:secret@127.0.0.1:1", r"socks5://me:[*]{3}@127"),
        (" ", "the proxy ' '"),
        ("[", "the proxy"),
    ):
        monkeypatch.setenv("http_proxy", wrong)
        assert_refused(Usage, said, site.url, target, None)


def test_a_text_is_fetched_whole_and_not_without_end(site: Site, pauses: list[float]) -> None:
    site.content = "abc  é.img\n".encode()
    cut_once(site, 5)
    assert download.fetch_text(site.url, 100) == "abc  é.img\n"
    with pytest.raises(DownloadFailed, match="larger than"):
        download.fetch_text(site.url, 11)
    site.instead = [answer(404)]
    with pytest.raises(DownloadFailed, match="404"):
        download.fetch_text(site.url, 100)
    site.instead = [answer(503)] * 5
    with pytest.raises(DownloadFailed, match="503"):
        download.fetch_text(site.url, 100)
    assert len(pauses) == 5


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    program = "import sys; import provisioner.host.download, provisioner.host.unpack; print([name for name in ('urllib3', 'backports', 'http.client') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_thread_outlives_a_download(site: Site, target: Path) -> None:
    fetch(site.url, target, site.sha256)
    with pytest.raises(ImageRefused):
        fetch(site.url, target, Checksum("sha256", "0" * 64))
    assert "hash" not in {thread.name for thread in threading.enumerate()}
