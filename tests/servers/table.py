"""Asks a running server what it does with every parameter, and writes the table of `docs/servers.md`.

    python -m tests.servers.table URL [--model NAME] [--dialect NAME]
    python -m tests.servers.table            only writes the table, from what servers have said before

A parameter goes out under the name that the server has for it, else under our own: what a friendly server ignores shows
in texts that are the same at both ends.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from tests.servers.parameters import ENDS, WARM, ends_of, questions

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[2] / "docs" / "servers.md"
BEGIN, END = "<!-- what servers do, by tests/servers/table.py -->", "<!-- end -->"
SHOWN = {"has an effect": "takes", "ignored": "ignores", "refused": "refuses", "error": "error 5xx", "cannot tell": "?"}


def ask(url: str, model: str | None, dialect: Any) -> dict[str, Any]:
    """What a server does with every parameter, and whether it repeats itself."""
    backend = ServerBackend(url, model=model, dialect=dialect, retry_for=0.0, timeout=120.0)
    identity = backend.identity
    known = identity.dialect
    taken = set(known.fields) | ({name for name in ENDS if backend.refusal({name: ENDS[name][0]}) is None})
    open_fields = {name: name for name in ENDS if name not in taken} | dict(known.fields)
    backend.identity = replace(identity, dialect=replace(known, fields=open_fields, unchangeable={}))
    found = {}
    rows = questions(backend.default_params)
    for name in ENDS:
        try:
            found[name] = effects(backend, rows, [ends_of(name, backend.default_params)])[name]
        except EngineUnavailableError as error:
            found[name] = "error"
            print(f"  {str(error)[:200]}")
        except InputError as error:
            found[name] = "cannot tell"
            print(f"  {error}")
        print(f"{name}: {found[name]}", flush=True)
    repeated = repetition(backend, rows, GenerationParams.of(WARM, backend.default_params))
    return {
        "server": known.name,
        "version": identity.version,
        "effects": found,
        "repeats": {"rows": repeated.rows, "alone": repeated.alone, "beside others": repeated.beside_others},
        "sent": {name: open_fields.get(name, name) for name in ENDS},
    }


def table() -> str:
    """What all servers said that were asked, as Markdown."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "| sent as a field of the request | " + " | ".join(one["server"] for one in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in ENDS:
        cells = []
        for one in found:
            cell = SHOWN.get(one["effects"].get(name, ""), "–")
            sent = one["sent"].get(name, name)
            cells.append(f"{cell} ({sent})" if sent != name and cell == "takes" else cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    repeats = [one["repeats"] for one in found]
    for kind in ("alone", "beside others"):
        lines.append(f"| same seed again, {kind} | " + " | ".join(f"{r[kind]} of {r['rows']}" for r in repeats) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the table into the page."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--dialect")
    given = parser.parse_args()
    if given.url is not None:
        said = ask(given.url, given.model, given.dialect)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{said['server']}.json").write_text(json.dumps(said, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
