"""HTTP and HTTPS as a client: proxies, redirects, and what can go wrong in words. The only user of urllib3."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from provisioner.errors import MacvmError, Usage
from provisioner.model.names import printable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager
    from urllib3.exceptions import HTTPError

Answer: TypeAlias = "BaseHTTPResponse"

#: Seconds to be connected, and without a byte from the server.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0

_MOST_REDIRECTS = 10
#: Statuses that may be others a moment later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
_HINT = "an address is https://HOST/PATH"


class DownloadFailed(MacvmError):
    """The server cannot be reached or does not give the file. `passing`: another try may do, after `wait` seconds;
    `unreachable`: only where it was reached a moment ago."""

    def __init__(
        self, message: str, hint: str = "", *, passing: bool = False, unreachable: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(message, hint)
        self.passing = passing
        self.unreachable = unreachable
        self.wait = wait


def shown(url: str) -> str:
    """The address as it may be shown: no password, and no query, which may be a key as well."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    if not parts.netloc:
        # me:password@host, where the scheme was left out.
        return "the address" if "@" in url else printable(url, 200)
    login, _, host = parts.netloc.rpartition("@")
    name, colon, _ = login.partition(":")
    user = f"{name}:***@" if colon else f"{name}@" if name else ""
    text = f"{parts.scheme}://{user}{host}{parts.path}" + ("?…" if parts.query else "")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:300])


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or not url.isprintable() or " " in url:
        raise Usage(f"{shown(url)} is no address of a file", _HINT)
    return parts


@contextmanager
def opened(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[Answer]:
    """The answer to a GET, redirects followed; of status 200, 206 or 416. What its body raises becomes DownloadFailed.

    Raises Usage, DownloadFailed.
    """
    from urllib3.exceptions import HTTPError

    with ExitStack() as stack:
        response = _follow(stack, url, headers, timeout)
        try:
            yield response
        except HTTPError as error:
            raise _broken(error, url, timeout) from error


def _follow(stack: ExitStack, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
    # urllib3's own redirects would go from https to http, and through the proxy of the first address.
    asked = url
    for _ in range(_MOST_REDIRECTS + 1):
        response = _get(stack, url, headers, timeout)
        location = response.get_redirect_location()
        if not location:
            _check_status(response, url)
            return response
        try:
            _split(target := urljoin(url, location))
        except (ValueError, Usage):
            raise DownloadFailed(f"{shown(asked)} leads nowhere", "try another mirror") from None
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            message = f"{shown(asked)} leads to {shown(target)}, which is not encrypted"
            raise DownloadFailed(message, "give that address itself, with a checksum, if you trust the way to it")
        url = target
    raise DownloadFailed(f"{shown(asked)} leads from address to address without end", "try another mirror")


def _get(stack: ExitStack, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
    from urllib3 import Timeout
    from urllib3.exceptions import HTTPError

    parts = _split(url)
    sent = {"User-Agent": "macvm", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
    if parts.username is not None:
        sent["Authorization"] = _login(parts)
    pool = stack.enter_context(_pool(parts))
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    limits = Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout)
    try:
        # Tries of its own would know nothing of what has come already.
        response = pool.request(
            "GET", plain, headers=sent, timeout=limits, redirect=False, retries=False, preload_content=False
        )
    except HTTPError as error:
        raise _failed(error, url, timeout) from error
    stack.callback(response.close)
    return response


def _pool(parts: SplitResult) -> PoolManager:
    """Through the proxy that the environment names for this address (http_proxy, https_proxy, all_proxy, no_proxy)."""
    from urllib.request import getproxies, proxy_bypass

    from urllib3 import PoolManager, ProxyManager
    from urllib3.exceptions import HTTPError

    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return PoolManager()
    try:
        through = _split(proxy if "://" in proxy else f"http://{proxy}")
        login = {"Proxy-Authorization": _login(through)} if through.username is not None else {}
        return ProxyManager(f"{through.scheme}://{through.netloc.rpartition('@')[2]}", proxy_headers=login)
    except (Usage, HTTPError):
        message = f"the proxy {shown(proxy)} is none that macvm can use"
        raise Usage(message, f"{parts.scheme}_proxy=http://HOST:PORT") from None


def _login(parts: SplitResult) -> str:
    """RFC 7617, with UTF-8, which urllib3's make_headers does not do."""
    return "Basic " + b64encode(f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()).decode()


def _check_status(response: Answer, url: str) -> None:
    status = response.status
    if status in (200, 206, 416):
        return
    hint = "look at the address in a browser"
    if status in (404, 410):
        hint = "check the address; a newer release may have replaced the file"
    elif status in (401, 403, 407):
        hint = "the server wants a login: https://USER:PASSWORD@HOST/PATH"
    elif status in _PASSING:
        hint = "the server is in trouble: try again later, or another mirror"
    reason = (response.reason or "")[:40]
    after = response.headers.get("Retry-After", "")
    wait = min(float(after), _LONGEST_WAIT) if after.isdecimal() else 0.0
    message = f"{shown(url)} is not given: {status} {reason if reason.isprintable() else ''}".rstrip()
    raise DownloadFailed(message, hint, passing=status in _PASSING, wait=wait)


def _failed(error: HTTPError, url: str, timeout: float) -> MacvmError:
    """urllib3's exception before there was an answer, in words."""
    from urllib3 import exceptions

    host, reason = urlsplit(url).hostname, _reason(error)
    hint = "check the address and this host's network; is there a proxy to go through (https_proxy)?"
    match error:
        case exceptions.LocationValueError():
            return Usage(f"{shown(url)} is no address of a file", _HINT)
        case exceptions.ProxyError():
            hint = "check http_proxy and https_proxy, or leave this host out: no_proxy"
            return DownloadFailed(f"{shown(url)} cannot be fetched through the proxy: {reason}", hint)
        case exceptions.SSLError():
            hint = "check this host's clock and ca-certificates; a proxy that opens TLS needs its own certificate there"
            return DownloadFailed(f"{host} cannot be trusted: {reason}", hint)
        case exceptions.NameResolutionError():
            hint = "check the address, and this host's DNS: /etc/resolv.conf, resolvectl query"
            return DownloadFailed(f"the name {host} cannot be resolved: {reason}", hint, unreachable=True)
        case exceptions.NewConnectionError():
            return DownloadFailed(f"{host} cannot be reached: {reason}", hint, unreachable=True)
        case exceptions.ConnectTimeoutError():
            return DownloadFailed(f"{host} cannot be reached: it does not answer", hint, unreachable=True)
    return _broken(error, url, timeout)


def _broken(error: HTTPError, url: str, timeout: float) -> DownloadFailed:
    from urllib3.exceptions import ReadTimeoutError

    silent = isinstance(error, ReadTimeoutError)
    reason = f"nothing has come for {timeout:g} s" if silent else f"the connection broke: {_reason(error)}"
    return DownloadFailed(f"{shown(url)}: {reason}", "try again later, or another mirror", passing=True)


def _reason(error: BaseException) -> str:
    """The operating system's or OpenSSL's words, where there are some under urllib3's."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError):
            return getattr(inner, "verify_message", "") or inner.strerror or str(inner)
        last, inner = inner, inner.__cause__ or next((one for one in inner.args if isinstance(one, Exception)), None)
    return printable(str(last), 200)
