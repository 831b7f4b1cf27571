"""
What `deploy` and the runtime share: paths, headers, metric names, exit codes.  Nouns only.
"""

# Files of a bundle, under /var/lib/slipway/slots/<slot>/
CONFIG_FILE = "config.yml"  # RuntimeConfig of the release; overrides the host's file
GOLDEN_FILE = "golden.jsonl"  # one {"prompt" or "messages", "max_tokens", "expected"} a line
MODEL_LINK = "model"  # symlink to the weights
VENV_LINK = "venv"  # symlink to the venv of the release's lock

# Environment of the unit
ENV_SLOT = "SLIPWAY_SLOT"  # blue or green
ENV_SOCKET = "SLIPWAY_SOCKET"  # Unix socket to listen on
ENV_RELEASE_DIR = "SLIPWAY_RELEASE_DIR"
ENV_HOST_CONFIG = "SLIPWAY_HOST_CONFIG"  # /etc/slipway/runtime.yml
ENV_API_TOKENS = (
    "SLIPWAY_API_TOKENS"  # comma-separated bearer tokens; empty or unset: none required
)
# Number of tokens that the fleet file asks for; with any other number the start fails.
ENV_API_TOKENS_COUNT = "SLIPWAY_API_TOKENS_COUNT"
ENV_KEYS_FILE = "SLIPWAY_KEYS_FILE"  # /etc/slipway/keys.json; it may be missing
ENV_HOST_KEY_FILE = "SLIPWAY_HOST_KEY_FILE"  # /etc/slipway/host_key: SHA-256 of the host's token

# HTTP
LIVEZ, READYZ, HEALTHZ, METRICS = "/livez", "/readyz", "/healthz", "/metrics"
GENERATE, CHAT, COMPLETIONS = "/generate", "/v1/chat/completions", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS, TOKENIZE, DETOKENIZE = "/v1/models", "/tokenize", "/detokenize"
MODEL = "/v1/models/{id}"
OPENAPI, DOCS = "/openapi.json", "/docs"
GENERATE_ROUTES = (GENERATE, CHAT, COMPLETIONS)
# HAProxy forwards these from everywhere.
PUBLIC_ROUTES = (*GENERATE_ROUTES, EMBEDDINGS, MODELS, TOKENIZE, DETOKENIZE, OPENAPI, DOCS)
# Of MODEL, as clients write it: OpenAI's escapes the slash of a name.
MODEL_PATH = r"^/v1/models/[A-Za-z0-9](?:[A-Za-z0-9._+/-]|%2[BbFf]){0,127}$"
MONITORING_ROUTES = (LIVEZ, READYZ, HEALTHZ, METRICS)  # from `service.monitoring_networks` only
MAX_BODY_BYTES = 8 << 20
UPLOAD_TIMEOUT_S = 30.0  # from the head of a request to its whole body
VERSION_HEADER = "x-slipway-version"
SLOT_HEADER = "x-slipway-slot"
# The code of a refusal that is sent before the whole request has come.
UNREAD_HEADER = "x-slipway-unread"
REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-s"  # seconds that the client waits for the whole answer

# Metrics; each has the labels version and slot
REQUESTS_TOTAL = "slipway_http_requests_total"  # also: route, code; one per answered request
# Of those, each with a 5xx that is the client's doing; also: route, reason (one of EXCUSES)
EXCUSED_TOTAL = "slipway_http_excused_total"
QUEUE_FULL, CLIENT_DEADLINE = EXCUSES = ("queue_full", "client_deadline")
REQUEST_SECONDS = "slipway_http_request_seconds"  # histogram, also: route
FIRST_TOKEN_SECONDS = "slipway_first_token_seconds"  # noqa: S105 - a histogram
TOKENS_TOTAL = "slipway_generated_tokens_total"
QUEUE_REQUESTS = "slipway_queue_requests"  # gauge
BATCH_REQUESTS = "slipway_batch_requests"  # histogram: requests a batch
PROMPT_TOKENS_TOTAL = "slipway_prompt_tokens_total"  # computed
CACHED_TOKENS_TOTAL = "slipway_cached_tokens_total"  # prompt tokens found in the prefix cache
KV_PAGES_USED = "slipway_kv_pages_used"  # gauge
KV_PAGES = "slipway_kv_pages"  # gauge
OOM_SPLITS_TOTAL = "slipway_memory_splits_total"
# Of each API key; also: key, at most 100 names and "other"
KEY_REQUESTS_TOTAL = "slipway_key_requests_total"  # also: code
KEY_PROMPT_TOKENS_TOTAL = "slipway_key_prompt_tokens_total"
KEY_CACHED_TOKENS_TOTAL = "slipway_key_cached_tokens_total"  # of them in the prefix cache
KEY_GENERATED_TOKENS_TOTAL = "slipway_key_generated_tokens_total"
KEYS_VERSION = "slipway_keys_version"  # gauge: of the list of API keys in force; 0: none
KEYS_REJECTED = "slipway_keys_rejected"  # gauge: 1 while the file of keys is not valid

# Exit codes of `python -m runtime`
EXIT_OK = 0  # drained after SIGTERM
EXIT_CONFIG = 78  # EX_CONFIG: a file or key is wrong; a restart will not help
EXIT_ENGINE = 70  # EX_SOFTWARE: the engine died or did not answer the warm-up
