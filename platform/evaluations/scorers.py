"""Whether an answer passes. Runs as a process of its own (`evaluations.judge` starts it), bounded in memory: a regular
expression or a schema is a tenant's, and may take for ever. Knows neither Django nor the network.

Says that it is ready, then speaks JSON Lines: {"scorer", "expected"} → {"problem": null | "…"}, and with an "answer"
→ {"passes": bool, "note": "…" if it could not be told}.
"""

import json
import re
import resource
import sys
from typing import Any

MEMORY = 512 * 2**20  # bytes
NESTED = 200
READY = "ready"  # the first thing it says


def problem(scorer: str, expected: Any) -> str | None:
    """Why nothing can be scored by it."""
    try:
        if scorer == "regex":
            re.compile(expected)
        elif scorer == "json-schema":
            _validator(expected)
    except Exception as error:  # a tenant's mistake, of whatever kind
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None


def passes(scorer: str, expected: Any, answer: str) -> bool:
    """exact: the same but for space around it. contains: in it. regex: found in it. json-schema: JSON that is valid."""
    match scorer:
        case "exact":
            return answer.strip() == str(expected).strip()
        case "contains":
            return str(expected) in answer
        case "regex":
            return re.search(expected, answer) is not None
        case "json-schema":
            return _valid(expected, answer)
    raise ValueError(f"no scorer {scorer!r}")


def _valid(schema: Any, answer: str) -> bool:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return bool(_validator(schema).is_valid(value))


def _validator(schema: Any) -> Any:
    """Draft 2020-12 unless the schema says which. References reach into the schema itself only: nothing is fetched."""
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    for reference in _references(schema):
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError("references may only reach into the schema itself, as in #/$defs/name")
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=Registry())


def _references(schema: Any, depth: int = 0) -> Any:
    if depth > NESTED:
        raise ValueError("it is nested too deeply")
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef"):
                yield value
            yield from _references(value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value, depth + 1)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        if "answer" in asked:
            try:
                told: dict[str, Any] = {"passes": passes(**asked)}
            except Exception as error:
                told = {"passes": False, "note": type(error).__name__}
        else:
            told = {"problem": problem(**asked)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
