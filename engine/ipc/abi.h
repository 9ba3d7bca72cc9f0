/* The shared-memory ABI between an nginx worker and an engine: every byte that crosses.
 *
 * A session is one SOCK_SEQPACKET connection, over which each side sends one hello and its file
 * descriptors, and then nothing: from there on the socket only tells, by its end, that the peer is
 * gone. Each side creates one region (a sealed memfd that only it can write) and one event. A
 * region holds what its creator says: a ring of descriptors, the payloads they point to, and how
 * far the creator has read the peer's region. The engine's third memfd, the same for all
 * sessions, is its state.
 *
 * An event is a pair of datagram sockets: its creator sleeps on one, the peer gets the other and
 * sends a byte to wake it. (Not an eventfd, whose one open file both sides would share: a peer that
 * clears O_NONBLOCK there and fills the counter blocks whoever writes to it, and one that empties
 * it blocks whoever reads. MSG_DONTWAIT on an own socket never blocks.)
 *
 *   worker's region (W→E)                 engine's region (E→W)
 *     header                                header
 *     control: tail, head, …                control: tail, head, …
 *     ring:    SUBMIT RELEASE CANCEL …      ring:    COUNTED TOKEN … FINISHED
 *     arena:   payloads                     arena:   payloads
 *
 * Rules, for both sides:
 *   - The peer is hostile: read a word of its region once, copy a descriptor or a payload before
 *     looking into it, check every number against private copies of the sizes.
 *   - Indices are free-running; slot = index & (entries − 1). Own indices live in private memory
 *     and are only published. 0 <= tail − head <= entries or the session is dropped.
 *   - Every type of the worker but CANCEL and REVOKE leaves `slots` descriptors of its ring free,
 *     so that these two find room in a full one.
 *   - A payload lies in one piece in the arena at pos & (size − 1), pos free-running and rising,
 *     64-byte aligned; the consumer copies it out at once and publishes arena_head, which is the
 *     acknowledgement that lets the owner reuse the bytes. Nobody writes into the other's arena.
 *   - Any breach, and the end of the socket, drops the session and everything of it.
 *
 * All integers little-endian (both sides run on one machine). No pointer, no C type of varying
 * size; static asserts below fix every offset. */

#ifndef LLM_IPC_ABI_H
#define LLM_IPC_ABI_H

#include <stddef.h>
#include <stdint.h>

#define LLM_IPC_MAGIC 0x314d4c4cu /* "LLM1" */

/* An engine accepts its own version and the one before, because a reload of nginx does not load a
 * new module. */
#define LLM_IPC_VERSION 1
#define LLM_IPC_VERSION_MIN 0

/* Feature bits, offered in HELLO, granted in WELCOME; none is required in this version. */
#define LLM_IPC_FEATURES 0

enum llm_ipc_role {
    LLM_IPC_ROLE_WORKER = 1,
    LLM_IPC_ROLE_CONTROL = 2, /* purge and status commands of an operator */
};

enum llm_ipc_hello_type { LLM_IPC_HELLO = 1, LLM_IPC_WELCOME = 2, LLM_IPC_REJECT = 3 };

/* worker → engine, with two descriptors: region, event (to wake the worker).
 * `size` is sizeof of the sender's struct: a shorter one is zero-filled by the reader, a longer
 * one cut, so that fields can be added at the end. */
struct llm_ipc_hello {
    uint32_t magic;
    uint16_t type; /* LLM_IPC_HELLO */
    uint16_t size;
    uint16_t version_min, version_max;
    uint32_t role;
    uint64_t features;
    uint64_t region_size;
    uint32_t ring_entries; /* of the worker's ring */
    uint32_t slots;        /* requests it may have in flight: ids are below this */
    uint64_t arena_size;
    uint8_t build_id[32]; /* text, for the log */
};

/* engine → worker, with three descriptors: region, event (to wake the engine), state. */
struct llm_ipc_welcome {
    uint32_t magic;
    uint16_t type; /* LLM_IPC_WELCOME */
    uint16_t size;
    uint16_t version;
    uint16_t reserved;
    uint32_t ring_entries;
    uint64_t features;
    uint64_t region_size;
    uint64_t arena_size;
    uint8_t session[16]; /* random */
    uint8_t build_id[32];
};

enum llm_ipc_reject_code {
    LLM_IPC_REJECT_VERSION = 1,
    LLM_IPC_REJECT_ROLE = 2,
    LLM_IPC_REJECT_SIZE = 3,
    LLM_IPC_REJECT_FULL = 4, /* too many sessions */
    LLM_IPC_REJECT_MALFORMED = 5,
};

struct llm_ipc_reject {
    uint32_t magic;
    uint16_t type; /* LLM_IPC_REJECT */
    uint16_t size;
    uint32_t code;
    char text[116]; /* fixed text, zero terminated */
};

/* --- region --- */

#define LLM_IPC_CONTROL_OFFSET 64
#define LLM_IPC_RING_OFFSET 512

#define LLM_IPC_MIN_SLOTS 16384
#define LLM_IPC_MAX_SLOTS 65536
#define LLM_IPC_MIN_RING 64          /* entries; the worker's ring has at least 2 * slots */
#define LLM_IPC_MAX_RING (1u << 18)
#define LLM_IPC_MIN_ARENA (1u << 20)
#define LLM_IPC_MAX_ARENA (1u << 28)

struct llm_ipc_region_header {
    uint32_t magic;
    uint16_t version;
    uint16_t reserved;
    uint32_t ring_entries;
    uint32_t ring_offset;
    uint64_t arena_offset;
    uint64_t arena_size;
    uint8_t zero[32];
};

/* One cache line a word that one side writes and the other reads. */
struct llm_ipc_control {
    uint32_t tail; /* descriptors published in this region's ring */
    uint8_t pad0[60];
    uint32_t head; /* descriptors consumed from the peer's ring */
    uint32_t pad1;
    uint64_t arena_head; /* bytes consumed from the peer's arena */
    uint8_t pad2[48];
    uint32_t sleeping; /* 1: creator sleeps on its event; wake it after publishing */
    uint8_t pad3[60];
    uint32_t starved; /* 1: creator waits for room; wake it after consuming */
    uint8_t pad4[60];
};

enum llm_ipc_type {
    /* worker → engine */
    LLM_IPC_SUBMIT = 1,
    LLM_IPC_RELEASE = 2, /* after COUNTED, when SUBMIT asked to wait */
    LLM_IPC_CANCEL = 3,
    LLM_IPC_REVOKE = 4,
    LLM_IPC_CREDIT = 5,
    LLM_IPC_PURGE = 6, /* the one record of a control session, which sends no other */
    /* engine → worker */
    LLM_IPC_COUNTED = 32,
    LLM_IPC_TOKEN = 33,
    LLM_IPC_CHOICE_END = 34,
    LLM_IPC_FINISHED = 35,
    LLM_IPC_PURGED = 36, /* of a control session */
};

#define LLM_IPC_INLINE 40

/* Payloads up to LLM_IPC_INLINE bytes stand in the descriptor (pos is 0), longer ones in the
 * sender's arena. */
struct llm_ipc_desc {
    uint16_t type;
    uint16_t reserved;
    uint32_t length; /* of the payload */
    uint32_t slot;   /* request id: slot … */
    uint32_t generation; /* … and the generation of its use; 0,0 where no request is meant */
    uint64_t pos;
    uint8_t data[LLM_IPC_INLINE];
};

/* --- worker → engine payloads --- */

enum llm_ipc_kind { LLM_IPC_KIND_CHAT = 1, LLM_IPC_KIND_COMPLETION = 2 };

enum llm_ipc_scope { LLM_IPC_SCOPE_TENANT = 0, LLM_IPC_SCOPE_PUBLIC = 1, LLM_IPC_SCOPE_OFF = 2 };

enum llm_ipc_submit_flag {
    LLM_IPC_AWAIT_RELEASE = 1 << 0,
    LLM_IPC_HAS_SEED = 1 << 1,
    LLM_IPC_IGNORE_EOS = 1 << 2,
    LLM_IPC_KEEP_SPECIAL = 1 << 3, /* skip_special_tokens: false */
    LLM_IPC_ECHO = 1 << 4,
    LLM_IPC_LOGPROBS = 1 << 5,
    LLM_IPC_PARALLEL_TOOLS = 1 << 6,
    LLM_IPC_THINKING_ON = 1 << 7,
    LLM_IPC_THINKING_OFF = 1 << 8,
    LLM_IPC_CONTINUE_FINAL = 1 << 9, /* the last assistant message is a prefix to go on from */
    LLM_IPC_FIT_CONTEXT = 1 << 10, /* max_tokens was not asked for: the context may leave less */
};

enum llm_ipc_tool_choice {
    LLM_IPC_TOOLS_AUTO = 0,
    LLM_IPC_TOOLS_NONE = 1,
    LLM_IPC_TOOLS_REQUIRED = 2,
    LLM_IPC_TOOLS_NAMED = 3, /* item TOOL_NAME */
};

/* Head of a SUBMIT payload; `items` items follow, back to back. */
struct llm_ipc_submit {
    uint32_t size; /* sizeof of the sender's struct: where the items begin */
    uint32_t n_items;
    uint8_t tenant[32]; /* SHA-256 of the tenant's name */
    uint8_t key_id[16]; /* first bytes of the key's digest; zero without keys */
    uint8_t kind;       /* enum llm_ipc_kind */
    uint8_t scope;      /* enum llm_ipc_scope */
    uint8_t tool_choice;
    uint8_t reserved0;
    uint32_t flags;  /* enum llm_ipc_submit_flag */
    uint32_t weight; /* of the tenant, 1 … 1000 */
    uint32_t max_queued, max_running, max_pages; /* caps of the tenant, 0: none */
    uint32_t credit; /* bytes of text to send before CREDIT, 0: no limit */
    uint32_t n;
    uint64_t queue_deadline, first_token_deadline, deadline; /* CLOCK_MONOTONIC ns, 0: none */
    uint32_t max_tokens;        /* of a completion; 0: what the context leaves */
    uint32_t max_prompt_tokens; /* 0: no limit but the context */
    uint32_t min_tokens;
    uint32_t top_k; /* 0: off */
    uint32_t top_logprobs;
    uint32_t reserved1;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;
};

/* An item's head; its data follows, then padding to a multiple of 8. Texts are UTF-8. */
struct llm_ipc_item {
    uint16_t type;
    uint16_t arg;
    uint32_t length; /* of the data */
};

enum llm_ipc_item_type {
    LLM_IPC_ITEM_TENANT = 1,      /* name, 1 … 255 bytes */
    LLM_IPC_ITEM_MODEL = 2,       /* name asked for */
    LLM_IPC_ITEM_PROMPT_TEXT = 3, /* completion: one of the prompts */
    LLM_IPC_ITEM_PROMPT_IDS = 4,  /* the same as u32 ids */
    LLM_IPC_ITEM_SUFFIX = 5,      /* fill in the middle */
    LLM_IPC_ITEM_MESSAGE = 6,     /* chat: no data, arg = enum llm_ipc_message_role (else 0);
                                   * 7 … 13 belong to the one before them */
    LLM_IPC_ITEM_CONTENT = 7,     /* text parts of a message; several are joined */
    LLM_IPC_ITEM_REASONING = 8,
    LLM_IPC_ITEM_NAME = 9,
    LLM_IPC_ITEM_TOOL_CALL_ID = 10, /* of a tool message */
    LLM_IPC_ITEM_TOOL_CALL = 11,    /* of an assistant message: id; these two come next */
    LLM_IPC_ITEM_TOOL_CALL_NAME = 12,
    LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS = 13,
    LLM_IPC_ITEM_STOP = 14,         /* one stop string */
    LLM_IPC_ITEM_STOP_IDS = 15,     /* u32 ids */
    LLM_IPC_ITEM_LOGIT_BIAS = 16,   /* pairs of u32 id, float bias */
    LLM_IPC_ITEM_TOOLS = 17,        /* the request's own JSON bytes */
    LLM_IPC_ITEM_RESPONSE_FORMAT = 18,
    LLM_IPC_ITEM_TOOL_NAME = 19,
};

enum llm_ipc_message_role {
    LLM_IPC_SYSTEM = 1,
    LLM_IPC_USER = 2,
    LLM_IPC_ASSISTANT = 3,
    LLM_IPC_TOOL = 4,
};

#define LLM_IPC_MAX_TENANT 255
#define LLM_IPC_MAX_PROMPTS 128
#define LLM_IPC_MAX_N 128
#define LLM_IPC_MAX_CHOICES 1024 /* prompts times n */
#define LLM_IPC_MAX_WEIGHT 1000
#define LLM_IPC_MAX_STOPS 64
#define LLM_IPC_MAX_STOP_BYTES 1024
#define LLM_IPC_MAX_BIAS 1024
#define LLM_IPC_MAX_TOP_LOGPROBS 20

struct llm_ipc_release {
    uint32_t max_tokens; /* allowed completion of each choice */
};

struct llm_ipc_revoke {
    uint8_t key_id[16]; /* every request of this key, in all sessions, is cancelled */
};

struct llm_ipc_credit {
    uint32_t bytes; /* more bytes of text may be sent */
};

/* Nothing that is cached of this tenant is to be found any more. One at a time in a session; the
 * answer, PURGED, has the same slot and generation. */
struct llm_ipc_purge {
    uint8_t tenant[32]; /* SHA-256 of its name, of "*public*" for the public scope */
};

/* --- engine → worker payloads --- */

struct llm_ipc_counted {
    uint32_t prompt_tokens;
    uint32_t cached_tokens_estimate;
};

enum llm_ipc_token_kind {
    LLM_IPC_TEXT_CONTENT = 1,
    LLM_IPC_TEXT_REASONING = 2,
    LLM_IPC_TEXT_TOOL_NAME = 3, /* begins a tool call */
    LLM_IPC_TEXT_TOOL_ARGUMENTS = 4,
};

/* Followed by n_ids u32 token ids, then text_length bytes of whole UTF-8 characters, then
 * logprobs_length bytes of log-probabilities: for each id n_top + 1 entries (the chosen token
 * first), each a struct llm_ipc_logprob and its text. */
struct llm_ipc_token {
    uint16_t choice; /* prompt index * n + index among its choices */
    uint8_t kind;
    uint8_t n_top;
    uint16_t n_ids;
    uint16_t reserved;
    uint32_t text_length;
    uint32_t logprobs_length;
};

struct llm_ipc_logprob {
    uint32_t id;
    float logprob;
    uint32_t text_length;
};

enum llm_ipc_finish {
    LLM_IPC_FINISH_STOP = 1, /* end of sequence, stop string or stop id */
    LLM_IPC_FINISH_LENGTH = 2,
    LLM_IPC_FINISH_TOOL_CALLS = 3,
    LLM_IPC_FINISH_ERROR = 4, /* this choice alone failed */
};

struct llm_ipc_choice_end {
    uint16_t choice;
    uint16_t reason; /* enum llm_ipc_finish */
};

enum llm_ipc_status {
    LLM_IPC_OK = 0,
    LLM_IPC_CANCELLED = 1,      /* by CANCEL */
    LLM_IPC_REVOKED = 2,        /* by REVOKE */
    LLM_IPC_INVALID = 3,        /* the request is wrong: `detail` says what */
    LLM_IPC_CONTEXT_LENGTH = 4, /* numbers: prompt tokens, completion asked for, limit */
    LLM_IPC_PROMPT_LENGTH = 5,  /* max_prompt_tokens; numbers: prompt tokens, 0, limit */
    LLM_IPC_QUEUE_FULL = 6,
    LLM_IPC_TENANT_FULL = 7,    /* too much of this tenant waits: its max_queued, or its part */
    LLM_IPC_DRAINING = 8,
    LLM_IPC_TIMEOUT_QUEUE = 9,  /* queue_deadline; or some deadline is too near for the queue */
    LLM_IPC_TIMEOUT_FIRST_TOKEN = 10,
    LLM_IPC_TIMEOUT = 11,
    LLM_IPC_NON_FINITE = 12,    /* the model's output was not a number */
    LLM_IPC_FAILED = 13,        /* the engine or its device failed */
};

/* Once a request, the last record of its id. */
struct llm_ipc_finished {
    uint32_t status;         /* enum llm_ipc_status */
    uint32_t retry_after_ms; /* for the ones that may be tried again; 0: unknown */
    uint32_t numbers[4];
    uint32_t prompt_tokens, cached_tokens;
    uint32_t completion_tokens, reasoning_tokens;
    uint32_t drafted_tokens, accepted_tokens;
    uint64_t queue_ns, first_token_ns, total_ns; /* since SUBMIT was read */
    char detail[80]; /* fixed text, zero terminated; never of the prompt */
    uint32_t read_tokens; /* prompt_tokens once its turn has come, 0 before */
    uint32_t reserved;
};

struct llm_ipc_purged {
    uint64_t pages; /* that could be found and cannot any more; some may still be in use */
};

/* --- engine state: one memfd, written by the engine alone, read by every worker --- */

enum llm_ipc_state_flag {
    LLM_IPC_STATE_READY = 1 << 0, /* the model is loaded; without it: loading */
    LLM_IPC_STATE_DRAINING = 1 << 1,
    LLM_IPC_STATE_FAILED = 1 << 2,
};

#define LLM_IPC_MAX_NAMES 16
#define LLM_IPC_MAX_NAME 128

struct llm_ipc_state {
    uint32_t magic;
    uint16_t version;
    uint16_t reserved;
    uint32_t size;
    uint32_t flags;     /* enum llm_ipc_state_flag */
    uint64_t beat_ns;   /* CLOCK_MONOTONIC of the model thread's last beat */
    uint64_t beats;
    uint64_t start_time; /* unix seconds: `created` of the models */
    uint8_t fingerprint[8]; /* of the model: system_fingerprint */
    uint8_t pad0[16];
    /* load; 64 */
    uint32_t queued_requests;  /* each once for every choice of every prompt, like their limit */
    uint32_t running_requests; /* that have started and not ended */
    uint64_t queued_tokens;    /* of prompts */
    uint32_t free_pages, total_pages; /* the free ones may be full of what nobody uses now */
    uint32_t prefill_rate, decode_rate; /* tokens a second, measured */
    uint32_t queue_limit_requests, reserved1;
    uint64_t queue_limit_tokens;
    uint8_t pad1[16];
    /* fixed once READY; 128 */
    uint32_t max_context;
    uint32_t vocab_size;
    uint32_t n_names; /* served names: the first is the model's, the rest aliases */
    uint32_t reserved2;
    char names[LLM_IPC_MAX_NAMES][LLM_IPC_MAX_NAME]; /* zero terminated */
    uint64_t counters[256]; /* by enum llm_ipc_counter */
    /* which prefixes it has read of late: two Bloom filters (filter.h), in the region behind this
     * struct; fixed from the start, size 0: there is none */
    uint32_t prefix_filter_offset, prefix_filter_size;
    /* what counters[] says of the cache, by tenant: struct llm_ipc_tenant, in the region behind
     * this struct; both fixed from the start */
    uint32_t tenants_offset, n_tenants;
};

#define LLM_IPC_STATE_SIZE (128u * 1024)

enum llm_ipc_tier {
    LLM_IPC_TIER_MEMORY = 0, /* the latent pool */
    LLM_IPC_TIER_HOST = 1,
    LLM_IPC_TIER_REDIS = 2, /* tokens that came from there in time, though they were missed first;
                             * what it holds is not counted here */
    LLM_IPC_TIERS = 4, /* places in a list of counters */
};

/* Sums since the engine started, but for those that say otherwise. A list over the tiers takes
 * LLM_IPC_TIERS places in a row. Each counter is a word of its own, stored as a whole: read
 * together they may be some microseconds apart. */
enum llm_ipc_counter {
    LLM_IPC_COUNT_HIT_TOKENS = 0,    /* by tier: found there instead of computed */
    LLM_IPC_COUNT_EVICTED_PAGES = 4, /* by tier: that had to make room */
    LLM_IPC_COUNT_CACHED_BYTES = 8,  /* by tier: now */
    LLM_IPC_COUNT_MISS_TOKENS = 12,  /* in full pages of prompts, that were in no memory */
    LLM_IPC_TENANT_COUNTS = 16,      /* the first ones, which a tenant has too */

    /* of the Redis tier: pages, where nothing else is said */
    LLM_IPC_COUNT_REDIS_LOADS = 16,   /* look-ups */
    LLM_IPC_COUNT_REDIS_HITS = 17,
    LLM_IPC_COUNT_REDIS_SAVED = 18,
    LLM_IPC_COUNT_REDIS_THERE = 19,   /* not saved, as they were there already */
    LLM_IPC_COUNT_REDIS_OVER_QUOTA = 20,
    LLM_IPC_COUNT_REDIS_UNSAVED = 21, /* for any other reason */
    LLM_IPC_COUNT_REDIS_BYTES_IN = 22,
    LLM_IPC_COUNT_REDIS_BYTES_OUT = 23,
    LLM_IPC_COUNT_REDIS_CONNECTS = 24,
    LLM_IPC_COUNT_REDIS_DROPS = 25,   /* of connections */
    LLM_IPC_COUNT_REDIS_BREAKER = 26, /* now: enum llm_ipc_breaker */
    LLM_IPC_COUNT_REDIS_FIRST_NS = 27,    /* of late: time to the first page of a look-up, */
    LLM_IPC_COUNT_REDIS_BYTES_PER_S = 28, /* and speed after it; 0: not known yet */
    LLM_IPC_COUNT_REDIS_CHOSEN = 29,   /* look-ups as loading was faster than computing, */
    LLM_IPC_COUNT_REDIS_DECLINED = 30, /* prompts that were computed as it was not, and */
    LLM_IPC_COUNT_REDIS_PROBES = 31,   /* look-ups to learn which it is */
    LLM_IPC_COUNT_REDIS_MISSES = 32,  /* by reason: enum llm_ipc_redis_miss */

    LLM_IPC_COUNT_STEPS = 48,    /* of the model */
    LLM_IPC_COUNT_SESSIONS = 49, /* now */
};

enum llm_ipc_breaker {
    LLM_IPC_BREAKER_NONE = 0, /* there is no Redis tier */
    LLM_IPC_BREAKER_CLOSED = 1,
    LLM_IPC_BREAKER_OPEN = 2, /* Redis is left alone for a while */
    LLM_IPC_BREAKER_HALF_OPEN = 3,
};

enum llm_ipc_redis_miss {
    LLM_IPC_REDIS_ABSENT = 0,
    LLM_IPC_REDIS_LATE = 1,     /* not there in time */
    LLM_IPC_REDIS_DOWN = 2,     /* no connection, or the breaker is open */
    LLM_IPC_REDIS_REFUSED = 3,  /* an error reply */
    LLM_IPC_REDIS_PROTOCOL = 4, /* no reply to what was asked */
    LLM_IPC_REDIS_CORRUPT = 5,  /* not authentic, or not of this page */
    LLM_IPC_REDIS_STALE = 6,    /* the tenant was purged meanwhile */
    LLM_IPC_REDIS_UNWANTED = 7, /* cancelled */
    LLM_IPC_REDIS_MISSES = 16,  /* places for reasons */
};

/* An entry of the table of tenants. The first one is no tenant's: it counts for all that have no
 * entry, so that the whole table adds up to counters[]. When all are taken, a tenant that comes
 * gets the entry of the one that did nothing for longest, whose counts go to the first entry; a
 * tenant that comes back begins at zero.
 *
 * version: 0: nobody's yet; odd: it is changing hands; else it stays as it is for as long as the
 * entry is the same tenant's. Who reads must find the same version before and after. */
struct llm_ipc_tenant {
    uint32_t version;
    uint32_t reserved;
    uint8_t tenant[32]; /* its digest, as in SUBMIT; SHA-256 of "*public*" for the public scope */
    uint64_t counters[LLM_IPC_TENANT_COUNTS]; /* by enum llm_ipc_counter */
};

#define LLM_IPC_TENANTS 512
#define LLM_IPC_TENANTS_OFFSET 8192

#define LLM_IPC_FILTER_OFFSET (96u * 1024)
#define LLM_IPC_FILTER_SIZE (32u * 1024)

/* --- offsets, for ever --- */

#define LLM_IPC_AT(type, field, at)                                                               \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field)
#define LLM_IPC_IS(type, size) _Static_assert(sizeof(struct type) == (size), #type)

LLM_IPC_AT(llm_ipc_hello, magic, 0);
LLM_IPC_AT(llm_ipc_hello, type, 4);
LLM_IPC_AT(llm_ipc_hello, size, 6);
LLM_IPC_AT(llm_ipc_hello, version_min, 8);
LLM_IPC_AT(llm_ipc_hello, version_max, 10);
LLM_IPC_AT(llm_ipc_hello, role, 12);
LLM_IPC_AT(llm_ipc_hello, features, 16);
LLM_IPC_AT(llm_ipc_hello, region_size, 24);
LLM_IPC_AT(llm_ipc_hello, ring_entries, 32);
LLM_IPC_AT(llm_ipc_hello, slots, 36);
LLM_IPC_AT(llm_ipc_hello, arena_size, 40);
LLM_IPC_AT(llm_ipc_hello, build_id, 48);
LLM_IPC_IS(llm_ipc_hello, 80);

LLM_IPC_AT(llm_ipc_welcome, magic, 0);
LLM_IPC_AT(llm_ipc_welcome, type, 4);
LLM_IPC_AT(llm_ipc_welcome, size, 6);
LLM_IPC_AT(llm_ipc_welcome, version, 8);
LLM_IPC_AT(llm_ipc_welcome, reserved, 10);
LLM_IPC_AT(llm_ipc_welcome, ring_entries, 12);
LLM_IPC_AT(llm_ipc_welcome, features, 16);
LLM_IPC_AT(llm_ipc_welcome, region_size, 24);
LLM_IPC_AT(llm_ipc_welcome, arena_size, 32);
LLM_IPC_AT(llm_ipc_welcome, session, 40);
LLM_IPC_AT(llm_ipc_welcome, build_id, 56);
LLM_IPC_IS(llm_ipc_welcome, 88);

LLM_IPC_AT(llm_ipc_reject, magic, 0);
LLM_IPC_AT(llm_ipc_reject, type, 4);
LLM_IPC_AT(llm_ipc_reject, size, 6);
LLM_IPC_AT(llm_ipc_reject, code, 8);
LLM_IPC_AT(llm_ipc_reject, text, 12);
LLM_IPC_IS(llm_ipc_reject, 128);

LLM_IPC_AT(llm_ipc_region_header, magic, 0);
LLM_IPC_AT(llm_ipc_region_header, version, 4);
LLM_IPC_AT(llm_ipc_region_header, reserved, 6);
LLM_IPC_AT(llm_ipc_region_header, ring_entries, 8);
LLM_IPC_AT(llm_ipc_region_header, ring_offset, 12);
LLM_IPC_AT(llm_ipc_region_header, arena_offset, 16);
LLM_IPC_AT(llm_ipc_region_header, arena_size, 24);
LLM_IPC_IS(llm_ipc_region_header, 64);

LLM_IPC_AT(llm_ipc_control, tail, 0);
LLM_IPC_AT(llm_ipc_control, head, 64);
LLM_IPC_AT(llm_ipc_control, arena_head, 72);
LLM_IPC_AT(llm_ipc_control, sleeping, 128);
LLM_IPC_AT(llm_ipc_control, starved, 192);
LLM_IPC_IS(llm_ipc_control, 256);

LLM_IPC_AT(llm_ipc_desc, type, 0);
LLM_IPC_AT(llm_ipc_desc, reserved, 2);
LLM_IPC_AT(llm_ipc_desc, length, 4);
LLM_IPC_AT(llm_ipc_desc, slot, 8);
LLM_IPC_AT(llm_ipc_desc, generation, 12);
LLM_IPC_AT(llm_ipc_desc, pos, 16);
LLM_IPC_AT(llm_ipc_desc, data, 24);
LLM_IPC_IS(llm_ipc_desc, 64);

LLM_IPC_AT(llm_ipc_submit, size, 0);
LLM_IPC_AT(llm_ipc_submit, n_items, 4);
LLM_IPC_AT(llm_ipc_submit, tenant, 8);
LLM_IPC_AT(llm_ipc_submit, key_id, 40);
LLM_IPC_AT(llm_ipc_submit, kind, 56);
LLM_IPC_AT(llm_ipc_submit, scope, 57);
LLM_IPC_AT(llm_ipc_submit, tool_choice, 58);
LLM_IPC_AT(llm_ipc_submit, reserved0, 59);
LLM_IPC_AT(llm_ipc_submit, flags, 60);
LLM_IPC_AT(llm_ipc_submit, weight, 64);
LLM_IPC_AT(llm_ipc_submit, max_queued, 68);
LLM_IPC_AT(llm_ipc_submit, max_running, 72);
LLM_IPC_AT(llm_ipc_submit, max_pages, 76);
LLM_IPC_AT(llm_ipc_submit, credit, 80);
LLM_IPC_AT(llm_ipc_submit, n, 84);
LLM_IPC_AT(llm_ipc_submit, queue_deadline, 88);
LLM_IPC_AT(llm_ipc_submit, first_token_deadline, 96);
LLM_IPC_AT(llm_ipc_submit, deadline, 104);
LLM_IPC_AT(llm_ipc_submit, max_tokens, 112);
LLM_IPC_AT(llm_ipc_submit, max_prompt_tokens, 116);
LLM_IPC_AT(llm_ipc_submit, min_tokens, 120);
LLM_IPC_AT(llm_ipc_submit, top_k, 124);
LLM_IPC_AT(llm_ipc_submit, top_logprobs, 128);
LLM_IPC_AT(llm_ipc_submit, reserved1, 132);
LLM_IPC_AT(llm_ipc_submit, temperature, 136);
LLM_IPC_AT(llm_ipc_submit, top_p, 140);
LLM_IPC_AT(llm_ipc_submit, min_p, 144);
LLM_IPC_AT(llm_ipc_submit, repetition_penalty, 148);
LLM_IPC_AT(llm_ipc_submit, presence_penalty, 152);
LLM_IPC_AT(llm_ipc_submit, frequency_penalty, 156);
LLM_IPC_AT(llm_ipc_submit, seed, 160);
LLM_IPC_IS(llm_ipc_submit, 168);

LLM_IPC_AT(llm_ipc_item, type, 0);
LLM_IPC_AT(llm_ipc_item, arg, 2);
LLM_IPC_AT(llm_ipc_item, length, 4);
LLM_IPC_IS(llm_ipc_item, 8);

LLM_IPC_AT(llm_ipc_release, max_tokens, 0);
LLM_IPC_IS(llm_ipc_release, 4);

LLM_IPC_AT(llm_ipc_revoke, key_id, 0);
LLM_IPC_IS(llm_ipc_revoke, 16);

LLM_IPC_AT(llm_ipc_credit, bytes, 0);
LLM_IPC_IS(llm_ipc_credit, 4);

LLM_IPC_AT(llm_ipc_purge, tenant, 0);
LLM_IPC_IS(llm_ipc_purge, 32);

LLM_IPC_AT(llm_ipc_purged, pages, 0);
LLM_IPC_IS(llm_ipc_purged, 8);

LLM_IPC_AT(llm_ipc_counted, prompt_tokens, 0);
LLM_IPC_AT(llm_ipc_counted, cached_tokens_estimate, 4);
LLM_IPC_IS(llm_ipc_counted, 8);

LLM_IPC_AT(llm_ipc_token, choice, 0);
LLM_IPC_AT(llm_ipc_token, kind, 2);
LLM_IPC_AT(llm_ipc_token, n_top, 3);
LLM_IPC_AT(llm_ipc_token, n_ids, 4);
LLM_IPC_AT(llm_ipc_token, reserved, 6);
LLM_IPC_AT(llm_ipc_token, text_length, 8);
LLM_IPC_AT(llm_ipc_token, logprobs_length, 12);
LLM_IPC_IS(llm_ipc_token, 16);

LLM_IPC_AT(llm_ipc_logprob, id, 0);
LLM_IPC_AT(llm_ipc_logprob, logprob, 4);
LLM_IPC_AT(llm_ipc_logprob, text_length, 8);
LLM_IPC_IS(llm_ipc_logprob, 12);

LLM_IPC_AT(llm_ipc_choice_end, choice, 0);
LLM_IPC_AT(llm_ipc_choice_end, reason, 2);
LLM_IPC_IS(llm_ipc_choice_end, 4);

LLM_IPC_AT(llm_ipc_finished, status, 0);
LLM_IPC_AT(llm_ipc_finished, retry_after_ms, 4);
LLM_IPC_AT(llm_ipc_finished, numbers, 8);
LLM_IPC_AT(llm_ipc_finished, prompt_tokens, 24);
LLM_IPC_AT(llm_ipc_finished, cached_tokens, 28);
LLM_IPC_AT(llm_ipc_finished, completion_tokens, 32);
LLM_IPC_AT(llm_ipc_finished, reasoning_tokens, 36);
LLM_IPC_AT(llm_ipc_finished, drafted_tokens, 40);
LLM_IPC_AT(llm_ipc_finished, accepted_tokens, 44);
LLM_IPC_AT(llm_ipc_finished, queue_ns, 48);
LLM_IPC_AT(llm_ipc_finished, first_token_ns, 56);
LLM_IPC_AT(llm_ipc_finished, total_ns, 64);
LLM_IPC_AT(llm_ipc_finished, detail, 72);
LLM_IPC_AT(llm_ipc_finished, read_tokens, 152);
LLM_IPC_AT(llm_ipc_finished, reserved, 156);
LLM_IPC_IS(llm_ipc_finished, 160);

LLM_IPC_AT(llm_ipc_state, magic, 0);
LLM_IPC_AT(llm_ipc_state, version, 4);
LLM_IPC_AT(llm_ipc_state, reserved, 6);
LLM_IPC_AT(llm_ipc_state, size, 8);
LLM_IPC_AT(llm_ipc_state, flags, 12);
LLM_IPC_AT(llm_ipc_state, beat_ns, 16);
LLM_IPC_AT(llm_ipc_state, beats, 24);
LLM_IPC_AT(llm_ipc_state, start_time, 32);
LLM_IPC_AT(llm_ipc_state, fingerprint, 40);
LLM_IPC_AT(llm_ipc_state, queued_requests, 64);
LLM_IPC_AT(llm_ipc_state, running_requests, 68);
LLM_IPC_AT(llm_ipc_state, queued_tokens, 72);
LLM_IPC_AT(llm_ipc_state, free_pages, 80);
LLM_IPC_AT(llm_ipc_state, total_pages, 84);
LLM_IPC_AT(llm_ipc_state, prefill_rate, 88);
LLM_IPC_AT(llm_ipc_state, decode_rate, 92);
LLM_IPC_AT(llm_ipc_state, queue_limit_requests, 96);
LLM_IPC_AT(llm_ipc_state, reserved1, 100);
LLM_IPC_AT(llm_ipc_state, queue_limit_tokens, 104);
LLM_IPC_AT(llm_ipc_state, max_context, 128);
LLM_IPC_AT(llm_ipc_state, vocab_size, 132);
LLM_IPC_AT(llm_ipc_state, n_names, 136);
LLM_IPC_AT(llm_ipc_state, reserved2, 140);
LLM_IPC_AT(llm_ipc_state, names, 144);
LLM_IPC_AT(llm_ipc_state, counters, 2192);
LLM_IPC_AT(llm_ipc_state, prefix_filter_offset, 4240);
LLM_IPC_AT(llm_ipc_state, prefix_filter_size, 4244);
LLM_IPC_AT(llm_ipc_state, tenants_offset, 4248);
LLM_IPC_AT(llm_ipc_state, n_tenants, 4252);
LLM_IPC_IS(llm_ipc_state, 4256);

LLM_IPC_AT(llm_ipc_tenant, version, 0);
LLM_IPC_AT(llm_ipc_tenant, reserved, 4);
LLM_IPC_AT(llm_ipc_tenant, tenant, 8);
LLM_IPC_AT(llm_ipc_tenant, counters, 40);
LLM_IPC_IS(llm_ipc_tenant, 168);
_Static_assert(LLM_IPC_COUNT_REDIS_MISSES + LLM_IPC_REDIS_MISSES <= LLM_IPC_COUNT_STEPS &&
                   LLM_IPC_COUNT_SESSIONS <
                       sizeof(((struct llm_ipc_state *) 0)->counters) / sizeof(uint64_t),
               "counters");
_Static_assert(LLM_IPC_TENANTS_OFFSET >= sizeof(struct llm_ipc_state) &&
                   LLM_IPC_TENANTS_OFFSET + LLM_IPC_TENANTS * sizeof(struct llm_ipc_tenant) <=
                       LLM_IPC_FILTER_OFFSET,
               "the table of tenants");
_Static_assert(LLM_IPC_FILTER_OFFSET + LLM_IPC_FILTER_SIZE <= LLM_IPC_STATE_SIZE,
               "the filter of prefixes");

#endif
