"""Webhooks go where they may go, and to the very address that was looked at."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.server.settings import ServerSettings
from trunkline.server.webhooks.addresses import (
    NOT_PUBLIC_V4,
    NOT_PUBLIC_V6,
    UrlRefused,
    addresses_of,
    is_public,
    parse_url,
    resolve_by_system,
)
from trunkline.server.webhooks.post import Poster, Unreachable
from trunkline.server.webhooks.signing import new_secret

PUBLIC = ("93.184.216.34", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111")
NOT_PUBLIC = (
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.0.192", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_public_is_never_more_than_what_python_calls_global(
    address: IPv4Address | IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.data())
def test_nothing_of_a_special_network_is_public(data: st.DataObject) -> None:
    network = data.draw(st.sampled_from([*NOT_PUBLIC_V4, *NOT_PUBLIC_V6]))
    assert not is_public(str(data.draw(st.ip_addresses(network=network))))


@given(st.ip_addresses(v=4), st.integers(0, 2**64 - 1))
def test_no_ipv6_address_that_stands_for_an_ipv4_address_is_public(
    address: IPv4Address, rest: int
) -> None:
    number = int(address)
    for standing_for_it in (
        number,  # IPv4-compatible
        (0xFFFF << 32) | number,  # IPv4-mapped
        (0x0064FF9B << 96) | number,  # NAT64
        (0x0064FF9B0001 << 80) | number,  # NAT64 of a local prefix
        (0x2002 << 112) | (number << 80) | rest,  # 6to4
        (0x20010000 << 96) | (number << 64) | rest,  # Teredo, by its server
    ):
        assert not is_public(str(ip_address(IPv6Address(standing_for_it))))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/", "scheme is 'http', expected 'https'. The server's setting"),
        ("ftp://example.org/", "scheme is 'ftp', expected 'https'.$"),
        ("file:///etc/passwd", "scheme is 'file'"),
        ("https:///path", "has no host"),
        ("example.org", "scheme is ''"),
        ("", "scheme is ''"),
        ("https://user@example.org/", "user name or password"),
        ("https://user:secret@example.org/", "user name or password"),
        ("https://example.org:99999/", "port is 99999"),
        ("https://example.org/\n", "not a valid URL"),
        ("https://" + "a" * 3000, "at most 2048"),
        ("https://127.0.0.1/", "not a public address"),
        ("https://0177.0.0.1/", "not a valid URL"),
        ("https://[::1]:8443/", "not a public address"),
        ("https://[::ffff:10.0.0.1]/", "not a public address"),
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
    ],
)
def test_a_url_is_refused(url: str, reason: str) -> None:
    with pytest.raises(UrlRefused, match=reason) as refusal:
        parse_url(url, allow_private=False)
    assert "secret" not in str(refusal.value)


def test_plain_http_and_private_addresses_may_be_allowed() -> None:
    assert parse_url("http://10.0.0.1:8080/hook", allow_private=True).host == "10.0.0.1"
    for url in ("ftp://10.0.0.1/", "http://user:secret@10.0.0.1/", "http://"):
        with pytest.raises(UrlRefused):
            parse_url(url, allow_private=True)


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.1", "0177.1"])
def test_other_ways_to_write_an_address(host: str) -> None:
    """What the system takes for an address is looked at as one."""
    url = parse_url(f"https://{host}/", allow_private=False)
    with pytest.raises(UrlRefused, match="not public"):
        asyncio.run(addresses_of(url, resolve_by_system, allow_private=False))


def test_one_private_address_among_many_is_enough() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("xn--bcher-kva.example", 443)
        return (PUBLIC[0], "10.0.0.1", PUBLIC[1])

    url = parse_url("https://bücher.example/", allow_private=False)
    with pytest.raises(UrlRefused) as refusal:
        asyncio.run(addresses_of(url, resolve, allow_private=False))
    assert "10.0.0.1" not in str(refusal.value), "who asks learns nothing about the network"
    assert asyncio.run(addresses_of(url, resolve, allow_private=True))[1] == "10.0.0.1"


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "nowhere.invalid"])
def test_a_host_that_does_not_exist(host: str) -> None:
    poster = Poster(ServerSettings(webhook_allow_private_addresses=True))
    with pytest.raises(Unreachable, match="cannot be found"):
        post(poster, f"http://{host}/")


def post(poster: Poster, url: str) -> int:
    return asyncio.run(poster.post(url, "evt_1", "{}", (new_secret(),), 1_000_000))


def test_the_address_that_was_looked_at_is_the_one_connected_to(
    receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads somewhere else when it is asked for again."""
    answers = iter([(PUBLIC[0], PUBLIC[4])])
    connected: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers, ("127.0.0.1",))

    async def connect(remote_host: str, remote_port: int, **_: Any) -> Any:
        connected.append((remote_host, remote_port))
        raise OSError("no network here")

    monkeypatch.setattr(anyio, "connect_tcp", connect)
    poster = Poster(ServerSettings(), resolve)
    url = f"https://rebinding.example:{receiver.port}/"
    with pytest.raises(Unreachable):
        post(poster, url)
    assert connected == [(PUBLIC[0], receiver.port), (PUBLIC[4], receiver.port)]
    # The second time it is refused.
    with pytest.raises(UrlRefused):
        post(poster, url)
    assert len(connected) == 2
    assert receiver.requests == []


def test_the_first_address_that_answers_is_used(receiver: Any) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ("127.0.0.2", "::1", "127.0.0.1")

    poster = Poster(ServerSettings(webhook_allow_private_addresses=True), resolve)
    assert post(poster, f"http://hooks.example:{receiver.port}/") == 204
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"


def test_proxies_of_the_environment_are_not_used(
    receiver: Any, make_receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_receiver()
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert httpx.Client()._mounts, "the environment has its effect on others"
    assert post(Poster(ServerSettings(webhook_allow_private_addresses=True)), receiver.url) == 204
    assert (len(receiver.requests), len(proxy.requests)) == (1, 0)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of hooks.example, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        assert os.environ.get("CI") != "true", "openssl is not installed"
        pytest.skip("openssl is not installed")
    pem = tmp_path / "server.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=hooks.example", "-days", "2"),
            *("-addext", "subjectAltName=DNS:hooks.example", "-keyout", pem, "-out", pem),
        ],
        check=True,
        capture_output=True,
    )
    return pem


def test_the_certificate_must_be_the_hosts(certificate: Path, make_receiver: Any) -> None:
    names: list[str | None] = []
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate)
    server_tls.sni_callback = lambda _, name, __: names.append(name)
    receiver = make_receiver(server_tls)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ("127.0.0.1",)

    settings = ServerSettings(webhook_allow_private_addresses=True)
    trusting = Poster(settings, resolve, ssl.create_default_context(cafile=str(certificate)))
    assert post(trusting, f"https://hooks.example:{receiver.port}/x") == 204
    assert names == ["hooks.example"]
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"
    for poster, host in [
        (trusting, "other.example"),
        (trusting, "127.0.0.1"),
        (Poster(settings, resolve), "hooks.example"),
    ]:
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            post(poster, f"https://{host}:{receiver.port}/x")
    assert len(receiver.requests) == 1
