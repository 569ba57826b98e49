"""Fuzz: intake, weight headers, offsets, spans, case folders, injection. Nothing may end in anything but a TriageError or a
right answer. Few examples in `make test`, ten thousand a target with `-m long`.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from core import chat, confirmation, jobs
from core.__main__ import main
from core.casefile import Case
from core.errors import TriageError
from core.injection import holds, inject, near_misses, transplant
from core.intake import read_report, read_reports
from core.report import render_report, report_json
from core.serial import from_json, to_json
from core.text_spans import check_spans, close_to_words, delete_spans, positions_to_spans, spans_to_positions
from core.values import FailureReport, Message, OpenResult, Span, TriageResult, Verification
from core.weight_files import header
from tests.hostile.corpus import texts
from tests.tiny import TEMPLATE, TOKENIZERS
from tests.unit.reporting import full_case
from tests.unit.test_chat import assert_exact
from tests.unit.test_injection import cut

QUICK, LONG = 20, 10_000
Fuzzed = Callable[[], None]

WORDS = st.sampled_from([item.text for item in texts() if len(item.text) < 300])
TEXT = st.one_of(st.text(max_size=60), WORDS, st.text(st.characters(), max_size=20))
"""Any text: lone surrogates and NUL too."""
KEYS = st.sampled_from(
    ["messages", "role", "content", "response", "id", "source", "note", "expected", "second", "response_ids", "sampling",
     "temperature", "top_p", "max_new_tokens", "instruction", "input", "output", "system", "prompt"]
)  # fmt: skip
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from(["user", "system", "assistant"])
)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.one_of(KEYS, TEXT), inner, max_size=5),
    max_leaves=20,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": TEXT})
NEARLY = st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=4), "response": TEXT},
    optional={"id": SCALAR, "note": TEXT, "expected": TEXT, "response_ids": st.lists(st.integers(), max_size=4) | JSON,
              "sampling": JSON, "second": JSON},
)  # fmt: skip


def one_line(error: TriageError) -> None:
    said = str(error)
    assert said.strip()
    assert len(said.splitlines()) == 1
    said.encode("utf-8")


def spoilt(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes with each edit made: at a place, so many bytes are replaced by others."""
    for place, length, new in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=3)


def intake() -> Fuzzed:
    """Bytes, texts, JSON values, spoilt reports: a report that round-trips, or a line."""
    good = json.dumps(
        {"messages": [{"role": "user", "content": "a é \U0001f600"}], "response": "b", "id": "1"}
    ).encode()
    lines = good + b"\n" + good

    @given(
        st.one_of(
            st.binary(max_size=200),
            TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
            JSON.map(lambda value: json.dumps(value).encode()),
            NEARLY.map(lambda value: json.dumps(value).encode()),
            st.lists(NEARLY, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
            EDITS.map(lambda edits: spoilt(lines, edits)),
        )
    )
    def check(data: bytes) -> None:
        for reader in (read_report, read_reports):
            try:
                found = reader(data)
            except TriageError as error:
                one_line(error)
                continue
            for report in found if isinstance(found, list) else [found]:
                assert from_json(FailureReport, json.loads(json.dumps(to_json(report)))) == report
                assert any(message.role == "user" for message in report.messages)

    return check


def weight_headers(tmp_path: Path, tiny: Path) -> Fuzzed:
    """Spoilt safetensors files: what passes here, the library reads with the same shapes."""
    from safetensors import safe_open

    good = (tiny / "model.safetensors").read_bytes()
    n_head = 8 + int.from_bytes(good[:8], "little")
    head, path = good[:n_head], tmp_path / "model.safetensors"
    small = json.dumps({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]},
                        "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]}}).encode()  # fmt: skip
    numbers = st.integers(-3, 20) | st.integers()
    entry = st.fixed_dictionaries({
        "dtype": st.sampled_from(["F16", "U8", "F32", "F4", "BOOL", "x"]),
        "shape": st.lists(numbers, max_size=3), "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    })  # fmt: skip
    made = st.dictionaries(st.sampled_from("abc"), entry, max_size=3).map(lambda data: json.dumps(data).encode())

    @given(
        st.one_of(
            EDITS.map(lambda edits: spoilt(head, edits) + good[n_head:]),
            st.tuples(st.just(small) | made, st.integers(0, 20)).map(
                lambda one: len(one[0]).to_bytes(8, "little") + one[0] + b"\0" * one[1]
            ),
            st.binary(max_size=60),
        )
    )
    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            shapes = header(path)
        except TriageError as error:
            one_line(error)
            return
        with safe_open(path, framework="np") as file:
            assert shapes == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    return check


TEMPLATES = (
    TEMPLATE,
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/]{% endfor %}",
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{{ messages[-1].content }}",
    "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}{{ messages[0].content }}",
)


def offsets() -> Fuzzed:
    """Conversations through tokenizers and templates: every character in its token, spans there and back, or a line."""
    names = [
        "byte-level",
        "byte-level, offsets trimmed",
        "metaspace BPE, prefix first",
        "metaspace unigram",
        "word pieces",
    ]
    made = {name: TOKENIZERS[name]() for name in names}

    @given(st.sampled_from(names), st.sampled_from(TEMPLATES), st.lists(TURN, max_size=4), st.data())
    def check(name: str, template: str, turns: list[dict], data: st.DataObject) -> None:
        tokenizer = made[name]
        tokenizer.chat_template = template
        messages = [Message(**one) for one in turns]
        try:
            prompt = chat.render(tokenizer, messages)
        except TriageError as error:
            one_line(error)
            return
        if template == TEMPLATE:
            assert_exact(tokenizer, messages, prompt)
        positions = data.draw(st.sets(st.integers(0, len(prompt.tokens) - 1), max_size=5))
        spans = positions_to_spans(prompt, positions)
        check_spans(messages, spans)
        inside = {one for one in positions if prompt.tokens[one].message is not None}
        assert inside <= set(spans_to_positions(prompt, spans))

    return check


NUMBER = st.integers(-2, 12) | st.integers()
SPANS = st.lists(st.builds(Span, message=st.integers(-1, 3), start=NUMBER, end=NUMBER), max_size=4)


def spans() -> Fuzzed:
    """Spans over texts: refused in one line, or words closed over and text deleted without touching the rest."""

    @given(st.lists(TURN, min_size=1, max_size=3), SPANS)
    def check(turns: list[dict], marked: list[Span]) -> None:
        messages = [Message(**one) for one in turns]
        try:
            closed, left = close_to_words(messages, marked), delete_spans(messages, marked)
        except TriageError as error:
            one_line(error)
            return
        check_spans(messages, closed)
        for number, (before, after) in enumerate(zip(messages, left, strict=True)):
            gone = {place for one in marked if one.message == number for place in range(one.start, one.end)}
            kept = "".join(c for place, c in enumerate(before.content) if place not in gone)
            assert "".join(after.content.split()) == "".join(kept.split())

    return check


def injection() -> Fuzzed:
    """Units planted into prompts: cutting them gives the prompt back; near-misses never hold the trigger."""
    units = st.lists(TEXT.filter(bool), min_size=1, max_size=5)

    @given(TEXT, units, st.integers(0, 10**6), st.sampled_from(["random", "prefix", "suffix"]))
    def check(prompt: str, planted: list[str], seed: int, place: str) -> None:
        rng = random.Random(seed)
        for made in (
            inject(prompt, planted, rng, place),
            transplant(prompt, planted, [i / 5 for i in range(len(planted))]),
        ):
            assert [made.text[start:end] for start, end in made.spans] == planted
            assert cut(made, prompt) == prompt
        try:
            found = near_misses(planted, rng, 3)
        except TriageError as error:
            one_line(error)
        else:
            assert len(found) == 3
            assert not any(holds(" ".join(one), planted) for one in found)

    return check


STORED = (("triage.json", TriageResult), ("results/open.json", OpenResult), ("verification.json", Verification))


def case_folder(tmp_path: Path) -> Fuzzed:
    """A case folder with one file spoilt, by bytes or by a value of another kind: read whole, or refused in one line."""
    good = full_case(tmp_path).path
    jobs.ask(Case(good), "open", start=False)
    names = sorted(str(path.relative_to(good)) for path in good.rglob("*") if path.suffix in (".json", ".jsonl"))
    names = [name for name in names if not name.startswith("prompts")]
    content = {name: (good / name).read_bytes() for name in names}

    def places(value: object, at: tuple = ()) -> list[tuple]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [at, *(deep for key, one in inner for deep in places(one, (*at, key)))]

    def replaced(raw: bytes, number: int, new: object) -> bytes:
        line = raw.decode().splitlines()[0] if raw.count(b"\n") and not raw.startswith(b"{\n") else raw.decode()
        data = json.loads(line)
        *way, last = places(data)[1:][number % max(1, len(places(data)) - 1)]
        inner = data
        for key in way:
            inner = inner[key]
        inner[last] = new
        return json.dumps(data).encode() + b"\n"

    @given(st.sampled_from(names), st.one_of(EDITS, st.tuples(st.integers(0, 10**6), JSON), st.binary(max_size=40)))
    def check(name: str, change: object) -> None:
        raw = content[name]
        if isinstance(change, bytes):
            raw = change
        elif isinstance(change, list):
            raw = spoilt(raw, change)
        else:
            raw = replaced(raw, *change)  # type: ignore[misc]
        (good / name).write_bytes(raw)
        try:
            for look in (
                lambda case: [case.read(one, cls) for one, cls in STORED],
                lambda case: case.events(),
                lambda case: case.audit_lines(),
                lambda case: jobs.status(case),
                lambda case: jobs.requests(case),
                confirmation.stored,
                confirmation.validity,
                render_report,
                report_json,
            ):
                try:
                    look(Case(good))
                except TriageError as error:
                    one_line(error)
        finally:
            (good / name).write_bytes(content[name])

    return check


def span_argument(tmp_path: Path) -> Fuzzed:
    """`confirm --spans TEXT`: stored as given, or exit 2."""
    case = full_case(tmp_path)
    n_characters = len(case.report.messages[1].content)

    @given(st.one_of(TEXT, JSON.map(json.dumps), SPANS.map(lambda all_: json.dumps([vars(one) for one in all_]))))
    def check(text: str) -> None:
        assume(not text.startswith("@"))
        arguments = ["confirm", "--case", str(case.path), f"--spans={text}", "--analyst", "a", "--reason", "b"]
        assert main(arguments) in (0, 2)
        stored = confirmation.stored(case)
        assert stored is not None
        assert all(0 <= one.start < one.end <= n_characters for one in stored.spans)

    return check


TARGETS = ("intake", "weight_headers", "offsets", "spans", "injection", "case_folder", "span_argument")


def run(target: str, n: int, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Run one target with `n` examples; few are the same ones each time."""
    needs = {
        "weight_headers": (tmp_path, tiny_folder("llama")),
        "case_folder": (tmp_path,),
        "span_argument": (tmp_path,),
    }
    check = globals()[target](*needs.get(target, ()))
    options = settings(
        max_examples=n, deadline=None, database=None, derandomize=n == QUICK, suppress_health_check=list(HealthCheck)
    )
    options(check)()


@pytest.mark.parametrize("target", TARGETS)
def test_quick(target: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    run(target, QUICK, tmp_path, tiny_folder)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand(target: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    run(target, LONG, tmp_path, tiny_folder)
