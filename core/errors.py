"""The error tree.

    TriageError                 anything the user or the input is at fault for; its text is one line that says
     |                          what is wrong and what to do, and it is shown as it stands
     |- ReportError             a failure report that cannot be read or lacks something
     |- PromptFolderError       a prompt folder that cannot be read or is too small
     |- ModelLoadError          a model, tokenizer or adapter folder that is missing, unsafe or does not fit
     |- TokenMismatchError      token ids and text that do not belong to each other
     |- AttributionError        scores that are not finite, a target that does not exist
     |- ConfirmationError       repair without a valid confirmation, spans that do not lie in the text
     |- RepairDivergedError     a loss that is not finite, out of memory: says what to try
     |- CaseFileError           a case folder that is damaged, of another version or of other content
     |   '- EvidenceError      evidence or log that differ from what was stored; `result` says how
     |- BusyError               another process holds this case or this device
     '- Stopped                 the analyst asked a stage to end

Everything else that is raised is a fault of ours.
"""

MAX_LENGTH = 2_000
"""Characters of a message; what it quotes is evidence, which may be a megabyte long. Source: unverified choice."""


class TriageError(Exception):
    """A fault of the user or the input; `str()` is one line with the remedy, whatever it quotes; `result` is what the command line
    prints all the same, as plain data.
    """

    def __init__(self, message: str = "", result: object = None) -> None:
        """Keep the message on one line, of bounded length, and writable as UTF-8 (no half of a surrogate pair)."""
        self.result = result
        line = " ".join(message.splitlines()).encode("utf-8", "backslashreplace").decode("utf-8")
        super().__init__(line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH // 2]} … {line[-MAX_LENGTH // 2 :]}")


class ReportError(TriageError):
    """The failure report cannot be used."""


class PromptFolderError(TriageError):
    """The prompt folder cannot be used."""


class ModelLoadError(TriageError):
    """The model, tokenizer or adapter folder cannot be used."""


class TokenMismatchError(TriageError):
    """Token ids, text and offsets do not fit together."""


class AttributionError(TriageError):
    """Attribution is impossible or gave numbers that are not finite."""


class ConfirmationError(TriageError):
    """No valid confirmation, or spans outside the text."""


class RepairDivergedError(TriageError):
    """Training went wrong; the best checkpoint so far is kept."""


class CaseFileError(TriageError):
    """The case folder is damaged or holds something else."""


class EvidenceError(CaseFileError):
    """Evidence or the log of the case was changed; `result` says how."""


class BusyError(TriageError):
    """Another process works on this case or device."""


class Stopped(TriageError):
    """The analyst asked a stage to end."""
