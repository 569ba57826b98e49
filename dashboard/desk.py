"""What every handler of the page shares: the case it is about, the error wrapper, and the redraw of what has changed.

A handler asks the engine for something (a file in the case folder) and returns at once. Each redraw reads the case folder,
compares a signature per step with what this browser was last given, and sends only the steps that differ. A timer
redraws every second while something runs and rarely otherwise; a second browser thus follows too.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

import gradio as gr
from gradio.blocks import Block

from core import jobs, lease, rounds
from core.casefile import Case
from core.errors import TriageError
from core.events import Line, StageFailed, StageFinished, StageStarted
from core.files import cannot_work
from core.jobs import CaseStatus
from core.values import OpenResult, TriggerConfirmation
from dashboard import stories, tables, wording
from dashboard.components import StatusBar
from dashboard.components.story import Story
from dashboard.server import browser_of
from dashboard.session import Roots, find_case

LOG = logging.getLogger(__name__)
BUSY_SECONDS = 0.8
"""Time between redraws while something runs. Source: design.md section 6 (every event within 2 s)."""
QUIET_SECONDS = 4.0
"""Time between looks at the case folder while nothing runs. Source: unverified choice."""
QUEUE_SIZE = 64
"""Calls that may wait; more are refused. Source: unverified choice."""

Updates = dict[Block, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What one browser tab looks at: an id and choices, nothing that is not in the case folder."""

    case: str = ""
    """The name of the case's folder."""
    browser: str = ""
    """The id of the browser that asks, as each request brings it (dashboard/server.py); it tells two analysts' pages apart."""
    analyst: str = ""
    """The name as typed in step 4 by now."""
    candidate: int = 0
    """Which one of step 4 is looked at."""
    located: int = 0
    """Which one of step 3 is looked at; its list is another one with every method."""
    draft: tuple[int, ...] | None = None
    """Token positions marked in the editor; None: those of the candidate."""
    version: int = 0
    """Counts the changes of `draft` that did not come from the editor itself, which must then be redrawn."""
    tested: str | None = None
    """Result file of the last test of a selection; "" while a candidate is looked at. None, as after a refresh: see `verdict.tested`."""
    positions: tuple[int, ...] = ()
    """Response tokens chosen as the target."""
    highlight: tuple[int, ...] = ()

    def at(self, case: str) -> "Session":
        """Return the session of the same browser at a case, with no choices yet."""
        return Session(case=case, browser=self.browser, analyst=self.analyst)


@dataclass(frozen=True, kw_only=True)
class Next:
    """What a handler leads to; None leaves a thing as it is."""

    session: Session | None = None
    tab: str | None = None
    say: str | None = ""
    """What the message strip shows from now on: "" clears it, None leaves it."""
    updates: Updates = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class View:
    """The case as it stands at one redraw."""

    session: Session
    case: Case | None
    status: CaseStatus | None
    lines: tuple[Line, ...]
    choices: Mapping[str, Any]
    writer: tuple[str, str] | None = None
    """Name and time of the analyst who writes the case, when it is another one; this browser then only reads."""

    def stamp(self, *patterns: str) -> tuple:
        """Return names and times of the case's files that match, which change when a result does."""
        if self.case is None:
            return ()
        found = sorted(path for pattern in patterns for path in self.case.path.glob(pattern))
        return tuple((path.name, path.stat().st_mtime_ns) for path in found)

    def opened(self) -> OpenResult | None:
        """Return what loading the model told, once it is known."""
        return self.case.read("results/open.json", OpenResult) if self.case else None

    def repaired(self) -> bool:
        """Return whether a repair of this round left an adapter."""
        return self.case is not None and rounds.repaired(self.case) is not None

    def busy_with(self, *stages: str) -> bool:
        """Return whether one of these stages runs or waits."""
        status = self.status
        if status is None or status.state not in ("running", "starting", "stopping"):
            return False
        return status.stage in stages or any(stage in status.queue for stage in stages)

    def stopped(self) -> bool:
        """Return whether the last request ended because the analyst stopped it."""
        last = self.lines[-1] if self.lines else None
        failed = last is not None and isinstance(last.event, StageFailed) and self.case is not None
        return failed and jobs.stop_asked(self.case, last.request) is not None  # type: ignore[arg-type,union-attr]

    def failure(self, *stages: str) -> str | None:
        """Return the message of the last failed request of these stages, unless a later one of them ended well.

        A request whose worker died has failed too, though nobody was left to say so.
        """
        status = self.status
        if status is not None and status.state == "failed" and status.request and status.stage in stages:
            return status.message
        for line in reversed(self.lines):
            event = line.event
            if isinstance(event, StageStarted | StageFinished | StageFailed) and event.stage in stages:
                return event.message if isinstance(event, StageFailed) else None
        return None


@dataclass(frozen=True)
class Panel:
    """A part of the page that is redrawn together.

    `signature(view)`: what it depends on. `show(view, before)`: the updates that draw it; `before` is the signature this
    browser was last given for the same case, or None. `outputs`: every component that `show` may update.
    """

    signature: Callable[[View], object]
    show: Callable[[View, Any], Updates]
    outputs: tuple[Block, ...]


def explain(error: Exception) -> str:
    """Return the sentence for an error: its own for a user's fault, the machine's for its, a reference to the log for ours."""
    if isinstance(error, TriageError):
        return str(error)
    if isinstance(error, OSError):
        LOG.error("the machine refused", exc_info=error)
        return str(cannot_work(error))
    reference = uuid.uuid4().hex[:8]
    LOG.error("reference %s", reference, exc_info=error)
    return wording.our_fault(reference)


class Desk:
    """Registers handlers so that each shares the session, the error strip and the redraw."""

    def __init__(self, roots: Roots) -> None:
        """Create the parts that stand on every step; call inside `gr.Blocks`."""
        self.roots = roots
        self.session = gr.State(Session())
        self.shown = gr.State({})
        self.bar = StatusBar(elem_id="status", watch_url="/alive")
        self.strip = Story(elem_id="message")
        with gr.Row(elem_classes="pt-actions", elem_id="reading", visible=False) as self.reading:
            self.writer = Story(elem_id="writer")
            self.take = gr.Button(wording.TAKE_OVER, elem_id="writer-take", scale=0, min_width=120)
        self.address = gr.Textbox(visible="hidden", elem_id="address", show_label=False)
        self.timer = gr.Timer(QUIET_SECONDS, active=False)  # until the page has its case: a tick would draw it without
        self.tabs: gr.Tabs | None = None
        self._waiting: list[Callable[[], None]] = []
        self._writing: list[Block] = []
        self.panels: dict[str, Panel] = {}
        self.choices: dict[str, Block] = {}
        self.act(self.take.click, self._take_over)

    def writes(self, *buttons: Block) -> None:
        """Name buttons that change the case: greyed for this browser while another analyst writes it."""
        self._writing += buttons

    # redraw -----------------------------------------------------------------------------------------------------------

    def _outputs(self) -> list[Block]:
        assert self.tabs is not None
        own: list[Block] = [self.session, self.shown, self.bar, self.strip, self.address, self.timer, self.tabs]
        return own + [component for panel in self.panels.values() for component in panel.outputs]

    def _view(self, session: Session, values: Sequence[Any]) -> View:
        choices = dict(zip(self.choices, values, strict=True))
        if not session.case:
            return View(session=session, case=None, status=None, lines=(), choices=choices)
        case = find_case(self.roots, session.case)
        jobs.enforce_stop(case)
        writer = _other_writer(case, self._name(values), session.browser)
        status, lines = jobs.status(case), case.current_events()
        return View(session=session, case=case, status=status, lines=lines, choices=choices, writer=writer)

    def redraw(self, session: Session, shown: dict[str, Any], values: Sequence[Any]) -> Updates:
        """Return the updates for every step that differs from what this browser was given."""
        try:
            view = self._view(session, values)
        except Exception as error:  # the answer to a click must not be lost with it
            fault = gr.update(value=sendable(stories.fault(explain(error))))
            begun = {} if "busy" in shown else {self.timer: gr.Timer(QUIET_SECONDS, active=True)}
            return {self.strip: fault, **begun}
        given = dict(shown)
        updates: Updates = {}
        for name, panel in self.panels.items():
            signature: tuple[str, object, bool] = (session.case, "failed", False)
            writing = [button for button in self._writing if button in panel.outputs]
            try:
                signature = (session.case, panel.signature(view), bool(writing) and view.writer is not None)
                before = given.get(name, (None, None, False))
                if before != signature:
                    drawn = panel.show(view, before[1] if before[0] == session.case else None)
                    updates |= drawn | _pressable(drawn, writing, view.writer is None)
            except Exception as error:  # one damaged result must not take the other steps along
                updates[self.strip] = gr.update(value=stories.fault(explain(error)))
            given[name] = signature
        status: object = given.get("bar")
        try:
            status = bar(view)
        except Exception as error:
            updates[self.strip] = gr.update(value=stories.fault(explain(error)))
        if given.get("bar") != status:
            updates[self.bar] = gr.update(value=status)
            given["bar"] = status
        busy = view.status is not None and view.status.state in ("running", "starting", "stopping")
        if given.get("busy") != busy:
            updates[self.timer] = gr.Timer(BUSY_SECONDS if busy else QUIET_SECONDS, active=True)
            given["busy"] = busy
        updates = sendable(updates)
        updates[self.shown] = given  # always: gradio takes an empty answer for a missing one
        return updates

    # handlers ---------------------------------------------------------------------------------------------------------

    def act(
        self,
        listener: Callable[..., Any],
        handler: Callable[..., Next | None],
        inputs: Sequence[Block] = (),
        *,
        keep: Sequence[Block] = (),
        extra: Sequence[Block] = (),
        many: bool = False,
        last: bool = False,
        js: str | None = None,
    ) -> None:
        """Run `handler(session, *inputs)` on an event, show its error inline, then redraw.

        `keep`: components that this handler must not send back (a fast typist would be set back). `extra`: outputs that
        belong to no step. With `many` the handler gets the event's data first and each event counts; else none does that comes
        while one is at work, or with `last` the last of them, on the inputs as they are by then.
        """
        kept = set(keep)

        def finish(
            request: gr.Request, session: Session, shown: dict[str, Any], values: tuple[Any, ...], *first: Any
        ) -> Updates:
            choices, own = values[: len(self.choices)], values[len(self.choices) :]
            session = replace(session, analyst=self._name(choices), browser=_browser(request))
            updates: Updates = {}
            following = None
            try:
                following = handler(*first, session, *own)
                say = following.say if following else ""
                if say is not None:
                    updates[self.strip] = gr.update(value=stories.note(say))
            except Exception as error:
                updates[self.strip] = gr.update(value=stories.fault(explain(error)))
            if following is not None:
                if following.session is not None:
                    session = following.session
                    updates[self.session] = session
                    updates[self.address] = address(session, following.tab)
                if following.tab:
                    updates[self.tabs] = gr.Tabs(selected=following.tab)  # type: ignore[index]
            updates = _told(updates)
            redrawn = self.redraw(session, shown, choices)
            updates = redrawn | updates if redrawn.get(self.strip) is None else updates | redrawn
            if following is not None:
                updates |= _told(following.updates)
            return {component: update for component, update in updates.items() if component not in kept}

        def plain(request: gr.Request, session: Session, shown: dict[str, Any], *values: Any) -> Updates:
            return finish(request, session, shown, values)

        def with_event(
            event: gr.EventData, request: gr.Request, session: Session, shown: dict[str, Any], *values: Any
        ) -> Updates:
            return finish(request, session, shown, values, event)

        def register() -> None:
            listener(
                with_event if many else plain,
                [self.session, self.shown, *self.choices.values(), *inputs],
                [c for c in dict.fromkeys([*self._outputs(), *extra]) if c not in kept],
                js=js,
                **quiet(trigger_mode="multiple" if many else "always_last" if last else "once"),
            )

        self._waiting.append(register)

    def work(
        self,
        button: gr.Button,
        words: str,
        prepare: Callable[..., Callable[[], object]],
        handler: Callable[[Session, Any], Next],
        inputs: Sequence[Block] = (),
        *,
        extra: Sequence[Block] = (),
    ) -> None:
        """Do on a click what takes long: meanwhile the strip shows `words` and the button rests.

        `prepare(*inputs)` checks and returns the work. What that returns goes to `handler(session, (case, result))`, as by `act`,
        in the session as it is by then; `case` was open at the click.
        """
        done = gr.State()

        def begin(session: Session, *values: Any) -> Iterator[Updates]:
            result: object
            try:
                do = prepare(*values)
                yield {
                    self.strip: gr.update(value={"headline": words, "tone": "busy"}),
                    button: gr.update(interactive=False),
                }
                result = do()
            except Exception as error:
                result = error
            yield {done: (session.case, result), button: gr.update(interactive=True)}

        def end(session: Session, made: tuple[str, object]) -> Next:
            if isinstance(made[1], Exception):
                raise made[1]
            return handler(session, made)

        began = button.click(begin, [self.session, *inputs], [done, self.strip, button], **quiet())
        self.act(began.then, end, [done], extra=extra)

    def _name(self, values: Sequence[Any]) -> str:
        """Return the analyst's name as typed."""
        return str(dict(zip(self.choices, values, strict=True)).get("analyst") or "").strip()

    def _take_over(self, session: Session) -> Next:
        lease.take(current_case(self, session), session.analyst, session.browser, over=True)
        return Next(session=session)

    def _show_writer(self, view: View, free: Sequence[Block]) -> Updates:
        """Who writes the case, when it is someone else; `free` are the buttons that then rest and no other panel draws."""
        found = view.writer
        line = wording.other_writes(*found) if found else ""
        return {
            self.reading: gr.update(visible=bool(found)),
            self.writer: gr.update(value={"line": line, "tone": "warn"}),
            **{button: gr.update(interactive=not found) for button in free},
        }

    def wire(self) -> None:
        """Connect every handler, once all panels and choices are known; start following."""
        drawn = {component for panel in self.panels.values() for component in panel.outputs}
        free = [button for button in self._writing if button not in drawn]
        self.panels["writer"] = Panel(
            lambda view: view.writer, lambda view, _: self._show_writer(view, free), (self.reading, self.writer, *free)
        )
        for register in self._waiting:
            register()
        self._follow()

    def _follow(self) -> None:
        """Redraw on every tick of the timer."""

        def tick(request: gr.Request, session: Session, shown: dict[str, Any], *values: Any) -> Updates:
            return self.redraw(replace(session, browser=_browser(request)), shown, values)

        outputs = [component for component in self._outputs() if component is not self.session]
        self.timer.tick(tick, [self.session, self.shown, *self.choices.values()], outputs, **quiet())


def _told(updates: Updates) -> Updates:
    """Return updates as they can be sent; what the page keeps to itself stays as it is."""
    return {component: one if isinstance(component, gr.State) else sendable(one) for component, one in updates.items()}


def sendable(value: Any) -> Any:
    """Return `value` with halves of surrogate pairs as escapes; for these a browser would get nothing at all, from then on.

    A report cannot hold them, a folder's name or a name that a script sends can.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
    elif isinstance(value, dict):
        return {key if isinstance(key, Block) else sendable(key): sendable(one) for key, one in value.items()}
    elif isinstance(value, list):
        return [sendable(one) for one in value]
    elif isinstance(value, tuple):
        return tuple(sendable(one) for one in value)
    return value


def quiet(trigger_mode: str = "once") -> dict[str, Any]:
    """Return the options of every listener: no overlay, no public endpoint."""
    return {
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": trigger_mode,
        "concurrency_limit": 8,
    }


def address(session: Session, tab: str | None) -> str:
    """Return what the address line shall say: case, step, and the time, so that a repeated move is one too.

    Besides, what the tab shall keep over a refresh: the candidate looked at, and the marks (`confirm.chosen`).
    """
    marks = {} if session.draft is None else {"marks": ".".join(map(str, session.draft))}
    chosen = urlencode({"candidate": session.candidate} | marks)
    parts = {"case": session.case} | ({"step": tab} if tab else {})
    return urlencode(parts | {"chosen": chosen, "at": time.monotonic_ns()}) if session.case else ""


def bar(view: View) -> dict[str, object]:
    """Return the status bar's value."""
    if view.case is None or view.status is None:
        return tables.status()
    opened, status = view.opened(), view.status
    confirmed = view.case.read("confirmation.json", TriggerConfirmation)
    idle = status.state == "failed" and view.stopped()
    return tables.status(
        case=view.case.path.name,
        model=f"{opened.model_name} ({wording.size(opened.n_parameters)}, {opened.dtype})" if opened else "",
        device=opened.device if opened else "",
        analyst=confirmed.analyst if confirmed else "",
        state="idle" if idle else status.state,
        stage="" if idle else status.stage or "",
        message=status.message if status.state in ("running", "starting") and status.stage != "repair" else "",
        done=status.done,
        total=status.total,
        queue=status.queue,
    )


def _browser(request: gr.Request) -> str:
    """Return the id of the browser that asks; of one that keeps no cookies, that of its tab, whose lease its acts alone renew."""
    return browser_of(request.cookies) or str(request.session_hash or "")


def _other_writer(case: Case, analyst: str, browser: str) -> tuple[str, str] | None:
    """Return name and time of the analyst who writes the case, when it is not this one."""
    found = lease.current(case)
    return None if found is None or lease.is_mine(found, analyst, browser) else (found.name, found.since)


def _pressable(drawn: Updates, buttons: Sequence[Block], free: bool) -> Updates:
    """Return the updates of `buttons` as drawn, but not to be pressed unless `free`."""
    lock = {} if free else {"interactive": False}
    return {button: gr.update(interactive=True) | drawn.get(button, {}) | lock for button in buttons}


def writing(desk: Desk, session: Session) -> Case:
    """Return the open case to act on, taking or renewing its lease. Raises: BusyError when another analyst writes it."""
    case = current_case(desk, session)
    lease.take(case, session.analyst, session.browser)
    rounds.finish(case, session.analyst)
    return case


def sent(source: object, name: str, kind: type[T]) -> T:
    """Return what an event or a component's value holds under `name`.

    Raises: TriageError when it is nothing of that kind, which only a call that this page did not make can send.
    """
    data = source if isinstance(source, dict) else getattr(source, "_data", None)
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TriageError(wording.ODD_CALL)
    return value


def current_case(desk: Desk, session: Session) -> Case:
    """Return the open case. Raises: TriageError when none is open."""
    if not session.case:
        raise TriageError(wording.NO_CASE)
    return find_case(desk.roots, session.case)
