"""Knows where a request may carry a key: as OpenAI's clients send it, as Azure's do, and as Anthropic's do."""

from collections.abc import Mapping

HEADERS = ("api-key", "x-api-key")


def token_of(headers: Mapping[str, str]) -> str | None:
    """The key as it was sent, unverified: `Authorization: Bearer` first. headers: by lower-case or any names.

    None where nothing is said; "" where what is said is no bearer's token.
    """
    authorization = headers.get("authorization")
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    given = next((value for name in HEADERS if (value := headers.get(name)) is not None), None)
    return given.strip() if given is not None else None if authorization is None else ""
