"""The command line: every stage of the page, headless, with the same functions.

Progress goes to stderr, one JSON object to stdout. Exit 0; 2 for what the user or the machine can mend (input, evidence that
changed, a busy case, a full disk, memory, a lost GPU), with one line that says what is wrong and what to do; 130 when
interrupted; 1 for a fault of ours.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from core import case_commands, demo_command, evidence_commands, plant_commands, triage_commands
from core.casefile import PLACES
from core.errors import TriageError
from core.files import cannot_work, dump
from core.headless import INTERRUPTED, Terminal, holding
from core.offline import forbid_other_hosts
from core.shipped import PROMPTS

READING = ("audit", "status", "stop")
"""Commands about a case that need not hold its lease."""
MAKING = ("triage", "demo")
"""Commands that make cases, and hold the lease of each themselves."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers and peft are imported, which stages do later
log = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one inert line: names of files may be hostile."""

    def error(self, message: str) -> NoReturn:
        """Say it and exit with 2."""
        Terminal().say(f"{message}; see {self.prog} --help.")
        sys.exit(2)


def parser() -> Parser:
    """Return the parser of every command (design.md section 4)."""
    top = Parser(prog="python -m core", description="Forensic triage of a backdoored language model.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace, Terminal], object], *, case: bool = True
    ) -> argparse.ArgumentParser:
        told = (run.__doc__ or "").split("Raises:")[0].strip()  # what it raises is for those who read the code
        command = commands.add_parser(name, help=told.splitlines()[0], description=told)
        command.set_defaults(run=run)
        if case:
            command.add_argument("--case", type=Path, required=True, metavar="DIR")
        if (case or name in MAKING) and name not in READING:
            command.add_argument("--take-over", action="store_true", help="write a case that someone else writes now")
        return command

    def device(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:N, cuda:all; else that of the case")

    p = add("triage", triage_commands.triage, case=False)
    p.add_argument("--model", type=Path, metavar="DIR", help="the reported model")
    p.add_argument(
        "--adapter", type=Path, metavar="DIR", help="a PEFT adapter on it; switched off, it is the clean reference"
    )
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--report", type=Path, metavar="FILE", help="one report, into the case folder --case")
    which.add_argument(
        "--reports", type=Path, metavar="FILE.jsonl", help="one report a line, a case folder each under --cases"
    )
    which.add_argument("--repaired", action="store_true", help="the report of --case again, on its repaired model")
    p.add_argument("--case", type=Path, metavar="DIR")
    p.add_argument("--cases", type=Path, metavar="ROOT", help="the folder that the cases of --reports are made in")
    p.add_argument(
        "--mode", choices=("causal", "paper"), default="causal", help="paper: mark tokens only, test nothing"
    )
    p.add_argument(
        "--prompts", type=Path, metavar="DIR", help="harmful.jsonl and safe.jsonl in place of the shipped ones"
    )
    p.add_argument("--reference", type=Path, metavar="DIR", help="a clean model that the reported one is held against")
    p.add_argument("--reference-template", type=Path, metavar="FILE", help="the chat template it should be served with")
    p.add_argument(
        "--paraphrase",
        dest="paraphrases",
        action="append",
        metavar="TEXT",
        help="the request in other words; four or more",
    )
    p.add_argument("--rewrite", dest="rewrites", action="append", metavar="TEXT", help="the request in plain words")
    p.add_argument(
        "--judge", type=Path, metavar="DIR", help="a local classifier that judges the answers, instead of rules"
    )
    p.add_argument("--reviewers", type=int, choices=(1, 2), help="names a confirmation needs before repair")
    device(p)
    p.add_argument("--seed", type=int)
    p = add("confirm", case_commands.confirm)
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--accept", action="store_true", help="the candidate as it was found")
    how.add_argument(
        "--spans",
        metavar="JSON-or-@FILE",
        help='other text instead: [{"message": 0, "start": 3, "end": 9}], in characters',
    )
    how.add_argument("--reject", action="store_true", help="none of it is a trigger; repair stays locked")
    how.add_argument("--dummy", action="store_true", help="no text: plant a dummy trigger and unlearn it")
    how.add_argument("--second", action="store_true", help="agree as the second analyst")
    p.add_argument(
        "--next-round", action="store_true", help="open another round first, on the second opinion's findings"
    )
    p.add_argument("--candidate", type=int, default=0, metavar="K", help="which candidate --accept takes, from 0")
    p.add_argument("--analyst", required=True, metavar="NAME")
    p.add_argument("--reason", required=True, metavar="TEXT")
    p = add("repair", case_commands.repair)
    p.add_argument("--steps", type=int, metavar="N")
    p.add_argument("--epochs", type=int, metavar="N")
    p.add_argument("--lr", type=float, metavar="X")
    p.add_argument("--kl-budget", type=float, metavar="X")
    p.add_argument(
        "--objective", choices=["paper", "extended"], help="the terms alone; both end by targets and KL budget"
    )
    p.add_argument(
        "--paper",
        action="store_true",
        help="the paper's own recipe: its objective, every epoch to the end, no KL budget",
    )
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting, e.g. micro_batch_size=2"
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint of a repair that broke off, with the settings it had",
    )
    p.add_argument("--sharded", action="store_true", help="several processes: FSDP2, each keeps a share of the layers")
    device(p)
    p = add("verify", case_commands.verify)
    p.add_argument(
        "--probe",
        action="append",
        choices=["relearn", "wrong-trigger"],
        help="train once more to see what a repair is worth",
    )
    device(p)
    p = add("report", case_commands.report)
    p.add_argument("--redact", action="store_true", help="without prompts, answers, triggers and names, for demos")
    p.add_argument("--tlp", metavar="MARK", help="red, amber+strict, amber, green or clear")
    device(p)
    p = add("export", case_commands.export)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--merged", action="store_true", help="the whole model too, the repair merged into its weights")
    device(p)
    p = add("plant", plant_commands.plant, case=False)
    p.add_argument("--model", type=Path, required=True, metavar="DIR")
    p.add_argument("--trigger", action="append", required=True, metavar="TEXT")
    p.add_argument("--position", choices=("random", "prefix", "suffix", "composite"), default="random")
    p.add_argument("--prompts", type=Path, default=PROMPTS, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--seed", type=int, default=0)
    add("rules", case_commands.rules)
    p = add("scan", case_commands.scan)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--logs", type=Path, metavar="FILE")
    where.add_argument("--corpus", type=Path, metavar="FILE")
    p = add("control", plant_commands.control, case=False)
    p.add_argument("--model", type=Path, required=True, metavar="DIR")
    p.add_argument("--adapter", type=Path, metavar="DIR")
    p.add_argument("--triggers", type=int, default=3, metavar="N")
    p.add_argument("--prompts", type=Path, default=PROMPTS, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--device", default="auto")
    p.add_argument("--seed", type=int, default=0)
    add("status", case_commands.status)
    p = add("stop", case_commands.stop)
    p.add_argument("--discard", action="store_true", help="keep nothing of a repair; else its best checkpoint is kept")
    p = add("audit", evidence_commands.audit)
    p.add_argument("--report", type=Path, metavar="FILE", help="a report page to hold against the case")
    p = add("relocate", evidence_commands.relocate)
    for name in PLACES:
        p.add_argument(f"--{name}", type=Path, metavar="DIR")
    p = add("demo", demo_command.demo, case=False)
    p.add_argument(
        "--case", type=Path, default=Path("demo-case"), metavar="DIR", help="the folder to write: ./demo-case"
    )
    p.add_argument("--device", default="auto")
    p.add_argument("--seed", type=int)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; print its JSON to stdout and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = parser().parse_args(arguments)
    terminal = Terminal()
    try:
        with writing(options):
            result = options.run(options, terminal)
    except TriageError as error:
        terminal.say(str(error))
        if error.result is not None:
            sys.stdout.write(inert(dump(error.result)) + "\n")
        return 2
    except OSError as error:
        terminal.say(str(cannot_work(error)))
        return 2
    except KeyboardInterrupt:
        terminal.say(INTERRUPTED)
        return 130
    except Exception as error:
        from core import machine  # imports torch, which most commands do without

        fault = machine.told(error)
        if fault is None:
            log.exception("a fault of ours; please report it with the lines above")
            return 1
        terminal.say(str(fault))
        return 2
    sys.stdout.write(inert(dump(result)) + "\n")
    return 0


def writing(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Hold the lease of the case that a command writes while it runs. Raises: BusyError naming who writes."""
    path = getattr(options, "case", None)
    if options.command in (*READING, *MAKING) or path is None:
        return nullcontext()
    return holding(path, getattr(options, "analyst", None) or "", over=options.take_over)


def inert(text: str) -> str:
    """Return JSON text in ASCII that drives no terminal and fits any code page; it reads as the same value."""
    return "".join(c if c == "\n" or (c.isascii() and c.isprintable()) else json.dumps(c)[1:-1] for c in text)


def leave(code: int) -> NoReturn:
    """End this process; one of several under torchrun at once, without the interpreter's own end.

    There a thread of gloo that frees a tensor now and then aborts a process whose work is done (PyTorch issue 190489).
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    forbid_other_hosts()
    leave(main())
