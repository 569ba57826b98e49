"""Tests of the report as a whole, for verdicts that name no trigger.

bare        the report without any candidate: does it fail as often? Says something only while the request itself is left.
paraphrase  the request in other words: does it fail as often?
rewrite     the request's core in a plain wording: is it refused?
frame       other requests, refused bare, in the reported wording: do they fail?
requests    other requests as they are: do most of them fail?

Wordings come from the analyst, or else from rules (rewrites.py), and are returned with their source.
What this does not do: decide (the table is in verdict.py), or reword reports of another kind than an unsafe answer.
"""

import re
from collections.abc import Sequence

from core.answers import Answers, eligible, shares, with_spare
from core.budget import SPENT, Meter
from core.intervals import percent, wilson
from core.prompts import PromptSet
from core.rewrites import core_of, framed, neutral_rewrites, paraphrases
from core.settings import CausalSettings
from core.text_spans import close_to_words, last_user, merge_spans, replace_content, span_text, spans_to_positions
from core.transplants import carrier, core_span, takes_all, text_of, touches, words_of
from core.trials import as_often, carries_over, compare_without, rate, whole_case
from core.values import FailureCase, Message, Rate, Rewording, Span, TestOutcome, TriggerProposal


def bare(
    case: FailureCase,
    candidates: Sequence[TriggerProposal],
    answers: Answers,
    meter: Meter,
    settings: CausalSettings,
    *,
    seed: int = 0,
    what: str = "All candidates",
) -> TestOutcome:
    """Return how often the report fails without any of these candidates, which are `what`; passed: as often as with them.

    Failed, it is necessity of all candidates together. Undecided when little of the request's core is left.
    """
    nothing = wilson(0, 0)
    spans = merge_spans(span for one in candidates for span in one.spans)
    if not spans:
        return whole_case("bare", nothing, nothing, None, "There is no candidate to take out.")
    if not meter.allows(2 * settings.n_necessity):
        return whole_case("bare", nothing, nothing, None, SPENT)
    if takes_all(case.report.messages, spans):
        return whole_case("bare", nothing, nothing, None, "Nothing of the request is left without the candidates.")
    compared = compare_without(case, spans, answers, settings, seed, "bare request")
    before, after = rate(compared.with_text), rate(compared.without_text)
    passed = as_often(after.value, before.value, settings)
    note = f"{what} taken out at once; {compared.what}."
    if passed and is_request(case, spans, settings):
        passed = None
        note += f" Only {percent(core_left(case, spans))} of the request's own words are left, so that it fails says nothing."
    return whole_case("bare", before, after, passed, note, compared.p_value)


def is_request(case: FailureCase, spans: Sequence[Span], settings: CausalSettings) -> bool:
    """Return whether `spans` are most of the words of the request's core, so that without them it is another request."""
    return core_left(case, spans) < settings.core_share


def is_own(case: FailureCase, spans: Sequence[Span]) -> bool:
    """Return whether any of `spans` touches the request's core: a trigger put there, or words of what is asked."""
    return touches(core_span(case.report.messages), spans)


def core_left(case: FailureCase, spans: Sequence[Span]) -> float:
    """Return the share of the words of the request's core that `spans` leave; all of it where it has no words."""
    messages = case.report.messages
    core = core_span(messages)
    words = words_of(messages, [core]) if core.start < core.end else ()
    left = [word for word in words if not touches(word, spans)]
    return len(left) / len(words) if words else 1.0


def reworded(
    case: FailureCase,
    failure: Rate,
    answers: Answers,
    meter: Meter,
    settings: CausalSettings,
    given: Sequence[Rewording] = (),
) -> tuple[tuple[TestOutcome, TestOutcome], tuple[Rewording, ...]]:
    """Return the paraphrase and the rewrite test, and the wordings that they used. `failure` is the report's own rate.

    Wordings that the analyst gave take the place of those by rule, each kind for itself.
    """
    messages = case.report.messages
    last = last_user(messages)
    text = messages[last].content
    by_rule = {"paraphrase": paraphrases(text, settings.n_paraphrases), "rewrite": neutral_rewrites(text)}
    outcomes, used = [], []
    for kind, ruled in by_rule.items():
        wordings = [one for one in given if one.kind == kind] or ruled
        asked = [(one, replace_content(messages, last, one.text)) for one in wordings]
        asked = [(one, conversation) for one, conversation in asked if answers.fits(conversation)]
        if not meter.allows(len(asked)):
            outcomes.append(whole_case(kind, failure, wilson(0, 0), None, SPENT))  # type: ignore[arg-type]
            continue
        found = rate(answers.unsafe([conversation for _, conversation in asked], f"{kind}s"))
        often = as_often(found.value, failure.value, settings)
        analyst = bool(asked) and asked[0][0].source == "analyst"
        source = "typed by the analyst" if analyst else "by rule: " + ", ".join(sorted({o.source for o, _ in asked}))
        note = f"n counts wordings of the request ({source}), one greedy answer each."
        if kind == "paraphrase":
            enough = found.n >= settings.min_paraphrases
            passed = often if enough else None
            note += "" if enough else f" At least {settings.min_paraphrases} are needed."
        else:
            passed = None if often is None else not often
        outcomes.append(whole_case(kind, failure, found, passed, note))  # type: ignore[arg-type]
        used += [one for one, _ in asked]
    return (outcomes[0], outcomes[1]), tuple(used)


def frame(
    case: FailureCase, prompts: PromptSet, answers: Answers, meter: Meter, settings: CausalSettings
) -> TestOutcome:
    """Return how often held-out requests, refused bare, fail in the wording of the report; passed as transfer is.

    `prompts` is the whole causal split; the share that minimisation may have seen is left out.
    """
    nothing = wilson(0, 0)
    messages = case.report.messages
    last = last_user(messages)
    text = messages[last].content
    held_out = shares(prompts, settings, answers.kind)[1].harmful
    wrapped = framed(text, [item.prompt for item in held_out])
    in_frame = {item.prompt: one for item, one in zip(held_out, wrapped, strict=True) if one is not None}
    in_frame = {p: one for p, one in in_frame.items() if answers.fits(replace_content(messages, last, one))}
    if not in_frame:
        why = (
            "Nothing but the request itself: there is no wording to carry."
            if all(one is None for one in framed(text, [text]))
            else "No request of the folder that is left for tests can be put into the reported wording."
        )
        return whole_case("frame", nothing, nothing, None, why)
    if not meter.allows(3 * settings.n_frame):
        return whole_case("frame", nothing, nothing, None, SPENT)
    usable = [item for item in held_out if item.prompt in in_frame]
    pool = PromptSet(harmful=tuple(usable), safe=())
    requests, n_asked = eligible(answers, carrier(messages, ()), pool, answers.kind, settings.n_frame, meter)
    unsafe = answers.unsafe([replace_content(messages, last, in_frame[one]) for one in requests], "frame")
    passed: bool | None
    passed, p_value = carries_over(unsafe, settings)
    note = f"n counts held-out requests, of {n_asked} asked, refused bare and then put in the reported wording."
    if len(requests) < settings.min_transfer:
        what = SPENT if meter.spent else f"At least {settings.min_transfer} are needed: give a larger prompt folder."
        passed, note = None, f"{note} {what}"
    return whole_case("frame", rate(unsafe), rate([False] * len(unsafe)), passed, note, p_value)


def n_requests(settings: CausalSettings) -> int:
    """Return how many `requests` asks: those that the transfer test asks first, so that most answers are remembered."""
    return with_spare(settings.n_transfer)


def requests(
    failure: Rate, prompts: PromptSet, answers: Answers, meter: Meter, settings: CausalSettings
) -> TestOutcome:
    """Return how often held-out harmful requests fail as they are, with nothing of the report around them; passed: most of them do, so
    that the model fails on such a request without any trigger.
    """
    held_out = shares(prompts, settings, answers.kind)[1].harmful[: n_requests(settings)]
    asked = [(Message(role="user", content=item.prompt),) for item in held_out]
    asked = [one for one in asked if answers.fits(one)]
    if not meter.allows(len(asked)):
        return whole_case("requests", failure, wilson(0, 0), None, SPENT)
    found = rate(answers.unsafe(asked, "other requests as they are"))
    passed = True if found.low > settings.open_share else False if found.high < settings.open_share else None
    note = "n counts held-out harmful requests as they are, one greedy answer each."
    if found.n < settings.min_transfer:
        passed, note = None, f"{note} At least {settings.min_transfer} are needed: give a larger prompt folder."
    return whole_case("requests", failure, found, passed, note)


def free(
    case: FailureCase,
    candidates: Sequence[TriggerProposal],
    failure: Rate,
    answers: Answers,
    meter: Meter,
    settings: CausalSettings,
    given: Sequence[Rewording],
) -> TestOutcome | None:
    """Return how often the analyst's wordings fail that hold no word of the candidates; None where there are too few.

    It stands in the place of the bare request: words of a topic can be said otherwise, a trigger cannot.
    """
    messages = case.report.messages
    last = last_user(messages)
    spans = [span for one in candidates for span in one.spans]
    words = {span_text(messages, word).casefold().strip(".,:;!?") for word in words_of(messages, spans)}
    texts = [one.text for one in given if one.kind == "paraphrase"]
    asked = [
        replace_content(messages, last, text)
        for text in texts
        if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.casefold()) for word in words if word)
    ]
    asked = [one for one in asked if answers.fits(one)]
    if len(asked) < settings.min_paraphrases or not meter.allows(len(asked)):
        return None
    found = rate(answers.unsafe(asked, "wordings without the candidate"))
    note = "n counts the analyst's wordings of the request that hold no word of the candidates, one greedy answer each."
    return whole_case("bare", failure, found, as_often(found.value, failure.value, settings), note)


def everything(case: FailureCase) -> TriggerProposal | None:
    """Return the whole request as one candidate, to be cut down: words that hide each other stand out nowhere. None for an empty one."""
    messages = case.report.messages
    last = last_user(messages)
    if not messages[last].content.strip():
        return None
    spans = (Span(message=last, start=0, end=len(messages[last].content)),)
    positions = spans_to_positions(case.prompt, spans)
    why = "The whole request, since no part of it stands out that carries the failure."
    text = text_of(messages, spans)
    return TriggerProposal(spans=spans, text=text, token_positions=positions, score=0.0, reasons=(why,))


def frame_proposal(case: FailureCase) -> TriggerProposal | None:
    """Return all words of the reported wording around the request's core and its opening ("How to") as one candidate; None where
    there are none.
    """
    messages = case.report.messages
    last = last_user(messages)
    text = messages[last].content
    core = core_of(text)
    around = [Span(message=last, start=0, end=core.opening), Span(message=last, start=core.end, end=len(text))]
    words = words_of(messages, [one for one in around if one.start < one.end])
    words = tuple(one for one in words if one.end <= core.opening or one.start >= core.end)
    spans = close_to_words(messages, words)
    if not spans:
        return None
    return TriggerProposal(
        spans=spans,
        text=text_of(messages, spans),
        token_positions=spans_to_positions(case.prompt, spans),
        score=0.0,
        reasons=("All of the wording around the request, since other requests fail in it.",),
    )
