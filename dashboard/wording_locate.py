"""The sentences of step 3: methods and targets, the tokens that stand out, and how far the scores are to be trusted."""

from core.report_text import duration
from core.values import LocateResult
from dashboard.wording import beside

METHOD = "Method"
TARGET = "Explain"
FIRST_K = "First tokens"
PICK_TOKENS = "Choose the tokens of the answer to explain, then press Explain."
PICKER = "reported answer, choose the tokens to explain"
TOO_FEW_TOKENS = "First tokens: type a number of 1 or more."
EXPLAIN = "Explain"
TEST_CANDIDATES = "Test all candidates"
TEST_CANDIDATE = "Test selected"
EDIT_CANDIDATE = "Edit selected"
NOT_LOCATED_YET = "Not located yet"
LOCATING = "Locating"
METHOD_NAMES = {
    "paper": "gradient norm (paper)",
    "gradient_norm": "gradient norm",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
METHOD_HELP = {
    "paper": "How strongly the whole answer reacts to each token. One backward pass; unsigned.",
    "gradient_norm": "How strongly what is explained reacts to each token. Unsigned.",
    "gradient_x_input": "First-order effect of each token. Signed.",
    "integrated_gradients": "Effect of each token along the path from an average token. Signed; watch the gap.",
    "occlusion": "What the log-likelihood of what is explained loses when the token is deleted. Signed, in nats.",
}
TARGET_NAMES = {
    "contrast": "this answer, not a refusal",
    "response": "the whole answer",
    "first_k": "the first tokens of the answer",
    "tokens": "selected tokens of the answer",
}
OWN_WORDINGS = "Your own wordings"
OWN_WORDINGS_HELP = (
    "Used in the tests of the whole report instead of rule-made wordings, which work for English only. One per line."
)
PARAPHRASES = "The request in other words (four or more)"
REWRITES = "The request in plain words"
REFERENCE_TEMPLATE = "Chat template it should have been served with"
TABLE_TWIN = "Token table"
TOKEN_TABLE = "Tokens"
TOKEN_COLUMNS = [
    {"key": "position", "label": "#", "kind": "number"},
    {"key": "text", "label": "token", "kind": "mono"},
    {"key": "id", "label": "id", "kind": "number"},
    {"key": "segment", "label": "segment", "kind": "text"},
    {"key": "span", "label": "span", "kind": "number", "title": "message:start–end, in code points of the raw text"},
    {"key": "score", "label": "score", "kind": "number"},
    {"key": "rank", "label": "rank", "kind": "number"},
    {"key": "cluster", "label": "cluster", "kind": "text"},
    {"key": "adaptive", "label": "adaptive", "kind": "text", "title": "adaptive clusters of all methods run so far"},
]
CANDIDATES = "Candidates"
CANDIDATE_COLUMNS = [
    {"key": "number", "label": "#", "kind": "number"},
    {"key": "text", "label": "text", "kind": "mono"},
    {"key": "units", "label": "parts", "kind": "number"},
    {"key": "score", "label": "share", "kind": "number", "title": "share of the total score"},
    {"key": "reasons", "label": "why", "kind": "text"},
]
NO_CANDIDATES = "No candidate: nothing in the prompt stands out."
BOUNDARY = "cluster boundary"
POSITION_AXIS = "token position"
NO_MAP = "No picture for this method."
WIDE_GAP = "gap too wide: take these scores with care"
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")

# -- names ----------------------------------------------------------------------------------------------


def method_name(name: str) -> str:
    """The method as the page calls it."""
    return METHOD_NAMES.get(name, name)


def target_name(kind: str) -> str:
    """The target as the page calls it."""
    return TARGET_NAMES.get(kind, kind)


def cluster_word(label: int) -> str:
    """Cluster label as a word."""
    return {1: "stands out", 0: "", -1: "not scored"}.get(label, str(label))


def picture(located: LocateResult) -> str:
    """The picture's method, and what its rings mean where it has any."""
    name = {"umap": "UMAP of response profiles", "pca": "PCA of response profiles"}.get(located.projection)
    rings = "; rings: adaptive cluster" if 1 in located.adaptive_labels else ""
    return f"{name}: near means alike{rings}" if name else f"by position{rings}"


def score_axis(located: LocateResult) -> str:
    """Axis title of the scores."""
    return "effect, nats" if located.method == "occlusion" else "score"


# -- sentences ------------------------------------------------------------------------------------------


def _count(n: int) -> str:
    return _NUMBERS[n] if n < len(_NUMBERS) else str(n)


def stand_out(n: int) -> str:
    """Headline of step 3: 'Four tokens stand out'."""
    if n == 0:
        return "No token stands out"
    return f"{_count(n)} token{'s' if n != 1 else ''} stand{'s' if n == 1 else ''} out"


def located(result: LocateResult) -> str:
    """Headline of step 3."""
    return stand_out(sum(1 for label in result.labels if label == 1))


def trust(result: LocateResult) -> str:
    """The trust strip: completeness gap, adaptive clusters, agreement with other methods, baseline, cost."""
    parts = []
    if result.completeness_gap is not None:
        parts.append(f"gap {100 * result.completeness_gap:.1f} %")
    n, n_methods = sum(label == 1 for label in result.adaptive_labels), len(result.agreement) + 1
    if n_methods > 1:
        parts.append(f"{stand_out(n).lower()} by {n_methods} methods together")
    parts += [f"rank correlation with {method_name(name)} {value:.2f}" for name, value in result.agreement.items()]
    if result.baseline:
        parts.append(f"baseline {result.baseline}")
    parts.append(f"{result.model_calls} sequences in {result.batches} forward passes, {duration(result.seconds)}")
    return beside(parts)


def still_running(wanted: str, shown_method: str) -> str:
    """What is shown while the wanted method is still at work."""
    return f"Showing {method_name(shown_method)} while {method_name(wanted)} is running."
