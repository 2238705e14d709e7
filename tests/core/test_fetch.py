"""A URL is opened only where anybody may go, and brings little, soon, or an error."""

from __future__ import annotations

import asyncio
import gzip
import io
import ipaddress
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import anyio
import pytest
from fetch_corpus import (
    ALLOWED_URLS,
    FORBIDDEN_ADDRESSES,
    FORBIDDEN_RANGES,
    FORBIDDEN_URLS,
    NAMES,
    PUBLIC_ADDRESSES,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drivers import Driver
from fault_server import Behaviour, Connection, Received, answer, drip, hang, raw
from internet import Internet, Witness, picture, redirect, resolve
from phospho_multimodal import AsyncPhosphoClient, ImageError, PhosphoClient
from phospho_multimodal.images import safe_fetch as fetch
from phospho_multimodal.images import url_policy as urls
from phospho_multimodal.images.safe_fetch import Fetcher, fetch_image
from phospho_multimodal.images.source import image_source
from phospho_multimodal.images.url_policy import Place, is_public
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from pictures import draw, encoded

PICTURE = encoded(draw(), "PNG")
URL = "http://pictures.example/a.png?token=fetch-secret"
RANGES = [ipaddress.ip_network(network) for network in FORBIDDEN_RANGES]

Online = Callable[..., Internet]


@pytest.fixture
def online(lab, monkeypatch) -> Online:
    """Starts a server that is the whole internet to every fetch of the test."""

    def start(*script: Behaviour, **options) -> Internet:
        return Internet(lab(*script), **options).install(monkeypatch)

    return start


@pytest.fixture
def hurried(monkeypatch) -> None:
    """Let a fetch take half a second instead of twenty."""
    monkeypatch.setattr(fetch, "MAX_FETCH_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "_GLANCE", 0.05)


@pytest.fixture
def witness(monkeypatch) -> Iterator[Witness]:
    """Listens where `http://127.0.0.1/` would lead if it were opened."""
    listener = Witness()
    monkeypatch.setitem(urls._PORTS, "http", listener.port)
    monkeypatch.setitem(urls._PORTS, "https", listener.port)
    yield listener
    listener.close()


def forbidden(address: str) -> bool:
    """Judge by the corpus, not by the code under test."""
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in RANGES)


def table(rows: dict[str, str]) -> list:
    return [pytest.param(value, id=name) for name, value in rows.items()]


def outcome(url: str) -> bytes | str:
    """Fetch, and take an error's words for an outcome."""
    try:
        return fetch_image(url)
    except ImageError as refused:
        return str(refused)


class TestNothingForbiddenIsDialled:
    @pytest.mark.parametrize("url", table(FORBIDDEN_URLS))
    def test_a_forbidden_url_opens_no_connection(self, url, online):
        internet = online(picture(PICTURE))

        with pytest.raises(ImageError) as caught:
            fetch_image(url)

        assert internet.dialled == []
        assert "a.png" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "instead of its URL" in str(caught.value)

    def test_a_socket_on_the_loopback_sees_nobody_come(self, witness):
        fetcher = Fetcher(resolve=resolve)
        for url in FORBIDDEN_URLS.values():
            with pytest.raises(ImageError):
                fetcher.fetch(url, deadline=None, given_up=bool)
        assert witness.came == 0

    def test_that_socket_would_see_them_come(self, witness, monkeypatch):
        monkeypatch.setattr(fetch, "is_public", bool)
        with pytest.raises(ImageError, match="was cut off"):
            fetch_image("http://127.0.0.1/")
        assert witness.came == 1

    def test_the_systems_resolver_is_not_trusted_either(self, witness):
        with pytest.raises(ImageError, match="not public"):
            fetch_image("http://localhost/a.png")
        assert witness.came == 0

    @pytest.mark.parametrize(
        "location",
        table({name: url for name, url in FORBIDDEN_URLS.items() if url.isprintable() and url}),
    )
    def test_a_redirect_there_opens_no_connection_there(self, location, online):
        internet = online(redirect(location), picture(PICTURE))

        # Without two slashes it is a path, which leads to the same host once more.
        came = outcome(URL)

        assert internet.addresses in (["93.184.216.34"], ["93.184.216.34"] * 2)
        assert came == PICTURE or "cannot be fetched" in str(came)
        assert "fetch-secret" not in str(came)

    @pytest.mark.parametrize("location", ["", "/a b.png", "http://[", "ht!tp://other.example/"])
    def test_a_redirect_to_nonsense_leads_nowhere_else(self, location, online):
        internet = online(redirect(location), picture(b"none"))
        with pytest.raises(ImageError):
            fetch_image(URL)
        assert set(internet.addresses) == {"93.184.216.34"}

    def test_a_redirect_cannot_hide_bytes_that_are_no_text(self, online):
        online(raw(b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\nContent-Length: 0\r\n\r\n"))
        with pytest.raises(ImageError, match="not a URL"):
            fetch_image(URL)

    def test_a_name_is_looked_up_once_and_what_was_checked_is_dialled(self, online):
        internet = online(picture(PICTURE))
        answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
        fetcher = Fetcher(resolve=lambda host, port: next(answers), network=internet)

        fetched = fetcher.fetch("http://rebinds.example/", deadline=None, given_up=bool)

        assert fetched == PICTURE
        assert internet.addresses == ["93.184.216.34"]
        assert next(answers) == ["127.0.0.1"]

    def test_a_redirect_to_the_same_name_is_checked_anew(self, online):
        internet = online(redirect("/b.png"), picture(PICTURE))
        answers = iter([["93.184.216.34"], ["127.0.0.1"]])
        fetcher = Fetcher(resolve=lambda host, port: next(answers), network=internet)

        with pytest.raises(ImageError, match="not public"):
            fetcher.fetch("http://rebinds.example/", deadline=None, given_up=bool)

        assert internet.addresses == ["93.184.216.34"]

    def test_a_name_that_leads_inside_is_told_like_one_that_leads_nowhere(self, online):
        online()
        told = set()
        for host in ("local.example", "nothing.example"):
            with pytest.raises(ImageError) as caught:
                fetch_image(f"http://{host}/")
            told.add(str(caught.value).replace(host, "it"))
        assert len(told) == 1

    def test_no_proxy_of_the_environment_is_asked(self, online, witness, monkeypatch):
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{witness.port}")
        internet = online(picture(PICTURE))
        assert fetch_image("http://pictures.example/") == PICTURE
        assert internet.addresses == ["93.184.216.34"]
        assert witness.came == 0


class TestAddresses:
    @pytest.mark.parametrize("address", table(FORBIDDEN_ADDRESSES))
    def test_a_special_address_is_not_public(self, address):
        assert not is_public(address)

    @pytest.mark.parametrize("network", FORBIDDEN_RANGES)
    def test_a_special_range_is_not_public_from_end_to_end(self, network):
        block = ipaddress.ip_network(network)
        assert not is_public(str(block[0]))
        assert not is_public(str(block[-1]))

    @pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
    def test_a_public_address_is(self, address):
        assert is_public(address)

    def test_an_address_with_a_zone_is_not(self):
        assert not is_public("2606:4700::1%1")

    @given(st.ip_addresses())
    @settings(max_examples=500)
    def test_none_is_public_that_python_or_the_corpus_calls_special(self, address):
        if not address.is_global or address.is_multicast or forbidden(str(address)):
            assert not is_public(str(address))


def spellings(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[str]:
    """Write an address in all the ways in which some parser takes it."""
    number = int(address)
    if address.version == 6:
        tail = ipaddress.IPv4Address(number & 0xFFFFFFFF)
        head = address.exploded.rsplit(":", 2)[0]
        forms = [address.compressed, address.exploded, f"{head}:{tail}", f"{address}%25lo"]
        return [f"[{form}]" for form in forms] + [address.compressed]
    parts = [number >> shift & 255 for shift in (24, 16, 8, 0)]
    a, b, c, d = parts
    dotted = [
        str(address),
        f"{a:o}".zfill(4) + f".{b}.{c}.{d}",
        ".".join(f"0{part:o}" for part in parts),
        ".".join(f"{part:#x}" for part in parts),
        ".".join(f"{part:03}" for part in parts),
        f"{a}.{b}.{(c << 8) + d}",
        f"{a}.{(b << 16) + (c << 8) + d}",
        f"{a:#x}.{(b << 16) + (c << 8) + d:#o}".replace("0o", "0"),
    ]
    whole = [str(number), hex(number), f"0{number:o}", str(number + (1 << 32))]
    other_dots = [str(address).replace(".", dot) for dot in "\u3002\uff0e\uff61"]
    other_digits = [str(address).translate({48 + i: 0xFF10 + i for i in range(10)})]
    mapped = [f"[::ffff:{address}]", f"[64:ff9b::{address}]", f"[::{address}]"]
    forms = dotted + whole + other_dots + other_digits + mapped
    return forms + [f"{form}." for form in dotted + whole]


class TestReadingUrls:
    @given(
        st.one_of(
            st.ip_addresses(),
            st.sampled_from(
                [ipaddress.ip_address(address) for address in FORBIDDEN_ADDRESSES.values()]
            ),
        ),
        st.data(),
    )
    @settings(max_examples=300, deadline=None)
    def test_however_an_address_is_written_what_is_dialled_is_public(self, address, data):
        internet = Internet()
        host = data.draw(st.sampled_from(spellings(address)))
        with pytest.raises(ImageError):
            Fetcher(resolve=resolve, network=internet).fetch(
                f"http://{host}/", deadline=None, given_up=bool
            )
        for dialled in internet.addresses:
            assert not forbidden(dialled)
            assert ipaddress.ip_address(dialled).is_global

    @given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["", "http://"]))
    @settings(max_examples=500)
    def test_any_text_is_a_place_or_an_image_error(self, text, scheme):
        try:
            place = Place.of(scheme + text)
        except ImageError:
            return
        assert place.port in (80, 443)
        assert place.target.startswith("/")
        assert (place.host + place.target).isascii()
        assert (place.host + place.target).isprintable()

    @pytest.mark.parametrize(
        ("url", "host"), [pytest.param(*row, id=name) for name, row in ALLOWED_URLS.items()]
    )
    def test_a_public_url_is_asked_by_its_name(self, url, host, online):
        internet = online(picture(PICTURE))

        assert fetch_image(url) == PICTURE

        (request,) = internet.requests
        assert request.headers["host"] == host
        assert request.path.startswith("/")
        assert not any(forbidden(address) for address in internet.addresses)

    def test_the_query_is_sent_as_it_is(self, online):
        internet = online(picture(PICTURE))
        fetch_image("http://pictures.example/a%20b,c.png?w=640,h=480&sig=a%2Bb/=='#top")
        assert internet.requests[0].path == "/a%20b,c.png?w=640,h=480&sig=a%2Bb/=='"

    def test_a_name_in_other_letters_is_looked_up_in_ascii(self, online):
        internet = online(picture(PICTURE))
        asked = []

        def look_up(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return ["93.184.216.34"]

        fetcher = Fetcher(resolve=look_up, network=internet)
        fetcher.fetch("http://bücher.example/a.png", deadline=None, given_up=bool)
        assert asked == [("xn--bcher-kva.example", 80)]

    def test_tls_is_spoken_in_the_hosts_name_with_the_address_that_was_checked(self, online):
        internet = online(picture(PICTURE))

        assert fetch_image("https://pictures.example/a.png") == PICTURE

        ((name, context),) = internet.handshakes
        assert (name, internet.dialled) == ("pictures.example", [("93.184.216.34", 443)])
        assert context.check_hostname
        assert internet.requests[0].headers["host"] == "pictures.example"


class TestRedirects:
    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize(
        ("location", "host", "path"),
        [
            pytest.param("/b.png", "pictures.example", "/b.png", id="absolute path"),
            pytest.param("b.png", "pictures.example", "/x/b.png", id="relative path"),
            pytest.param("../b.png", "pictures.example", "/b.png", id="up"),
            pytest.param("?b", "pictures.example", "/x/a.png?b", id="query"),
            pytest.param("//other.example/b", "other.example", "/b", id="protocol-relative"),
            pytest.param("http://other.example", "other.example", "/", id="another host"),
        ],
    )
    def test_a_redirect_is_followed(self, location, host, path, code, online):
        internet = online(redirect(location, code), picture(PICTURE))

        assert fetch_image("http://pictures.example/x/a.png?secret") == PICTURE

        _, second = internet.requests
        assert (second.headers["host"], second.path) == (host, path)
        assert internet.addresses == [NAMES["pictures.example"][0], NAMES[host][0]]
        assert not {"cookie", "referer"} & set(second.headers)

    def test_three_redirects_are_followed_and_a_fourth_is_not(self, online):
        steps = [redirect(f"http://other.example/{step}") for step in range(4)]
        online(*steps[:3], picture(PICTURE))
        assert fetch_image(URL) == PICTURE

        internet = online(*steps, picture(PICTURE))
        with pytest.raises(ImageError, match="more than 3 redirects"):
            fetch_image(URL)
        assert len(internet.requests) == 4

    def test_a_loop_of_redirects_ends(self, online):
        internet = online(redirect(URL))
        with pytest.raises(ImageError, match="more than 3 redirects"):
            fetch_image(URL)
        assert len(internet.requests) == 4

    def test_a_redirect_gives_up_no_https(self, online):
        internet = online(redirect("http://pictures.example/a.png"))
        with pytest.raises(ImageError, match="from https to plain http"):
            fetch_image("https://pictures.example/a.png")
        assert len(internet.requests) == 1

    def test_a_redirect_to_https_is_followed(self, online):
        internet = online(redirect("https://pictures.example/a.png"), picture(PICTURE))
        assert fetch_image(URL) == PICTURE
        assert [port for _, port in internet.dialled] == [80, 443]


def endless(connection: Connection, request: Received) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PICTURE)
    while True:
        connection.send(b"x" * 100_000)


def endless_hints(connection: Connection, request: Received) -> None:
    while not connection.server.stopping.wait(0.01):
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def large(connection: Connection, request: Received) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n")
    connection.send(PICTURE.ljust(40_000_000, b"x"))


class TestLimits:
    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(endless, id="an endless body"),
            pytest.param(large, id="40 MB"),
            pytest.param(
                raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n"), id="a boast"
            ),
            pytest.param(
                picture(PICTURE.ljust(fetch.MAX_FETCH_BYTES + 1, b"x")), id="a byte too many"
            ),
        ],
    )
    def test_more_than_20_mb_are_not_taken(self, behaviour, online):
        online(behaviour)
        with pytest.raises(ImageError, match="more than 20,971,520 bytes"):
            fetch_image(URL)

    def test_20_mb_are_taken(self, online):
        file = PICTURE.ljust(fetch.MAX_FETCH_BYTES, b"x")
        online(picture(file))
        assert fetch_image(URL) == file

    @pytest.mark.usefixtures("hurried")
    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(hang(), id="silence"),
            pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 400), id="a dripping head"),
            pytest.param(
                drip(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + b"z" * 400),
                id="a dripping body",
            ),
            pytest.param(endless_hints, id="endless hints"),
        ],
    )
    def test_a_slow_server_is_left(self, behaviour, online):
        online(behaviour)
        begun = time.monotonic()
        with pytest.raises(ImageError, match=r"longer than 0\.5 s"):
            fetch_image(URL)
        assert time.monotonic() - begun < 8

    @pytest.mark.usefixtures("hurried")
    def test_redirects_share_the_time(self, online):
        def late(connection: Connection, request: Received) -> None:
            time.sleep(0.3)
            redirect("/next")(connection, request)

        internet = online(late)
        with pytest.raises(ImageError, match="longer than"):
            fetch_image(URL)
        assert len(internet.requests) == 2

    @pytest.mark.usefixtures("hurried")
    def test_a_slow_resolver_is_left(self, online):
        internet = online()
        done = threading.Event()

        def look_up(host: str, port: int) -> list[str]:
            done.wait(20)
            return ["93.184.216.34"]

        begun = time.monotonic()
        with pytest.raises(ImageError, match="longer than"):
            Fetcher(resolve=look_up, network=internet).fetch(URL, deadline=None, given_up=bool)
        assert time.monotonic() - begun < 8
        assert internet.dialled == []
        done.set()

    def test_who_gives_up_does_not_wait(self, online):
        online(hang())
        begun = time.monotonic()
        with pytest.raises(ImageError):
            fetch_image(URL, given_up=lambda: time.monotonic() > begun + 0.1)
        assert time.monotonic() - begun < 8

    def test_a_gzip_bomb_is_not_unpacked(self, online):
        bomb = gzip.compress(PICTURE + b"\0" * 50_000_000)
        internet = online(picture(bomb, "Content-Encoding: gzip"))
        with pytest.raises(ImageError, match="compressed"):
            fetch_image(URL)
        assert internet.requests[0].headers["accept-encoding"] == "identity"

    def test_a_length_that_is_too_small_cuts_the_file(self, online):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PICTURE) - 20}\r\n\r\n".encode()
        online(raw(head + PICTURE))
        assert fetch_image(URL) == PICTURE[:-20]

    @pytest.mark.parametrize(
        "reply",
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + PICTURE, id="cut"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="below zero"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two"
            ),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", id="a huge head"
            ),
            pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
            pytest.param(b"", id="nothing"),
        ],
    )
    def test_an_answer_that_is_none_is_an_error(self, reply, online):
        online(raw(reply))
        with pytest.raises(ImageError, match="was cut off, or is not HTTP"):
            fetch_image(URL)

    @pytest.mark.parametrize("code", [201, 204, 206, 300, 304, 401, 403, 404, 410, 429, 500, 503])
    def test_any_status_but_200_is_an_error_that_tells_it(self, code, online):
        online(raw(f"HTTP/1.1 {code} No\r\nContent-Length: 0\r\n\r\n".encode()))
        with pytest.raises(ImageError, match=f"the response has status {code}"):
            fetch_image(URL)

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            pytest.param(b"<!doctype html><title>Log in</title>", "a web page", id="HTML"),
            pytest.param(b"\n <!-- hi -->\n<HTML lang=en>", "a web page", id="older HTML"),
            pytest.param(b'{"error": "expired"}', "text", id="JSON"),
            pytest.param(b"Not found", "text", id="text"),
            pytest.param(b"\x80\x81 nothing", "of an unknown type", id="bytes"),
            pytest.param(b"", "empty", id="nothing"),
        ],
    )
    def test_what_is_no_image_is_named(self, body, name, online):
        online(picture(body, "Content-Type: image/png"))
        with pytest.raises(ImageError, match=f"the response is {name}.*, not an image"):
            fetch_image(URL)

    def test_the_next_address_is_dialled_when_one_does_not_answer(self, online):
        internet = online(picture(PICTURE), refusing=["2606:4700::6810:84e5"])
        assert fetch_image("http://both.example/") == PICTURE
        assert internet.addresses == ["2606:4700::6810:84e5", "93.184.216.34"]

    def test_a_host_that_does_not_answer_is_told(self, online):
        online(refusing=["93.184.216.34"])
        with pytest.raises(ImageError, match="nobody there"):
            fetch_image(URL)

    def test_a_host_that_is_silent_is_told(self, online):
        online(silent=["93.184.216.34"])
        with pytest.raises(ImageError, match="no connection in time"):
            fetch_image(URL)


class TestErrors:
    @pytest.mark.parametrize(
        "behaviour",
        [picture(b"<html>"), hang(), redirect("http://127.0.0.1/fetch-secret"), raw(b"")],
    )
    @pytest.mark.usefixtures("hurried")
    def test_an_error_tells_the_origin_and_nothing_else_of_the_url(self, behaviour, online):
        online(behaviour)
        with pytest.raises(ImageError) as caught:
            fetch_image(URL)
        told = [
            str(caught.value),
            repr(caught.value),
            "".join(traceback.format_exception(caught.value)),
            pickle.dumps(caught.value).decode("latin-1"),
        ]
        assert not any("fetch-secret" in text for text in told)
        assert "http://" in told[0]

    def test_a_place_keeps_its_path_to_itself(self):
        assert "fetch-secret" not in repr(Place.of(URL))


class TestTheClients:
    @pytest.mark.parametrize("prepare", [True, False])
    def test_a_url_becomes_an_image_like_any_other(self, prepare, driver: Driver, lab, online):
        endpoint = lab(answer("A house."))
        sideways = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        draw(60, 40).save(sideways, "JPEG", exif=exif)
        internet = online(picture(sideways.getvalue()))

        prediction = driver.describe(
            URL,
            base_url=endpoint.base_url,
            api_key="the-key",
            url_mode="fetch",
            prepare=prepare,
            default_headers={"x-team": "vision"},
        )

        sent = Image.open(io.BytesIO(endpoint.requests[0].image))
        assert sent.size == ((40, 60) if prepare else (60, 40))
        (image,) = prediction.metadata["images"]
        assert (image["source"], image["origin"]) == ("url", "http://pictures.example")
        assert image["width"] == sent.width
        assert "fetch-secret" not in str(prediction.metadata)
        assert set(internet.requests[0].headers) == {
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
            "connection",
        }

    def test_without_fetch_a_url_is_never_opened(self, driver: Driver, lab, online):
        endpoint = lab(answer("A house."))
        internet = online(picture(PICTURE))
        prediction = driver.describe(URL, base_url=endpoint.base_url)
        assert endpoint.requests[0].item["image_url"] == URL
        assert prediction.metadata["images"] == [
            {"source": "url", "origin": "http://pictures.example"}
        ]
        assert internet.dialled == []

    def test_what_cannot_be_fetched_costs_nothing(self, driver: Driver, lab, online):
        endpoint = lab(answer())
        internet = online(picture(PICTURE))
        with pytest.raises(ImageError, match="not public") as caught:
            driver.describe(
                "http://metadata.example/x?fetch-secret",
                base_url=endpoint.base_url,
                url_mode="fetch",
            )
        assert caught.value.attempts == 0
        assert endpoint.requests == internet.dialled == []

    def test_the_deadline_counts_for_the_fetch_too(self, driver: Driver, lab, online):
        endpoint = lab(answer())
        online(hang())
        begun = time.monotonic()
        with pytest.raises(ImageError, match="longer than"):
            driver.describe(URL, base_url=endpoint.base_url, url_mode="fetch", deadline=0.4)
        assert time.monotonic() - begun < 8
        assert endpoint.requests == []

    @pytest.mark.parametrize("policy", ["montage", "each"])
    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_several_are_fetched_at_once_beside_those_with_bytes(self, policy, kind, lab, online):
        endpoint = lab(answer("Yes."))
        gate = threading.Barrier(2)

        def behave(connection: Connection, request: Received) -> None:
            gate.wait(5)  # passes only if two come at once
            picture(PICTURE)(connection, request)

        online(behave)
        prediction = converse(
            kind, policy, URL, PICTURE, URL, base_url=endpoint.base_url, url_mode="fetch"
        )
        origins = [image.get("origin") for image in prediction.metadata["images"]]
        assert origins == ["http://pictures.example", None, "http://pictures.example"]
        assert len(endpoint.requests) == (1 if policy == "montage" else 3)

    @pytest.mark.parametrize("policy", ["montage", "each"])
    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_one_that_cannot_be_fetched_is_told_before_any_is_paid(self, policy, kind, lab, online):
        endpoint = lab(answer("Yes."))
        online(picture(PICTURE))
        with pytest.raises(ImageError, match=r"http://local\.example"):
            converse(
                kind,
                policy,
                URL,
                "http://local.example/",
                base_url=endpoint.base_url,
                url_mode="fetch",
            )
        assert endpoint.requests == []

    @pytest.mark.parametrize("how", ["task", "scope"])
    async def test_a_cancelled_task_leaves_no_fetch_behind(self, how, lab, online):
        endpoint = lab(answer())
        internet = online(drip(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * 1000))
        begun = time.monotonic()
        async with AsyncPhosphoClient(base_url=endpoint.base_url, url_mode="fetch") as client:
            if how == "task":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.describe(URL, "?"), 0.3)
            else:
                with anyio.move_on_after(0.3):
                    await client.describe(URL, "?")
        assert time.monotonic() - begun < 8
        await asyncio.to_thread(internet.server.wait_until_idle)
        assert time.monotonic() - begun < 10
        assert endpoint.requests == []


def converse(kind: str, multi_image: str, *images: object, **options):
    """Ask about several images with one of the clients."""
    turns = [Turn("user", ("Same?", *(image_source(image) for image in images)))]
    policy = ImagePolicy(multi_image=multi_image)  # type: ignore[arg-type]
    if kind == "sync":
        with PhosphoClient(**options) as client:
            return client.converse(turns, policy)

    async def ask():
        async with AsyncPhosphoClient(**options) as client:
            return await client.converse(turns, policy)

    return asyncio.run(ask())


def test_the_corpus_is_about_sockets_that_could_be_reached():
    """The odd spellings mean the loopback to the system's own resolver, or the corpus is idle."""
    meant = [
        host
        for host in ("127.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.01")
        if socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)[0][4][0] == "127.0.0.1"
    ]
    assert len(meant) == 5
