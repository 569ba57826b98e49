"""Conversations as the model reads them: chat template, token and character offsets.

1. The template is rendered twice: with the conversation, and with a random sentinel in the place of each content.
2. The second text gives the fixed pieces between contents; where outer white space was trimmed is measured the same
   way. Fixed pieces and contents must then make up the first text exactly, so no content is ever searched for.
3. The first text is tokenised once, as in real use (a special token typed by the user is that special token), and the
   tokenizer's offsets are laid over it. Characters no token claims belong to the token after them.

A template is hostile input: it runs in the library's sandbox and in a process of its own (rendering.py), and whatever it
raises becomes one line.
What this does not do: guess. A template that drops, repeats or rewrites a message is refused, and says so.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from core import rendering
from core.errors import TokenMismatchError
from core.judge import OPENS_THINKING
from core.values import FailureCase, FailureReport, Message, PromptToken, RenderedPrompt, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FALLBACK_TEMPLATE = (
    "{{ bos }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""What is used, in words of this template language, when a tokenizer has no chat template."""

_ROWS = "patcher_embedding_rows"
"""Attribute of a tokenizer that `limit` sets."""


@dataclass(frozen=True)
class Turn:
    """What a template puts around an answer: `lead`, white space between the generation prompt and it (the prompt ends before that,
    a model begins with it); `tail`, the text after it; `thinks`, the opening of a thinking block that the generation prompt ends with.
    """

    lead: str
    tail: str
    thinks: str


@dataclass(frozen=True)
class _Range:
    """Code points `[start, end)` of the rendered text that are `content[first : first + end - start]` of a message."""

    message: int
    start: int
    end: int
    first: int


def render(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], add_generation_prompt: bool = True
) -> RenderedPrompt:
    """Return the conversation as tokens, each with its segment and, in a message, its span of the raw content.

    Raises: TokenMismatchError when the template refuses, drops, repeats or rewrites a message.
    """
    template = chat_template(tokenizer)
    text = render_text(tokenizer, messages, add_generation_prompt)
    ranges = _locate_contents(tokenizer, messages, add_generation_prompt, text)
    ids, offsets = _encode(tokenizer, text)
    tokens = _lay_over(tokenizer, messages, text, ranges, ids, offsets)
    digest = hashlib.sha256((template or FALLBACK_TEMPLATE).encode("utf-8", "surrogatepass")).hexdigest()
    return RenderedPrompt(text=text, tokens=tuple(tokens), template_hash=digest, fallback_template=template is None)


def prompt_ids(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], add_generation_prompt: bool = True
) -> list[int]:
    """Return the token ids of the conversation, the same as `render(...).ids`, without working out offsets."""
    return _encode(tokenizer, render_text(tokenizer, messages, add_generation_prompt))[0]


def chat_template(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """Return the tokenizer's chat template, or None when it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return tokenizer.get_chat_template()
    except Exception as error:  # several named templates and no default one
        raise TokenMismatchError(f"the tokenizer's chat template cannot be used: {_one_line(error)}") from error


def render_text(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """Return the conversation's text with the tokenizer's chat template, or the plain fallback without one."""
    if not messages:
        raise TokenMismatchError("a conversation without messages cannot be rendered: add a user message")
    template = chat_template(tokenizer)
    if template is None:
        bos = getattr(tokenizer, "bos_token", None) or ""
        turns = "".join(f"{message.role.capitalize()}: {message.content}\n" for message in messages)
        return (bos if _adds_bos(tokenizer) else "") + turns + ("Assistant:" if add_generation_prompt else "")
    data = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return rendering.render(template, data, add_generation_prompt, tokenizer.special_tokens_map)
    except rendering.TemplateFault as error:
        raise TokenMismatchError(_template_fault(messages, error)) from error


def turn(tokenizer: "PreTrainedTokenizerFast") -> Turn:
    """Return what the tokenizer's template puts around an answer; nothing but a blank before it for the plain fallback, and nothing
    for a template that refuses such a conversation."""
    template = chat_template(tokenizer)
    if template is None:
        return Turn(lead=" ", tail="\n", thinks="")
    return _turn(template, json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _turn(template: str, specials: str) -> Turn:
    mark = f"x{secrets.token_hex(12)}x"
    asked = [{"role": "user", "content": "a"}]
    said = [*asked, {"role": "assistant", "content": mark}]
    try:
        prompt = rendering.render(template, asked, True, json.loads(specials))
        whole = rendering.render(template, said, False, json.loads(specials))
    except rendering.TemplateFault:
        return Turn(lead="", tail="", thinks="")
    between = whole.removeprefix(prompt).partition(mark)[0] if whole.startswith(prompt) else "?"
    opened = OPENS_THINKING.search(prompt)
    return Turn(
        lead=between if not between.strip() else "",
        tail=whole.rpartition(mark)[2],
        thinks=opened.group() if opened else "",
    )


def end_of_turn(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the added token with which the template ends an answer, None where it ends it with none."""
    tail = turn(tokenizer).tail
    if not tail.strip():
        return None
    ids = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    marks = _marks(tokenizer)
    return next((int(one) for one in ids if one in marks), None)


def _marks(tokenizer: "PreTrainedTokenizerFast") -> set[int]:
    """Return the ids of all tokens that were added to the vocabulary; the library calls few of them special."""
    return set(getattr(tokenizer, "added_tokens_decoder", ()))


def _template_fault(messages: Sequence[Message], error: Exception) -> str:
    """Return one line on why the template failed and what to do."""
    what = _one_line(error)
    if messages[0].role == "system" and "system" in what.lower():
        return (
            f"this model's chat template has no system role ({what}): put the system text where the deployment put it, "
            "usually in front of the first user message"
        )
    roles = ", ".join(message.role for message in messages)
    return (
        f"this model's chat template refuses the conversation ({what}; roles: {roles}): check the order of the messages"
    )


def _one_line(error: BaseException) -> str:
    """Return an exception's message on one line, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _adds_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the tokenizer starts plain text with its begin-of-sequence token."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _locate_contents(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], add: bool, text: str
) -> list[_Range]:
    """Return where each content lies in `text`; contents that are empty have no range."""
    places = [index for index, message in enumerate(messages) if message.content]
    marks = {index: f"x{secrets.token_hex(12)}x" for index in places}

    def skeleton(index: int | None = None, lead: str = "", trail: str = "") -> str:
        """Return the text with sentinels for contents, white space around that of message `index`."""
        changed = list(messages)
        for place, mark in marks.items():
            changed[place] = replace(messages[place], content=lead + mark + trail if place == index else mark)
        return render_text(tokenizer, changed, add)

    bare = skeleton()
    pieces = _cut(bare, [marks[index] for index in places], [messages[index].role for index in places])
    expected, ranges = pieces[0], []
    for index, piece in zip(places, pieces[1:], strict=True):
        content = messages[index].content
        first, last = 0, len(content)
        lead = content[: len(content) - len(content.lstrip())]
        trail = content[len(content.rstrip()) :] if lead != content else ""
        if lead:
            first = len(lead) - (len(skeleton(index, lead=lead)) - len(bare))
        if trail:
            last = len(content) - (len(trail) - (len(skeleton(index, trail=trail)) - len(bare)))
        ranges.append(_Range(index, len(expected), len(expected) + last - first, first))
        expected += content[first:last] + piece
    if expected != text:
        raise TokenMismatchError(
            "this model's chat template rewrites the text of a message, so tokens cannot be traced to the report: "
            "check the template, or give the text as the model received it"
        )
    return ranges


def _cut(text: str, marks: list[str], roles: list[str]) -> list[str]:
    """Return the pieces of `text` between the marks, which must each occur once and in order."""
    pieces: list[str] = []
    for number, mark in enumerate(marks):
        n_found = text.count(mark)
        before, found, after = text.partition(mark)
        if n_found != 1 or not found:
            how = (
                "leaves out"
                if n_found == 0 and not any(one in text for one in marks)
                else "leaves out, repeats or reorders"
            )
            raise TokenMismatchError(
                f"this model's chat template {how} the {roles[number]} message (number {number} of those with text), "
                "so the model never read the report as it stands: remove or move that message"
            )
        pieces.append(before)
        text = after
    return [*pieces, text]


def limit(tokenizer: "PreTrainedTokenizerFast", n_rows: int) -> None:
    """Let the tokenizer refuse text with tokens that a model of `n_rows` embedding rows has no weights for."""
    setattr(tokenizer, _ROWS, n_rows)


def _encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids and their code point offsets in `text`, nothing added at either end."""
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # no offsets, text that is no Unicode, or a panic of the library, which is no Exception
        raise TokenMismatchError(f"the tokenizer cannot read the conversation ({_one_line(error)})") from error
    ids, offsets = list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    if not ids:
        raise TokenMismatchError("the conversation has no tokens: give it some text")
    rows = getattr(tokenizer, _ROWS, None)
    if rows is not None and max(ids) >= rows:
        odd = tokenizer.convert_ids_to_tokens(next(one for one in ids if one >= rows))
        raise TokenMismatchError(
            f"the text holds {str(odd)[:40]!r}, a token this model has no weights for: leave it out"
        )
    if any(not 0 <= start <= end <= len(text) for start, end in offsets):
        raise TokenMismatchError("the tokenizer gives offsets outside the text: its tokenizer.json is damaged")
    return ids, offsets


def _lay_over(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    text: str,
    ranges: list[_Range],
    ids: list[int],
    offsets: list[tuple[int, int]],
) -> list[PromptToken]:
    """Return the tokens with segment and span; characters no token claims go to the next one, at the end to the last."""
    covered, claimed = 0, []
    for start, end in offsets:
        claimed.append((min(start, covered), max(end, min(start, covered))))
        covered = max(covered, end)
    if claimed and covered < len(text):
        claimed[-1] = (claimed[-1][0], len(text))
    marks = _marks(tokenizer)
    tokens, waiting = [], 0
    for position, (token_id, (start, end)) in enumerate(zip(ids, claimed, strict=True)):
        while waiting < len(ranges) and ranges[waiting].end <= start:
            waiting += 1
        found = _most_of(ranges, waiting, start, end)
        shown = text[start:end] or str(tokenizer.convert_ids_to_tokens(token_id))
        if found is not None and token_id in marks and offsets[position][0] < found.start < offsets[position][1]:
            found = None  # a mark of the template that takes white space after it along
        if found is None:
            tokens.append(PromptToken(position=position, id=token_id, text=shown, segment="template"))
            continue
        segment: Segment = messages[found.message].role
        shift = found.first - found.start
        low, high = max(start, found.start) + shift, min(end, found.end) + shift
        tokens.append(
            PromptToken(
                position=position, id=token_id, text=shown, segment=segment, message=found.message, start=low, end=high
            )
        )
    return tokens


def _most_of(ranges: list[_Range], first: int, start: int, end: int) -> _Range | None:
    """Return the content that most of `[start, end)` lies in, or None."""
    best, most = None, 0
    for one in ranges[first:]:
        if one.start >= end:
            break
        shared = min(end, one.end) - max(start, one.start)
        if shared > most:
            best, most = one, shared
    return best


def bind(tokenizer: "PreTrainedTokenizerFast", report: FailureReport) -> FailureCase:
    """Return the report as the model read it, with the ids of its response.

    Given `response_ids` must decode to the response. Otherwise the response is tokenised as the continuation of the
    prompt, and by itself where it would merge into the prompt's last token. Raises: TokenMismatchError.
    """
    prompt = render(tokenizer, report.messages)
    if report.response_ids is not None:
        ids = list(report.response_ids)
        largest = getattr(tokenizer, _ROWS, len(tokenizer))
        if any(not 0 <= one < largest for one in ids):
            raise TokenMismatchError(
                f"response_ids holds an id outside the vocabulary of {largest}: leave response_ids out"
            )
        decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        plain = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if report.response.strip() not in (decoded.strip(), plain.strip()):
            raise TokenMismatchError(
                f"response_ids decode to {decoded[:60]!r}, but the response reads {report.response[:60]!r}: "
                "leave response_ids out"
            )
        first = tokenizer.decode(ids[:1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if ids and ids[0] in tokenizer.all_special_ids and not report.response.lstrip().startswith(first.strip()):
            raise TokenMismatchError(
                f"response_ids begin with {first[:40]!r}, which the model did not say but a tokenizer puts before a text: leave it out "
                "(add_special_tokens=False)"
            )
    else:
        ids = continuation_ids(tokenizer, prompt, report.response)
    if not ids:
        raise TokenMismatchError("the response has no tokens: give the answer that should not have come")
    return FailureCase(report=report, prompt=prompt, response_ids=tuple(ids))


def continuation_ids(tokenizer: "PreTrainedTokenizerFast", prompt: RenderedPrompt, response: str) -> list[int]:
    """Return the ids of a response as they follow the prompt's, after the white space that the template puts between the two."""
    return continued(tokenizer, prompt.text, [response])[1][0]


def continued(
    tokenizer: "PreTrainedTokenizerFast", text: str, responses: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt's `text`, and of each response as they follow these; by itself where it would merge into them."""
    ids, lead = _encode(tokenizer, text)[0], turn(tokenizer).lead
    found = []
    for response in responses:
        told = response if response[:1].isspace() else lead + response
        joint = _encode(tokenizer, text + told)[0]
        if joint[: len(ids)] == ids:
            found.append(joint[len(ids) :])
        else:
            found.append(_encode(tokenizer, told)[0] if told else [])
    return ids, found
