"""Knows what is counted. Labels are of this code's making, never a client's or a tenant's words."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REQUESTS = Counter("lorayard_gateway_requests", "Calls answered", ("route", "status"))
DURATION = Histogram("lorayard_gateway_request_seconds", "Until the last byte", ("route",), buckets=SECONDS)
FIRST_TOKEN = Histogram("lorayard_gateway_first_token_seconds", "Until the first token", ("route",), buckets=SECONDS)
TOKENS = Counter("lorayard_gateway_tokens", "Tokens of calls", ("route", "kind"))
CUT = Counter("lorayard_gateway_stream_errors", "Streams that ended with an error event", ("route", "code"))
DISCONNECTS = Counter("lorayard_gateway_disconnects", "Calls whose client went away", ("route",))
SHADOWS = Counter("lorayard_gateway_shadows", "Copies of requests for a rollout's canary", ("outcome",))
UNSEEN = Counter("lorayard_gateway_observations_dropped", "Observations that could not be kept")
UNMETERED = Counter("lorayard_gateway_calls_unmetered", "Calls whose usage could not be kept")
OPEN = Gauge("lorayard_gateway_open", "Answers being sent", ("route",), multiprocess_mode="livesum")
