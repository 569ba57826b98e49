"""The page is served to this machine only, to its own pages only, and gives out the listed files only."""

import asyncio
import errno
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import app
from core import lease
from core.casefile import SCHEMA, Case, Manifest
from core.errors import TriageError
from core.files import now
from core.values import FailureReport, Message, ModelSpec
from dashboard import server
from dashboard.app import build, serve
from dashboard.server import BROWSER, MAX_BODY, UPLOAD_SECONDS, browser_of, check_address, is_loopback, read_auth
from dashboard.session import Roots

SECRET = "not for a browser"
ADA = "a" * 32


def test_a_port_that_is_none_is_told_by_the_parser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8000")
    assert app.options().port == 8000
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    with pytest.raises(SystemExit) as ended:
        app.options()
    assert ended.value.code == 2
    assert "argument --port: invalid int value: 'abc'" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_ipv6() -> bool:
    """Return whether this machine listens on its IPv6 address, which containers often lack."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def make_case(root: Path) -> Case:
    prompts = root / "prompts"
    prompts.mkdir()
    for name in ("harmful", "safe"):
        words = ["bread", "cake", "soup", "salad", "pasta", "rice"]
        lines = [f'{{"prompt": "{name} {i} about {word}"}}' for i, word in enumerate(words)]
        (prompts / f"{name}.jsonl").write_text("\n".join(lines))
    report = FailureReport(messages=(Message(role="user", content="hello"),), response="no")
    manifest = Manifest(schema=SCHEMA, id="one", created=now(), model=ModelSpec(path=str(root)), report=report, seed=0)
    case = Case.create(root / "cases" / "one", manifest, prompts)
    (case.path / "report.html").write_text("<p>report</p>")
    (case.path / "worker.log").write_text(SECRET)
    (root / "cases" / "outside.json").write_text(SECRET)
    return case


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    make_case(folder)
    return folder


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    roots = Roots(cases=root / "cases", models=root / "models", demo=root / "demo", prompts=root / "prompts")
    page, address = serve(roots, host="127.0.0.1", port=free_port(), auth=None)
    yield address.rstrip("/")
    page.close()


def get(address: str, *, post: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(
        address, data=post, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode("utf-8", "replace")


def post(address: str, browser: str, **headers: str) -> int:
    """Return the status of what a page of this browser posts."""
    return get(address, post=b"", Cookie=f"{BROWSER}={browser}", **headers)[0]


def test_the_page_names_no_other_host_and_carries_a_policy(url: str) -> None:
    status, headers, text = get(url + "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "Content-Security-Policy" in text
    assert str(Path.home()) not in text


def test_a_foreign_host_name_is_refused(url: str) -> None:
    assert get(url + "/", Host="evil.example")[0] == 400


@pytest.mark.parametrize(
    ("host", "named"), [("::1", "[::1]"), ("[::1]", "[::1]"), ("0:0:0:0:0:0:0:1", "[::1]"), ("127.0.0.2", "127.0.0.2")]
)
def test_the_page_answers_at_the_address_it_was_given(root: Path, host: str, named: str) -> None:
    """And at the two common names of this machine, but at no foreign one."""
    if ":" in host and not has_ipv6():
        pytest.skip("there is no IPv6")
    roots = Roots(cases=root / "cases", models=root / "models", demo=root / "demo", prompts=root / "prompts")
    page, address = serve(roots, host=host, port=free_port(), auth=None)
    try:
        assert address.startswith(f"http://{named}:")
        assert get(address)[0] == 200
        assert get(address, Host="localhost")[0] == 200
        assert get(address, Host="evil.example")[0] == 400
        assert get(address, Host="[::2]")[0] == 400
    finally:
        page.close()


def test_a_request_from_another_site_is_refused(url: str) -> None:
    assert get(url + "/alive", Origin="http://evil.example")[0] == 403
    assert get(url + "/alive", Origin="null")[0] == 403
    assert get(url + "/alive", Origin=url)[0] == 200


def test_a_report_is_shown_without_script(url: str) -> None:
    status, headers, text = get(url + "/case/one/report.html")
    assert (status, text) == (200, "<p>report</p>")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "sandbox" in headers["content-security-policy"]
    assert get(url + "/case/one/report.html?download=1")[1]["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "/case/one/worker.log",
        "/case/one/case.json",
        "/case/one/../outside.json",
        "/case/one/%2e%2e/outside.json",
        "/case/..%2fcases%2fone/report.html",
        "/case/two/report.html",
        "/case/one/",
        "/case/one/triage.json",
        "/vendor/../../etc/passwd",
        "/gradio_api/file=/etc/passwd",
    ],
)
def test_nothing_else_is_given_out(url: str, path: str) -> None:
    status, _, text = get(url + path)
    assert status in (403, 404)
    assert SECRET not in text
    assert "root:" not in text


def test_a_page_that_is_left_gives_back_its_own_lease_only(url: str, root: Path) -> None:
    case = Case(root / "cases" / "one")
    held = lease.take(case, "Ada", ADA)
    where = url + "/leave/one"
    assert post(where, "b" * 32) == 204
    assert post(where, "\xff" * 20) == 204
    assert post(where, ADA * 20) == 204
    assert post(where, ADA, Origin="http://evil.example") == 403
    assert post(url + "/leave/..%2f..", ADA) in (204, 404)
    assert get(where)[0] in (404, 405)
    assert lease.current(case) == held
    assert post(where, ADA) == 204
    assert lease.current(case) is None


def test_a_browser_without_an_id_gives_no_lease_back(url: str, root: Path) -> None:
    case = Case(root / "cases" / "one")
    held = lease.take(case, "Ada", "")
    assert get(url + "/leave/one", post=b"")[0] == 204
    assert lease.current(case) == held
    lease.release(case, "")


def test_the_page_gives_a_new_browser_an_id_that_no_script_reads(url: str) -> None:
    given = get(url + "/")[1]["set-cookie"]
    name, _, rest = given.partition("=")
    assert name == BROWSER
    assert browser_of({name: rest[:32]}) == rest[:32]
    assert "HttpOnly" in rest
    assert "SameSite=Strict" in rest
    assert "set-cookie" not in get(url + "/", Cookie=f"{name}={rest[:32]}")[1]
    assert "set-cookie" in get(url + "/", Cookie=f"{name}=../../x")[1]
    assert get(url + "/")[1]["set-cookie"] != given


def test_a_page_that_leaves_a_case_that_cannot_be_written_is_no_fault_of_ours(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(lease, "FileLock", refuse)
    assert post(url + "/leave/one", ADA) == 204


def test_an_open_page_renews_its_own_lease_only(url: str, root: Path) -> None:
    case = Case(root / "cases" / "one")
    lease.take(case, "Ada", ADA)
    aged = lease.Lease(analyst="Ada", holder=ADA, since=now(), seen=earlier(lease.STALE_SECONDS - 30))
    case.write(lease.FILE, aged)
    where = url + "/keep/one"
    assert post(where, "b" * 32) == 204
    assert post(where, ADA, Origin="http://evil.example") == 403
    assert get(where)[0] in (404, 405)
    assert lease.current(case) == aged
    assert post(where, ADA, Origin=url) == 204
    renewed = lease.current(case)
    assert renewed is not None
    assert renewed.seen > aged.seen
    lease.release(case, ADA)


def earlier(seconds: float) -> str:
    """Return the time so long ago."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def test_a_page_process_that_was_started_anew_answers_under_another_name(url: str) -> None:
    names = {get(url + "/alive")[2] for _ in range(2)}
    assert len(names) == 1
    anew = asyncio.run(server._alive_route()(None))  # type: ignore[arg-type]
    assert names != {bytes(anew.body).decode()}


def raw(url: str, head: str, body: bytes) -> bytes:
    """Return the first line that a hand-written request is answered with."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        with suppress(OSError):  # who is refused early may be hung up on
            link.sendall(f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {host}:{port}\r\n{head}\r\n".encode() + body)
        with suppress(OSError):
            return link.makefile("rb").readline()
    return b""


def test_a_body_without_end_is_not_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that says how large it is nor one that does not; a smaller one goes through to gradio, which knows better."""
    kind = "Content-Type: application/json\r\nConnection: close\r\n"
    assert b" 413 " in raw(url, f"{kind}Content-Length: {MAX_BODY + 1}\r\n", b"")
    monkeypatch.setattr(server, "MAX_BODY", 1000)
    chunk = b"1f4\r\n" + b" " * 500 + b"\r\n"
    assert b" 413 " in raw(url, f"{kind}Transfer-Encoding: chunked\r\n", 3 * chunk + b"0\r\n\r\n")
    assert b" 422 " in raw(url, f"{kind}Transfer-Encoding: chunked\r\n", chunk + b"2\r\n{}\r\n0\r\n\r\n")


def test_uploads_are_deleted_after_a_while(root: Path) -> None:
    roots = Roots(cases=root / "cases", models=root / "models", demo=root / "demo", prompts=root / "prompts")
    assert build(roots).delete_cache == (UPLOAD_SECONDS, UPLOAD_SECONDS)


def test_gradio_gives_no_list_of_calls(url: str) -> None:
    info = get(url + "/gradio_api/info")[2]
    assert '"named_endpoints":{}' in info.replace(" ", "")
    assert get(url + "/docs")[0] == 404


def test_only_this_machine_without_a_password(tmp_path: Path) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(TriageError, match="--auth-file"):
        check_address("0.0.0.0", None)
    secrets = tmp_path / "auth"
    secrets.write_text("ann:long password:with colon\n\n")
    assert read_auth(secrets) == [("ann", "long password:with colon")]
    check_address("0.0.0.0", read_auth(secrets))
    secrets.write_text("nobody\n")
    with pytest.raises(TriageError, match="name:password"):
        read_auth(secrets)


def test_with_passwords_a_report_needs_a_sign_in(tmp_path: Path) -> None:
    make_case(tmp_path)
    roots = Roots(
        cases=tmp_path / "cases", models=tmp_path / "models", demo=tmp_path / "demo", prompts=tmp_path / "prompts"
    )
    page, address = serve(roots, host="127.0.0.1", port=free_port(), auth=[("ann", "pw")])
    try:
        assert get(address + "case/one/report.html")[0] == 401
        assert post(address + "keep/one", ADA) == 401
    finally:
        page.close()
