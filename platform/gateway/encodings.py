"""Knows the encodings that a body may come in, and undoes them within a bound; knows nothing of what is in it."""

import zlib
from collections.abc import Callable, Mapping

from backports import zstd

from gateway.errors import BadRequest, TooLarge, UnsupportedEncoding

# A zstd frame may look back 8 MiB: what RFC 8878 has every decoder take, and no more memory than that.
ZSTD: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before it was encoded. Never holds more than `limit` bytes and one.

    Raises TooLarge, BadRequest for what is not encoded so, UnsupportedEncoding.
    """
    names = [name.strip().lower() for name in encoding.split(",")]
    coded = [name for name in names if name not in ("", "identity")]
    if not coded:
        return body
    decode = DECODERS.get(coded[0]) if len(coded) == 1 else None
    if decode is None:
        raise UnsupportedEncoding(DECODERS)
    try:
        plain = decode(body, limit + 1)
    except (zlib.error, zstd.ZstdError, EOFError):
        raise BadRequest(f"The body is no valid {coded[0]}.", code="invalid_encoding") from None
    if len(plain) > limit:
        raise TooLarge(f"The body may have {limit} bytes at most, decoded.")
    return plain


def _zlib(body: bytes, most: int) -> bytes:
    """gzip or zlib, whichever it is; or deflate without zlib's frame, which some clients send under that name."""
    try:
        return _inflate(body, most, zlib.MAX_WBITS | 32)
    except zlib.error:
        return _inflate(body, most, -zlib.MAX_WBITS)


def _inflate(body: bytes, most: int, bits: int) -> bytes:
    inflate = zlib.decompressobj(bits)
    plain = inflate.decompress(body, most)
    if not inflate.eof and len(plain) < most:
        raise EOFError
    return plain


def _zstd(body: bytes, most: int) -> bytes:
    frame = zstd.ZstdDecompressor(options=ZSTD)
    plain = frame.decompress(body, most)
    if not frame.eof and len(plain) < most:
        raise EOFError
    return plain


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _zlib, "x-gzip": _zlib, "deflate": _zlib, "zstd": _zstd}
