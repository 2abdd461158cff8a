"""Knows how both ends of the wire are set up: metadata, sizes, keepalive, reconnection; knows no message."""

MAX_MESSAGE = 16 * 1024 * 1024  # bytes; a prompt of a million token ids is a third of it

SIZES = (("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.max_receive_message_length", MAX_MESSAGE))

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *SIZES,
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Pings are answered by threads of gRPC's own, however long a step takes: an engine that answers none for so long
    # hangs, and its open calls end within eight seconds and a bit.
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # An engine that comes back is met within a quarter of a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
)

# A server that does not allow the client's pings answers them with GOAWAY.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *SIZES,
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def authorization(secret: str) -> tuple[str, str]:
    """The metadata entry that every call carries and the server compares in constant time."""
    return ("authorization", f"Bearer {secret}")
