"""Who writes a case: one analyst at a time, in one browser or terminal; everyone else reads on and sees who.

1. The first act takes the lease; every further act, an open page (in the background too) and a running command renew it. The
   last page of a browser that has the case open gives it back when it is closed; one that was only refreshed takes it again.
2. Another analyst is refused, with the name and the time, until the lease is given back, is stale, or is taken over.
3. The same name in another browser is the same analyst and takes the lease along.
`lease.json` holds it, changed under a lock; taking over from someone stands in the log. Stopping what runs needs no lease.
What this does not do: keep anyone out. Names and browser ids are what a client says; it orders honest work, no more.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Event, Thread

from filelock import FileLock

from core.casefile import Case
from core.confirmation import same_name
from core.errors import BusyError, CaseFileError, TriageError
from core.files import cannot_write, now, patiently

FILE, LOCK = "lease.json", "lease.lock"
STALE_SECONDS = 120.0
"""A lease that was not renewed for so long has ended. Source: unverified choice; browsers let pages in the
background renew once a minute."""
UNNAMED = "Someone without a name"
"""What stands for a name that nobody typed."""
NAME_LENGTH = 120
"""Characters of a name that are kept here."""
RENEW_SECONDS = 20.0
"""An open page, and a command that runs, renew their lease this often. Source: unverified choice."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who writes: the name as typed (may be empty), the browser or terminal, since when, and when it was last seen."""

    analyst: str
    holder: str
    since: str
    seen: str

    @property
    def name(self) -> str:
        """The name, or what stands for it."""
        return self.analyst or UNNAMED


def current(case: Case) -> Lease | None:
    """Return the lease that holds, None when nobody writes or it is stale or damaged."""
    found = _stored(case)
    return None if found is None or abs(_age(found.seen)) > STALE_SECONDS else found


def _stored(case: Case) -> Lease | None:
    """Return the lease as it is stored, stale or not, None when there is none or it is damaged."""
    try:
        return case.read(FILE, Lease)
    except CaseFileError:
        return None


def writer(case: Case) -> str:
    """Return the name of who writes the case now, or a word for an analyst nobody knows."""
    found = current(case)
    return found.analyst if found is not None and found.analyst else "analyst"


def is_mine(found: Lease, analyst: str, holder: str) -> bool:
    """Return whether a lease is this browser's, or this analyst's in another one."""
    return found.holder == holder or bool(analyst.strip() and found.analyst and same_name(found.analyst, analyst))


def may_write(case: Case, analyst: str, holder: str) -> bool:
    """Return whether `take` would be granted."""
    found = current(case)
    return found is None or is_mine(found, analyst, holder)


def take(case: Case, analyst: str, holder: str, *, over: bool = False) -> Lease:
    """Take or renew the lease for an act; with `over` even from someone else, which is audited.

    Raises: BusyError naming who writes; CaseFileError when the case cannot be written.
    """
    try:
        return _take(case, " ".join(analyst.split())[:NAME_LENGTH], holder, over)
    except OSError as error:
        raise cannot_write(FILE, error) from error


def _take(case: Case, analyst: str, holder: str, over: bool) -> Lease:
    with FileLock(case.path / LOCK):
        found = current(case)
        theirs = found is not None and not is_mine(found, analyst, holder)
        if found is not None and theirs and not over:
            raise BusyError(
                f"{found.name} has been writing this case since {found.since[11:16]} UTC; you can read on, wait, or take over (command line: "
                "--take-over)."
            )
        since = found.since if found is not None and not theirs else now()
        known = found.analyst if found is not None and not theirs else ""
        made = Lease(analyst=analyst or known, holder=holder, since=since, seen=now())
        case.write(FILE, made)
    if found is not None and theirs:
        case.audit("writing taken over", actor=made.name, taken_from=found.name)
    return made


@contextmanager
def held(case: Case, analyst: str, holder: str, *, over: bool = False) -> Iterator[None]:
    """Hold the lease while a command runs; a thread renews it, since loading a model says nothing for minutes.

    Raises: as `take`.
    """
    take(case, analyst, holder, over=over)
    done = Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            with suppress(TriageError):  # a full disk is for the command to report
                keep(case, holder)

    thread = Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(TriageError):  # it ends by itself; how the command ended is what counts
            release(case, holder)


def keep(case: Case, holder: str) -> None:
    """Renew the lease of this holder, when it is time; of nobody else. A stale one that nobody took meanwhile (the machine slept)
    holds again.

    Raises: CaseFileError when the case cannot be written.
    """
    found = _stored(case)
    if found is None or found.holder != holder or 0 <= _age(found.seen) < RENEW_SECONDS:
        return
    try:
        with FileLock(case.path / LOCK):
            found = _stored(case)
            if found is not None and found.holder == holder:
                case.write(FILE, replace(found, seen=now()))
    except OSError as error:
        raise cannot_write(FILE, error) from error


def release(case: Case, holder: str) -> None:
    """Give the lease back, when it is this browser's. Raises: CaseFileError when the case cannot be written."""
    try:
        with FileLock(case.path / LOCK):
            found = current(case)
            if found is not None and found.holder == holder:
                patiently(lambda: (case.path / FILE).unlink(missing_ok=True))
    except OSError as error:
        raise cannot_write(FILE, error) from error


def _age(moment: str) -> float:
    """Return the seconds since a stored time; one that cannot be read is long ago."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return 2 * STALE_SECONDS
