"""Start the page: `python app.py [--cases DIR] [--models DIR]`, then open http://127.0.0.1:7860."""

import argparse
import logging
import os
import sys
from pathlib import Path

from platformdirs import user_data_dir

from core.errors import TriageError
from core.offline import forbid_other_hosts
from dashboard.app import serve
from dashboard.memory import keep_small
from dashboard.server import read_auth
from dashboard.session import Roots

DEFAULT_PORT = 7860


def options() -> argparse.Namespace:
    """Return the command line's options."""
    data = Path(user_data_dir("patcher", appauthor=False))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", type=Path, default=data / "cases", help="folder of the case folders, by default %(default)s"
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=data / "models",
        help="folder whose models a browser may name, by default %(default)s",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's needs --auth-file"
    )
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", DEFAULT_PORT))
    parser.add_argument("--auth-file", type=Path, help="file of the analysts who may log in, a line name:password each")
    return parser.parse_args()


def main() -> int:
    """Serve the page until interrupted; 2 for a fault of the options."""
    keep_small()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    chosen = options()
    forbid_other_hosts(chosen.host)
    try:
        roots = Roots(cases=chosen.cases, models=chosen.models)
        page, url = serve(roots, host=chosen.host, port=chosen.port, auth=read_auth(chosen.auth_file))
    except (TriageError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(f"The page is up: {url}", file=sys.stderr)  # noqa: T201
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
