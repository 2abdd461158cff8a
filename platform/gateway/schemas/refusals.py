"""Knows how what a request says wrongly is named in OpenAI's own words; never what a request may say."""

from pydantic_core import ErrorDetails

from gateway.errors import BadRequest

TAG = "\0"  # marks the parts of a location that name a branch of a union; no JSON name that we accept holds it


def named(error: ErrorDetails) -> BadRequest:
    """Of pydantic's first finding: the parameter as OpenAI writes it, such as messages[0].content."""
    param = ""
    for part in error["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not part.startswith(TAG):
            param += f".{part}" if param else part
    param = clean(param)
    match error["type"]:
        case "missing":
            return BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        case "extra_forbidden":
            return BadRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    code = "invalid_type" if error["type"].endswith("_type") else "invalid_value"
    return BadRequest(f"Invalid value for '{param}': {error['msg']}.", param=param, code=code)


def unsupported(param: str) -> BadRequest:
    return BadRequest(f"'{param}' is not supported with this value.", param=param, code="unsupported_parameter")


def clean(param: str) -> str:
    """A name that a client made up, fit to be sent back."""
    return "".join(character for character in param[:200] if character.isprintable())
