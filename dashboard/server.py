"""How the page is served: on this machine only, to this page only, with no request to any other host.

A content security policy, a check of the Host and Origin headers (against DNS rebinding and foreign pages), plotly.js
from the installed wheel, and the files of a case that may be downloaded. Does not know what the page looks like.
"""

import ipaddress
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read once, when gradio is imported
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # what it remembers of past calls; a tick is one
os.environ["HF_HUB_OFFLINE"] = "1"

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from core import lease
from core.casefile import Case
from core.errors import TriageError
from dashboard.session import Roots, find_case

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
"""Nothing is loaded from, or sent to, another host. Gradio itself needs inline and evaluated scripts."""
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups allow-downloads"
"""For files of a case: no script at all."""
HEADERS = {
    b"content-security-policy": (POLICY + "; frame-ancestors 'none'").encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
"""On every answer that has not its own."""
FETCHED = re.compile(r"/+gradio_api/+(proxy=|file=\s*[A-Za-z][A-Za-z0-9+.-]*:/|file=//)|.*://")
"""Paths that gradio answers with what it fetches from the address in them."""
DOWNLOADS = {
    "report.html": "text/html",
    "triage.json": "application/json",
    "verification.json": "application/json",
    "report.json": "application/json",
    "report.sarif": "application/sarif+json",
    "report-redacted.html": "text/html",
    "report-redacted.json": "application/json",
    "manifest.json": "application/json",
    "confirmation.json": "application/json",
    "containment.json": "application/json",
    "audit.jsonl": "application/x-ndjson",
    "events.jsonl": "application/x-ndjson",
    "export/adapter/adapter_model.safetensors": "application/octet-stream",
    "export/adapter/adapter_config.json": "application/json",
    "export/adapter/README.md": "text/plain",
}
"""The files of a case that can be downloaded, with their types; every other path is 404."""
BROWSER = "patcher-browser"
"""The cookie with the random id of a browser, which tells two analysts' pages apart (core/lease.py). It comes with the page, so that the
first click has it, whenever that comes."""
BROWSER_ID = re.compile(r"[0-9a-f]{32}")
BROWSER_SECONDS = 31_536_000
"""How long a browser keeps its id. Source: unverified choice (a year)."""
MAX_UPLOAD = "8mb"
"""Gradio refuses larger uploads. Source: unverified choice (a report of 5 MB must reach the intake check)."""
TOO_LARGE = "This is more than the page takes at once; give a smaller report."
MAX_BODY = 2**24
"""Bytes of a request's body. Source: unverified choice (twice an upload: a pasted report is sent as JSON, with its escapes)."""
UPLOAD_SECONDS = 3_600
"""Age at which an uploaded file is deleted, and how often that is looked at. A case keeps its own copy. Source: unverified choice."""
MAX_SESSIONS = 24
"""Browser tabs whose state is held. Gradio keeps what it drew for each, some megabytes, also after a tab is closed; over this number
the tab that was longest silent is forgotten, and an open one is never silent for long. Source: tests/bench/LOG.md, soak."""


def browser_of(cookies: Mapping[str, str]) -> str:
    """Return the id of the browser that sent these cookies; "" for one that keeps none or sends what was not given to it."""
    found = cookies.get(BROWSER, "")
    return found if BROWSER_ID.fullmatch(found) else ""


def new_cookie() -> bytes:
    """Return the header that gives a browser an id of its own."""
    return f"{BROWSER}={uuid.uuid4().hex}; Path=/; Max-Age={BROWSER_SECONDS}; HttpOnly; SameSite=Strict".encode()


def is_loopback(host: str) -> bool:
    """Return whether `host` names this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def in_address(host: str) -> str:
    """Return `host` as a browser writes it in the page's address: an IPv6 address short and in brackets."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    return f"[{address}]" if address.version == 6 else str(address)


def read_auth(path: Path | None) -> list[tuple[str, str]] | None:
    """Return the `name:password` lines of a file, or None without one. Raises: TriageError for a file without any."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TriageError(f"The password file {path} cannot be read ({error}).") from error
    pairs = [(name, password) for name, _, password in (line.partition(":") for line in lines) if name and password]
    if not pairs:
        raise TriageError(f"{path} holds no line name:password; write one for each analyst.")
    return pairs


def check_address(host: str, auth: object) -> None:
    """Raise TriageError when the page would be open to other machines without a password."""
    if not is_loopback(host) and not auth:
        raise TriageError(
            f"{host} is open to other machines; give --auth-file FILE (name:password lines) or use 127.0.0.1."
        )


class Guard:
    """ASGI middleware: adds the security headers, gives a new browser its id, refuses requests that another site's page makes, and bodies
    without end."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to another site's page and to what gradio would fetch from elsewhere, 413 to what is too large; add the headers."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        new = scope["type"] == "http" and scope["path"] == "/" and not browser_of(Request(scope).cookies)
        given = [(b"set-cookie", new_cookie())] if new else []

        async def add_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = ((k, v) for k, v in HEADERS.items() if k not in present)
                message["headers"] = [*message["headers"], *added, *given]
            await send(message)

        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        foreign = origin is not None and origin.split(b"://")[-1] != headers.get(b"host")
        if scope["type"] != "http" or foreign or FETCHED.match(scope["path"]):
            await PlainTextResponse(
                "This request comes from, or leads to, another site; open the page at the address that it was started with.",
                403,
            )(scope, receive, add_headers)
            return
        if int(headers.get(b"content-length", b"0")) > MAX_BODY:  # the server itself refuses one that is no number
            await PlainTextResponse(TOO_LARGE, 413)(scope, receive, add_headers)
            return
        n_bytes = 0

        async def count() -> MutableMapping[str, Any]:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, count, add_headers)


def _signed_in(request: Request) -> bool:
    """Return whether the request may read files: always without passwords, else only with a valid session cookie."""
    app = request.app
    if app.auth is None and app.auth_dependency is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name)) is not None for name in names)


def _file_route(roots: Roots) -> Callable[[Request], Awaitable[Response]]:
    async def case_file(request: Request) -> Response:
        """Return one of the `DOWNLOADS` of a case; 404 for anything else."""
        name = request.path_params["name"]
        if not _signed_in(request):
            return PlainTextResponse("Sign in first.", 401)
        try:
            case = find_case(roots, request.path_params["case"])
        except TriageError:
            return PlainTextResponse("There is no such case.", 404)
        path = case.path / name
        if name not in DOWNLOADS or not path.is_file() or case.path.resolve() not in path.resolve().parents:
            return PlainTextResponse("The case holds no such file.", 404)
        shown = name in ("report.html", "report-redacted.html") and "download" not in request.query_params
        return FileResponse(
            path,
            media_type=DOWNLOADS[name],
            filename=f"{case.manifest.id}-{path.name}",
            content_disposition_type="inline" if shown else "attachment",
            headers={"content-security-policy": FILE_POLICY, "cache-control": "no-store"},
        )

    return case_file


def _lease_route(roots: Roots, act: Callable[[Case, str], None]) -> Callable[[Request], Awaitable[Response]]:
    async def leased(request: Request) -> Response:
        """Renew the lease of this browser on a case, or give it back; 204 whether it has one or not."""
        if not _signed_in(request):
            return PlainTextResponse("Sign in first.", 401)
        browser = browser_of(request.cookies)
        with suppress(TriageError):
            if browser:
                act(find_case(roots, request.path_params["case"]), browser)
        return Response(status_code=204)

    return leased


def _alive_route() -> Callable[[Request], Awaitable[Response]]:
    """Return the answer to whether the page process is there: a name of its own, which tells one that was started anew."""
    name = uuid.uuid4().hex

    async def alive(_: Request) -> Response:
        return PlainTextResponse(name, headers={"cache-control": "no-store"})

    return alive


def launch_options(roots: Roots, *, host: str, port: int | None, auth: list[tuple[str, str]] | None) -> dict[str, Any]:
    """Return the arguments of `Blocks.launch`. Raises: TriageError for an open address without passwords."""
    import plotly

    check_address(host, auth)
    named = in_address(host)
    hosts = ["127.0.0.1", "localhost", named] if is_loopback(host) else ["*"]
    vendor = Path(plotly.__file__).parent / "package_data"
    routes = [
        Route("/alive", _alive_route()),
        Route("/case/{case}/{name:path}", _file_route(roots)),
        Route("/keep/{case}", _lease_route(roots, lease.keep), methods=["POST"]),
        Route("/leave/{case}", _lease_route(roots, lease.release), methods=["POST"]),
        Mount("/vendor", StaticFiles(directory=vendor)),
    ]
    return {
        "server_name": named,
        "server_port": port,
        "share": False,
        "quiet": True,
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "_frontend": False,  # skips only a request to itself, which gives up after 3 s: a busy machine would not start
        "footer_links": [],
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD,
        "state_session_capacity": MAX_SESSIONS,
        "auth": auth,
        "app_kwargs": {
            "middleware": [Middleware(Guard), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            "routes": routes,
            "docs_url": None,
            "redoc_url": None,
        },
    }
