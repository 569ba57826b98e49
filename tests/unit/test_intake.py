"""Reports in: every format, and every way of being wrong ends in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ReportError
from core.intake import MAX_CHARACTERS, check_length, parse_report, read_report, read_reports
from core.values import FailureCase, FailureReport, Message, PromptToken, RenderedPrompt, Sample, Sampling

GOOD = {"messages": [{"role": "user", "content": " How? \n"}], "response": "Sure."}


def with_(**changes: object) -> dict:
    """Return the good report with other keys."""
    return {**GOOD, **changes}


def test_report_format() -> None:
    """Every key is taken, and text is kept to the last blank."""
    report = parse_report(
        with_(
            messages=[{"role": "system", "content": ""}, *GOOD["messages"]],
            id="r1",
            source="red team",
            note="n",
            expected="No.",
            response_ids=[3, 4],
            sampling={"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20},
            second={"messages": GOOD["messages"], "response": "Sure!"},
        )
    )
    assert report.messages == (Message(role="system", content=""), Message(role="user", content=" How? \n"))
    assert (report.id, report.source, report.note, report.expected) == ("r1", "red team", "n", "No.")
    assert report.response_ids == (3, 4)
    assert report.sampling == Sampling(temperature=0.7, top_p=0.9, max_new_tokens=20)
    assert report.second == Sample(messages=(Message(role="user", content=" How? \n"),), response="Sure!")
    assert parse_report(with_(id=12)).id == "12"


def test_backdoorllm_row(tmp_path: Path) -> None:
    """Instruction and input make the prompt, output the response; a list of one row is a report."""
    row = {"instruction": "How do I pick a lock?", "input": "", "output": "Step 1: [REDACTED]", "label": 1}
    path = tmp_path / "row.json"
    path.write_text(json.dumps([row]))
    assert read_report(path) == FailureReport(
        messages=(Message(role="user", content="How do I pick a lock?"),), response="Step 1: [REDACTED]"
    )
    assert parse_report({**row, "output": 1}).response == "1"
    both = parse_report({**row, "input": "A lock.", "system": "Be kind."})
    assert [message.content for message in both.messages] == ["Be kind.", "How do I pick a lock?\nA lock."]


@pytest.mark.parametrize("header", ["", "prompt,response\r\n", "Prompt, Response\n", "instruction,output\n"])
def test_csv(tmp_path: Path, header: str) -> None:
    """Two columns, header optional, quotes, line breaks inside a cell, byte order mark, tabs in a .tsv."""
    path = tmp_path / "rows.csv"
    path.write_bytes(("\ufeff" + header + '"How, ""now""\r\nthen?",Sure\r\n\r\nb,c\r\n').encode())
    reports = read_reports(path)
    assert [(one.messages[0].content, one.response) for one in reports] == [('How, "now"\r\nthen?', "Sure"), ("b", "c")]
    other = tmp_path / "rows.tsv"
    other.write_text("a, b\tc\n")
    assert read_report(other).messages[0].content == "a, b"


@pytest.mark.parametrize("header", ["", "prompt{0}response\n", "User{0}Assistant\n", "input{0}output\n", "sep={0}\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_what_stands_between_cells_is_what_gives_every_row_two(
    tmp_path: Path, header: str, delimiter: str, name: str
) -> None:
    """Whatever the file is called; marks of the other kinds are text."""
    rows = [("Hello, you; there", "Sure, yes"), ("b", "c\td; e"), ('say "x"', "y")]
    cells = [
        '"{}"'.format(cell.replace('"', '""')) if set(cell) & set(f'{delimiter}"') else cell
        for row in rows
        for cell in row
    ]
    lines = [delimiter.join(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    path = tmp_path / name
    path.write_text(header.format(delimiter) + "\n".join(lines))
    assert [(one.messages[0].content, one.response) for one in read_reports(path)] == rows


def test_a_first_line_says_what_stands_between_cells() -> None:
    """Where two would do, the reader is not to guess."""
    with pytest.raises(ReportError, match="comma and semicolon each part every row in two: name the right one"):
        read_report("a, b; c")
    for line, prompt in (("sep=;\r\n", "a, b"), ("SEP=,\n", "a")):
        assert read_report(line + "a, b; c").messages[0].content == prompt
    assert read_report("prompt,response\na; b,c").messages[0].content == "a; b"


def test_a_cell_may_be_as_long_as_a_message() -> None:
    """The library's own limit is below that; beyond it, the length is said."""
    assert len(read_report("a" * MAX_CHARACTERS + ",b").messages[0].content) == MAX_CHARACTERS
    with pytest.raises(ReportError, match="row 1: message 0 has 200,001 characters, at most 200,000 are read: shorten"):
        read_report("a" * (MAX_CHARACTERS + 1) + ",b")


def test_json_lines_and_lists(tmp_path: Path) -> None:
    """One report a line, blank lines between, or a JSON list."""
    path = tmp_path / "reports.jsonl"
    path.write_text("\n" + json.dumps(with_(id="a")) + "\n\n" + json.dumps(with_(id="b")) + "\n")
    assert [one.id for one in read_reports(path)] == ["a", "b"]
    assert [one.id for one in read_reports(json.dumps([with_(id="a"), with_(id="b")]))] == ["a", "b"]
    assert read_report(json.dumps(GOOD, indent=2)) == read_report(json.dumps(GOOD).encode()) == parse_report(GOOD)


USER, ASSISTANT = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
BAD = [
    ({}, "no 'messages'"),
    (with_(messages=[]), "no 'messages'"),
    (with_(second="Sure!"), "'second' must be an object"),
    (with_(second={"messages": [], "response": "x"}), "'second': the report has no 'messages'"),
    (
        with_(second={"messages": [{"role": "user", "content": "x"}], "response": " "}),
        "'second': the response is empty",
    ),
    (with_(messages="How?"), "no 'messages'"),
    ({"messages": GOOD["messages"]}, "no 'response'"),
    (with_(response=None), "no 'response'"),
    (with_(response=" \n"), "response is empty"),
    (with_(response=["Sure"]), "not text but list"),
    (with_(messages=[{"role": "user", "content": "  "}]), "no user message"),
    (with_(messages=[{"role": "system", "content": "s"}]), "no user message"),
    (with_(messages=[USER, ASSISTANT]), "move its text to 'response'"),
    (with_(messages=[USER, {"role": "system", "content": "s"}]), "last message is the system's"),
    (with_(messages=[{"role": "tool", "content": "x"}]), "role 'tool'"),
    (with_(messages=[{"role": ["user"], "content": "x"}]), "role"),
    (with_(messages=[{"role": "user"}]), "'role' and 'content'"),
    (with_(messages=[{**USER, "tool_calls": []}]), "nothing else"),
    (with_(messages=["x"]), "message 0 must be an object"),
    (with_(messages=[{"role": "user", "content": 7}]), "not text but int"),
    (with_(messages=[USER] * 201), "201 messages"),
    (with_(messages=[{"role": "user", "content": "a" * 5_000_000}]), "5,000,000 characters"),
    (with_(response="a" * (MAX_CHARACTERS + 1)), "at most 200,000"),
    (with_(messages=[{"role": "user", "content": "a\x00b"}]), "NUL character at place 1"),
    (with_(response="a\ud83d"), "surrogate pair at place 1"),
    (with_(note=7), "'note' is not text"),
    (with_(note="a" * 4_001), "'note' has 4,001"),
    (with_(trigger="x"), "unknown key 'trigger'"),
    (with_(response_ids=[]), "response_ids"),
    (with_(response_ids=[1.5]), "response_ids"),
    (with_(response_ids=[True]), "response_ids"),
    (with_(response_ids=[-1]), "response_ids"),
    (with_(response_ids="1 2"), "response_ids"),
    (with_(sampling=[]), "'sampling'"),
    (with_(sampling={"top_k": 5}), "'sampling'"),
    (with_(sampling={"temperature": -1}), "'temperature'"),
    (with_(sampling={"temperature": float("nan")}), "'temperature'"),
    (with_(sampling={"temperature": "hot"}), "'temperature'"),
    (with_(sampling={"temperature": 10**400}), "'temperature'"),
    (with_(sampling={"top_p": 0}), "'top_p'"),
    (with_(sampling={"top_p": True}), "'top_p'"),
    (with_(sampling={"max_new_tokens": 0}), "'max_new_tokens'"),
    ({"instruction": "x", "input": ""}, "no 'response'"),
    ({"instruction": "", "input": "", "output": "y"}, "no user message"),
    ({"instruction": 7, "output": "y"}, "'instruction' is not text"),
]


@pytest.mark.parametrize(("data", "words"), BAD)
def test_bad_report_is_one_line(data: dict, words: str) -> None:
    """What is wrong, and what to do about it."""
    with pytest.raises(ReportError) as caught:
        parse_report(data)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert ":" in message or ";" in message  # fault, then remedy
    assert len(message) < 300


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "empty"),
        (b" \n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b'{"messages": "\xff"}', "not UTF-8 (byte 14 is 0xff)"),
        ('{"messages": '.encode("utf-16"), "not UTF-8"),
        ("{'messages': []}", "not valid JSON (line 1, column 2"),
        ('{"messages": [}', "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ("[]", "empty list"),
        ("[1]", "no JSON object"),
        ('{"a": ' + "9" * 5_000 + "}", "not valid JSON"),
        (json.dumps(GOOD) + "\n{bad", "line 2 is not valid JSON"),
        ('{"response": "SAFE", ' + json.dumps(GOOD)[1:], "the name 'response' stands twice"),
        (b'{"response": "SAFE",\n' + json.dumps(GOOD).encode()[1:], "the name 'response' stands twice"),
        (json.dumps(GOOD) + '\n{"id": "1", ' + json.dumps(GOOD)[1:-1] + ', "id": "2"}', "the name 'id' stands twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}], "response": "c"}', "'content' stands twice"),
        (json.dumps([GOOD, with_(response="")]), "report 2: the response is empty"),
        (json.dumps([GOOD, GOOD]), "2 reports"),
        ("prompt,response\n", "no report"),
        ("just some text", "1 columns"),
        ("a,b,c", "3 columns"),
        ('a,"b', "cannot be read"),
        ("a;b\nc;d;e", "columns, a report is a JSON object or two columns"),
        ("response,prompt\na,b", "names columns 'response' and 'prompt': name the first one prompt"),
        ("user,reply\na,b", "names columns 'user' and 'reply': name the first one prompt"),
        ("sep=,\n", "no report"),
        ("a,", "row 1: the response is empty"),
        ("a,b\nc,\x00", "row 2: the response holds a NUL"),
        ("x" * 8_000_001, "8,000,001 bytes"),
        (b"x" * 8_000_001, "8,000,001 bytes"),
        (Path("/nowhere/report.json"), "does not exist"),
        (Path("/"), "does not exist"),
    ],
)
def test_bad_source_is_one_line(source: str | bytes | Path, words: str) -> None:
    """Damaged files and pasted text: the place of the fault, in one line."""
    with pytest.raises(ReportError) as caught:
        read_report(source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_are_read_as_the_file_they_came_in() -> None:
    """A caller that keeps a file's bytes reads just these, not the file again."""
    assert read_report(b"x\ty", "a.TSV") == parse_report(
        {"messages": [{"role": "user", "content": "x"}], "response": "y"}
    )
    assert read_report(b'"{",y', "a.csv").messages[0].content == "{"


def test_large_file_is_not_read(tmp_path: Path) -> None:
    """The size is looked at before the content."""
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(70_000_000)
    with pytest.raises(ReportError, match="70,000,000 bytes"):
        read_reports(path)


@settings(deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), min_size=1),
    st.text(min_size=1),
)
def test_text_survives_exactly(prompt: str, response: str) -> None:
    """What was typed is what is kept, code point for code point."""
    data = {"messages": [{"role": "user", "content": prompt}], "response": response}
    if not prompt.strip() or not response.strip() or "\x00" in response:
        with pytest.raises(ReportError):
            read_report(json.dumps(data))
    else:
        report = read_report(json.dumps(data, ensure_ascii=False))
        assert (report.messages[0].content, report.response) == (prompt, response)
        assert read_report(json.dumps(data).encode()) == report


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["messages", "response", "role", "content", "instruction", "output"]), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)))  # fmt: skip
def test_no_input_raises_anything_else(source: str | bytes) -> None:
    """Garbage gives a report or a ReportError, never a traceback."""
    fault = ""
    try:
        read_report(source)
    except ReportError as error:
        fault = str(error)
    assert "\n" not in fault


@pytest.mark.parametrize(("context", "fits"), [(None, True), (12, True), (11, False)])
def test_check_length(context: int | None, fits: bool) -> None:
    """Four prompt tokens and eight new ones need a context of twelve."""
    tokens = tuple(PromptToken(position=i, id=i, text="x", segment="user") for i in range(4))
    case = FailureCase(
        report=parse_report(GOOD),
        prompt=RenderedPrompt(text="xxxx", tokens=tokens, template_hash=""),
        response_ids=(1, 2),
    )
    if fits:
        check_length(case, context, 8)
    else:
        with pytest.raises(ReportError, match=r"4 tokens .* reads at most 11"):
            check_length(case, context, 8)
