
/*
 * One request's way through these files:
 *
 *   route.c     the content handler: route, method, tenant
 *   auth.c      whose request it is, by its key or by llm_tenant
 *   keys.c      the files of keys, line by line with keyline.c
 *   revoke.c    keys that a reload took away
 *   body.c      reads the body, has it parsed by params.c
 *   params.c    a body to a SUBMIT record, with fields.c, lists.c, prompt.c
 *   prefix.c    $llm_prefix, of what lead.c finds in a body with cursor.c
 *   submit.c    to an engine, as soon as one can take it
 *   request.c   what its engine says is noted, time runs out, it ends
 *   models.c    lists models, tells of their health
 *   engine.c    which engine: their health and load; next.c: another one
 *   session.c   the worker's session with an engine: made, watched, lost
 *   exchange.c  records to and from an engine
 *   answer.c    OpenAI's objects, written by writer.c
 *   output.c    sends them as the client takes them
 *   error.c     OpenAI's error object, also for what nginx itself refuses
 *   limit.c     what it may use of limit_zone.c's buckets, as limit_conf.c
 *               has read; charge.c: what it used; limit_headers.c: what its
 *               answer tells of that
 *   status.c    llm_status: what status_zone.c has counted and how the engines
 *               are, shown by status_json.c and status_prometheus.c
 *   zone.c      the shared memory of either
 */


#ifndef _NGX_HTTP_LLM_MODULE_H_INCLUDED_
#define _NGX_HTTP_LLM_MODULE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <sys/un.h>

#include "engine/ipc/prefix.h"
#include "engine/ipc/record.h"
#include "ngx_module/ngx_http_llm_json.h"
#include "ngx_module/ngx_http_llm_keyline.h"
#include "ngx_module/ngx_http_llm_params.h"


#define NGX_HTTP_LLM_VERSION         "0.1.0"

/* "req_" and 128 random bits in hexadecimal */
#define NGX_HTTP_LLM_ID_LEN          36

/* an engine whose model thread has not moved for so long is taken for dead */
#define NGX_HTTP_LLM_STALE           4000
#define NGX_HTTP_LLM_WATCH_INTERVAL  500

/* of a model: each has a bit in a request */
#define NGX_HTTP_LLM_MAX_ENGINES     64

/* bytes of a SUBMIT record: what an arena takes */
#define NGX_HTTP_LLM_MAX_PAYLOAD     (LLM_IPC_DEFAULT_W_ARENA / 2)


typedef struct ngx_http_llm_ctx_s         ngx_http_llm_ctx_t;
typedef struct ngx_http_llm_engine_s      ngx_http_llm_engine_t;
typedef struct ngx_http_llm_choice_s      ngx_http_llm_choice_t;
typedef struct ngx_http_llm_limited_s     ngx_http_llm_limited_t;
typedef struct ngx_http_llm_charge_s      ngx_http_llm_charge_t;
typedef struct ngx_http_llm_revocation_s  ngx_http_llm_revocation_t;

typedef void (*ngx_http_llm_resume_pt)(ngx_http_llm_ctx_t *ctx);
typedef ngx_int_t (*ngx_http_llm_state_answer_pt)(ngx_http_llm_ctx_t *ctx);


/*
 * Keys: a file of them
 */

typedef struct {
    ngx_http_llm_keyline_t       said;
    uint32_t                     line;
} ngx_http_llm_key_t;


typedef struct {
    ngx_str_t                    file;
    ngx_http_llm_key_t          *elts;     /* by digest */
    ngx_uint_t                   nelts;

    uint32_t                    *first;    /* by what digests begin with */
    ngx_uint_t                   bits;     /* how much of it */
    ngx_uint_t                   most;     /* that begin alike */
} ngx_http_llm_keys_t;


typedef struct {
    u_char                       bytes[16];  /* the first of its digest */
} ngx_http_llm_key_id_t;


/*
 * Configuration
 */

typedef struct {
    ngx_array_t                  engines;  /* of ngx_http_llm_engine_t * */
    ngx_array_t                  keys;     /* of ngx_http_llm_keys_t * */
    ngx_http_llm_revocation_t   *revocation;
    ngx_array_t                  zones;    /* of ngx_http_llm_limit_zone_t * */

    ngx_shm_zone_t              *status_zone;

    /* of this worker */
    ngx_msec_t                   exiting;  /* since when; 0: it is not */
} ngx_http_llm_main_conf_t;


typedef struct {
    ngx_str_t                    name;     /* empty: the engine's own names */
    ngx_array_t                  engines;  /* of ngx_http_llm_engine_t * */
    ngx_uint_t                   next;     /* where a search begins */
    unsigned                     preset:1; /* "default" */
} ngx_http_llm_model_t;


typedef struct {
    ngx_array_t                 *models;   /* of ngx_http_llm_model_t */

    ngx_http_llm_keys_t         *keys;     /* or tenant, or nobody may ask */
    ngx_http_complex_value_t    *tenant;
    ngx_http_complex_value_t    *weight;
    ngx_uint_t                   cache_scope;  /* enum llm_ipc_scope */

    ngx_uint_t                   max_tokens;
    ngx_uint_t                   max_prompt_tokens;
    ngx_msec_t                   queue_timeout;
    ngx_msec_t                   first_token_timeout;
    ngx_msec_t                   timeout;
    ngx_msec_t                   drain_timeout;
    ngx_msec_t                   keepalive_interval;
    size_t                       buffer_size;
    ngx_flag_t                   ignore_client_abort;
    ngx_flag_t                   intercept_errors;
    ngx_uint_t                   unknown_fields;
    ngx_uint_t                   status;       /* its format; 0: none */

    ngx_array_t                 *limits;   /* of ngx_http_llm_limit_t */
    ngx_uint_t                   limit_status;
    ngx_uint_t                   limit_log_level;
    ngx_uint_t                   limit_cached_discount;  /* percent */
    ngx_http_complex_value_t    *budget;

    /* of a serving location, where it was said */
    u_char                      *file;
    ngx_uint_t                   line;

#if (NGX_THREADS)
    ngx_thread_pool_t           *thread_pool;
#endif

    unsigned                     serves:1;
} ngx_http_llm_loc_conf_t;


#define NGX_HTTP_LLM_UNKNOWN_IGNORE  0
#define NGX_HTTP_LLM_UNKNOWN_REJECT  1


/*
 * Engines: a worker has one session with each
 */

typedef struct {
    ngx_http_llm_ctx_t          *ctx;        /* NULL: its client is gone */
    ngx_http_llm_charge_t       *charge;     /* NULL: nothing is held for it */
    ngx_msec_t                   cancelled;  /* when it lost ctx */
    uint32_t                     generation;
    uint32_t                     choices;
    uint32_t                     next;       /* free slot */
    unsigned                     busy:1;     /* until FINISHED */
} ngx_http_llm_slot_t;


typedef enum {
    NGX_HTTP_LLM_ENGINE_DOWN = 0,
    NGX_HTTP_LLM_ENGINE_CONNECTING,
    NGX_HTTP_LLM_ENGINE_UP
} ngx_http_llm_engine_state_e;


struct ngx_http_llm_engine_s {
    ngx_str_t                    name;       /* "unix:…" */
    struct sockaddr_un           sockaddr;

    /* of this worker */
    ngx_http_llm_engine_state_e  state;
    ngx_uint_t                   failures;   /* in a row */
    ngx_msec_t                   retry;      /* not before, while down */

    struct llm_ipc_session       session;
    struct llm_ipc_buffer        buffer;
    ngx_connection_t            *socket;
    ngx_connection_t            *wakeup;
    ngx_event_t                  timer;      /* handshake, then watchdog */
    ngx_event_t                  failed;     /* posted to drop the session */

    ngx_http_llm_slot_t         *slots;
    uint32_t                     free;       /* session.slots: none */
    ngx_uint_t                   in_flight;
    ngx_uint_t                   choices;    /* of these */
    ngx_uint_t                   cancelled;  /* of these: without a request */
    ngx_uint_t                   told;       /* of revoked keys */
    ngx_uint_t                   unsettled;  /* of those: with a charge */

    ngx_queue_t                  waiting;    /* requests: for the session, */
                                             /* or for room in it */
    ngx_queue_t                  touched;    /* by records of this turn */

    unsigned                     owes:1;     /* credit, when there is room */
    unsigned                     crowded:1;  /* a request found no room */
};


/* what an engine, or the best one of several, can do for a request */

typedef enum {
    NGX_HTTP_LLM_READY = 0,
    NGX_HTTP_LLM_CONNECTING,
    NGX_HTTP_LLM_FULL,
    NGX_HTTP_LLM_LOADING,
    NGX_HTTP_LLM_DRAINING,
    NGX_HTTP_LLM_STALLED,
    NGX_HTTP_LLM_FAILED,
    NGX_HTTP_LLM_DOWN
} ngx_http_llm_health_e;


/*
 * Errors as OpenAI's clients read them; the texts never quote a request
 */

typedef struct {
    ngx_uint_t                   status;
    const char                  *code;       /* or NULL */
    const char                  *param;      /* or NULL */
    const char                  *message;    /* NULL: what its status says */
    ngx_uint_t                   retry_after;  /* seconds; 0: no header */
} ngx_http_llm_error_t;


/* whose request it is */

typedef struct {
    ngx_str_t                    tenant;
    const ngx_http_llm_key_t    *key;        /* NULL: llm_tenant says it */
    ngx_http_llm_error_t        *error;      /* NULL, or why it is nobody's */
    const ngx_http_llm_keys_t   *keys;       /* where the key was looked up */
} ngx_http_llm_identity_t;


/*
 * Requests
 */

typedef struct {
    ngx_str_t                    name;       /* behind "/v1/" */
    ngx_uint_t                   methods;
    ngx_str_t                    allow;
    ngx_int_t                  (*handler)(ngx_http_llm_ctx_t *ctx);
    ngx_uint_t                   kind;       /* enum llm_ipc_kind */
    unsigned                     open:1;     /* to everybody */
    unsigned                     prefix:1;   /* of a longer path */
} ngx_http_llm_route_t;


/* what variables show */

typedef struct {
    ngx_str_t                    tenant;
    ngx_str_t                    model;
    const char                  *finish_reason;
    uint32_t                     prompt_tokens;
    uint32_t                     cached_tokens;
    uint32_t                     completion_tokens;
    uint32_t                     reasoning_tokens;
    uint32_t                     drafted_tokens;
    uint32_t                     accepted_tokens;
    uint64_t                     submitted;    /* CLOCK_MONOTONIC ns; 0: not */
    uint64_t                     first_token;  /* 0: none */
    uint64_t                     last_token;
    uint64_t                     queue_time;   /* ns */
    unsigned                     counted:1;
    unsigned                     finished:1;   /* by the engine */
} ngx_http_llm_account_t;


/* records of a stream that the client has not been ready for */

typedef struct {
    u_char                      *data;
    size_t                       pos;
    size_t                       last;
    size_t                       size;
} ngx_http_llm_pending_t;


/* writes into buffers that are used again once they were sent */

typedef struct {
    ngx_pool_t                  *pool;
    ngx_chain_t                 *free;
    ngx_chain_t                 *busy;
    ngx_chain_t                 *out;
    ngx_chain_t                **last;
    ngx_buf_t                   *buf;        /* of out, not full yet */
    off_t                        length;     /* of out */
    unsigned                     failed:1;   /* no memory */
} ngx_http_llm_writer_t;


struct ngx_http_llm_ctx_s {
    ngx_http_request_t          *request;
    const ngx_http_llm_route_t  *route;
    ngx_str_t                    rest;       /* of the URI behind its name */
    ngx_http_llm_identity_t      identity;
    ngx_http_llm_account_t       account;
    u_char                       id[NGX_HTTP_LLM_ID_LEN];
    ngx_http_event_handler_pt    read_body;  /* the core's handler */
    u_char                      *flattened;  /* body, while it is parsed */
    ngx_http_llm_params_t        params;
    uint32_t                     weight;     /* of the tenant */
    u_char                       prefix[LLM_IPC_PREFIX_SIZE];

    /* limits */
    ngx_http_llm_limited_t      *limited;    /* NULL: there are none */
    uint32_t                     allowed;    /* tokens of a choice */

    /* engine */
    ngx_http_llm_engine_t       *engine;     /* from SUBMIT to FINISHED */
    ngx_http_llm_engine_t       *crowded;    /* where it waits for room */
    uint64_t                     tried;      /* bits of engines that had it */
    uint32_t                     slot;
    uint32_t                     generation;
    uint32_t                     credit;     /* that the engine has left */
    uint32_t                     charged;    /* used, still to be written */
    uint32_t                     owed;       /* written, not granted again */
    ngx_queue_t                  queue;      /* engine's waiting or touched */
    ngx_http_llm_resume_pt       resume;     /* when it has waited */
    ngx_http_llm_state_answer_pt state_answer;
    struct llm_ipc_finished      finished;
    ngx_http_llm_error_t         error;      /* that ends it; status 0: none */

    /* time, ngx_current_msec */
    ngx_event_t                  timer;
    ngx_msec_t                   begun;
    ngx_msec_t                   active;     /* when something was sent */
    ngx_msec_t                   waits_since;  /* for crowded */

    /* answer */
    ngx_http_llm_choice_t       *choices;
    uint32_t                     n_ended;
    size_t                       collected;  /* bytes */
    ngx_http_llm_pending_t       pending;
    ngx_http_llm_writer_t        writer;
    ngx_str_t                    head;       /* of every object */

    unsigned                     answered:1;   /* not by nginx itself */
    unsigned                     in_flight:1;  /* from begin to finalize */
    unsigned                     queued:1;
    unsigned                     held:1;       /* until it is released */
    unsigned                     admitted:1;   /* by the limits */
    unsigned                     fits:1;       /* may get less than asked */
    unsigned                     cut:1;        /* by its budget, may be */
    unsigned                     done:1;       /* no record will follow */
    unsigned                     ended:1;      /* the last event is written */
    unsigned                     unheard:1;    /* its client is gone */
    unsigned                     prefixed:1;   /* its prefix is known */
    unsigned                     has_prefix:1;
    unsigned                     unread:1;     /* lost by a drained engine */
};


/* ngx_http_llm_module.c */

extern ngx_module_t  ngx_http_llm_module;


/* ngx_http_llm_variables.c */

ngx_int_t ngx_http_llm_add_variables(ngx_conf_t *cf);

/* the mean of the times between its tokens, of which there are two or more */
uint64_t ngx_http_llm_token_time(ngx_http_llm_account_t *account);


/* ngx_http_llm_route.c */

ngx_int_t ngx_http_llm_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_create_ctx(ngx_http_request_t *r,
    ngx_http_llm_ctx_t **ctxp);
ngx_http_llm_ctx_t *ngx_http_llm_get_ctx(ngx_http_request_t *r);
ngx_uint_t ngx_http_llm_names_health(ngx_str_t *location);

/* of llm_weight; 0: it is none */
uint32_t ngx_http_llm_parse_weight(ngx_str_t *value);


/* ngx_http_llm_auth.c */

/*
 * May be asked in any phase, and for any location that has llm_keys or
 * llm_tenant.  NGX_OK; NGX_DECLINED: nobody's, with who->error; NGX_ERROR.
 */
ngx_int_t ngx_http_llm_authenticate(ngx_http_request_t *r,
    ngx_http_llm_identity_t *who);


/* ngx_http_llm_keys.c */

/* handler of the directive */
char *ngx_http_llm_keys(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* NULL: there is none */
const ngx_http_llm_key_t *ngx_http_llm_find_key(
    const ngx_http_llm_keys_t *keys, const u_char *digest);

/* without a key (NULL) everything is allowed */
ngx_uint_t ngx_http_llm_key_allows(const ngx_http_llm_key_t *key,
    ngx_str_t *model);


/* ngx_http_llm_revoke.c */

ngx_int_t ngx_http_llm_add_revocation(ngx_conf_t *cf);

/* handler of a new configuration, in the master */
ngx_int_t ngx_http_llm_revoke_keys(ngx_cycle_t *cycle);

/*
 * The ids of those that the configuration took away; NULL: a later one is in
 * force, and may have given some of them back.
 */
ngx_array_t *ngx_http_llm_revoked_keys(ngx_http_llm_main_conf_t *lmcf);

/*
 * Whether a later configuration has taken it away.  NGX_OK: no, or there is
 * no key, NGX_DECLINED: yes, NGX_BUSY: it cannot be known any more.
 */
ngx_int_t ngx_http_llm_check_revoked(ngx_http_request_t *r,
    const ngx_http_llm_key_t *key);


/* ngx_http_llm_body.c */

/* reads and parses, then calls ngx_http_llm_submit(), or answers */
ngx_int_t ngx_http_llm_generate(ngx_http_llm_ctx_t *ctx);

/*
 * The body that was read, or its first max bytes, in one piece; *copy, if not
 * NULL, may be given back with ngx_pfree().
 */
ngx_int_t ngx_http_llm_join_body(ngx_http_request_t *r, size_t max,
    ngx_str_t *body, u_char **copy);


/* ngx_http_llm_prefix.c */

/* of a parsed request, LLM_IPC_PREFIX_SIZE bytes; 0: it has none */
ngx_uint_t ngx_http_llm_request_prefix(ngx_http_llm_ctx_t *ctx,
    u_char *prefix);

ngx_int_t ngx_http_llm_prefix_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


/* ngx_http_llm_submit.c */

void ngx_http_llm_submit(ngx_http_llm_ctx_t *ctx);

extern ngx_http_llm_error_t  ngx_http_llm_too_large;


/* ngx_http_llm_request.c */

/*
 * A request that waits for something other than its client is in flight: it
 * has a timer, which keeps an exiting worker alive, and notices that the
 * client is gone.
 */
ngx_int_t ngx_http_llm_begin(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_finalize(ngx_http_llm_ctx_t *ctx, ngx_int_t rc);
void ngx_http_llm_cleanup(void *data);
void ngx_http_llm_fail(ngx_http_llm_ctx_t *ctx, ngx_http_llm_error_t *error);

extern ngx_http_llm_error_t  ngx_http_llm_engine_lost;
extern ngx_http_llm_error_t  ngx_http_llm_draining;

/*
 * Records of the engine are noted; then ngx_http_llm_process() acts once for
 * all that came together.  NGX_ERROR: no engine in its right mind sends this.
 */
void ngx_http_llm_counted(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_counted *counted);
ngx_int_t ngx_http_llm_token(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_token_view *token);
ngx_int_t ngx_http_llm_choice_end(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_choice_end *end);
void ngx_http_llm_finished(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_finished *finished);
/* drained: the engine was ending, and has ended */
void ngx_http_llm_lost(ngx_http_llm_ctx_t *ctx, ngx_uint_t drained);
void ngx_http_llm_process(ngx_http_llm_ctx_t *ctx);

/* sets the request's timer anew, after what it depends on has changed */
void ngx_http_llm_arm(ngx_http_llm_ctx_t *ctx);

uint64_t ngx_http_llm_clock(void);


/* ngx_http_llm_next.c */

/* whether what the engine says of it leaves it to another one, and that */
ngx_uint_t ngx_http_llm_may_pass_on(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_pass_on(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_session.c */

void ngx_http_llm_engine_connect(ngx_http_llm_engine_t *engine);
void ngx_http_llm_engine_close(ngx_http_llm_engine_t *engine);

/* ctx->resume is called once the session, or room in it, is there or is not */
void ngx_http_llm_engine_wait(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx);

/* ngx_http_llm_process() is called in this turn, once */
void ngx_http_llm_engine_touch(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_exchange.c */

/*
 * Notes so many records at most.  NGX_OK: there may be more, NGX_AGAIN: there
 * is none, NGX_ERROR: the session is over for this reason.
 */
ngx_int_t ngx_http_llm_engine_take(ngx_http_llm_engine_t *engine, ngx_uint_t n,
    const char **reason);

/* NGX_OK, NGX_BUSY: crowded now, NGX_DECLINED: can never fit, NGX_ERROR */
ngx_int_t ngx_http_llm_engine_submit(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx);

/* grants what ctx owes */
void ngx_http_llm_engine_credit(ngx_http_llm_ctx_t *ctx);

/* tells of the keys that were revoked, as far as there is room */
void ngx_http_llm_engine_revoke(ngx_http_llm_engine_t *engine);

/* sends what there was no room for, now that the engine has made some */
void ngx_http_llm_engine_pay(ngx_http_llm_engine_t *engine);

/* lets the engine begin with what was admitted, unless it is too early */
void ngx_http_llm_engine_allow(ngx_http_llm_ctx_t *ctx);

/* takes ctx out of every queue and slot, cancelling what is not finished */
void ngx_http_llm_engine_release(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_engine.c */

/*
 * The engine for a request: one that has read its prefix, unless that one has
 * much more to do than others, else the least loaded one.
 */
ngx_http_llm_health_e ngx_http_llm_choose_engine(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_model_t *model, ngx_http_llm_engine_t **engine);

/* connects an engine that is down, if its time has come */
ngx_http_llm_health_e ngx_http_llm_engine_health(
    ngx_http_llm_engine_t *engine);
/* the best of a model's, or of several models' engines, least loaded first */
ngx_http_llm_health_e ngx_http_llm_model_health(ngx_http_llm_model_t *model,
    ngx_http_llm_engine_t **best);
/* the same but for those whose bit is set; NGX_HTTP_LLM_DOWN: none is left */
ngx_http_llm_health_e ngx_http_llm_others_health(ngx_http_llm_model_t *model,
    uint64_t but, ngx_http_llm_engine_t **best);
uint64_t ngx_http_llm_engine_bit(ngx_http_llm_model_t *model,
    ngx_http_llm_engine_t *engine);
ngx_http_llm_health_e ngx_http_llm_models_health(ngx_array_t *models,
    ngx_http_llm_engine_t **best);

/*
 * In how many seconds, 1 to 60, a full engine will have read what waits in it
 * now, and up to a quarter and a second more, lest all come back together.
 */
ngx_uint_t ngx_http_llm_engine_retry_after(ngx_http_llm_engine_t *engine);

extern ngx_http_llm_error_t  ngx_http_llm_no_such_model;

/* NULL: there is none of this name; an empty name asks for the default */
ngx_http_llm_model_t *ngx_http_llm_find_model(ngx_array_t *models,
    ngx_str_t *name);

/*
 * Whether the engine has this name for its model; an empty name asks for its
 * first, of at most LLM_IPC_MAX_NAME bytes.  NGX_OK or NGX_DECLINED.
 */
ngx_int_t ngx_http_llm_engine_model(ngx_http_llm_engine_t *engine,
    ngx_str_t *name, u_char *first, size_t *len);


/* ngx_http_llm_models.c */

/* content handlers of the routes that ask nothing of an engine */
ngx_int_t ngx_http_llm_list_models(ngx_http_llm_ctx_t *ctx);
ngx_int_t ngx_http_llm_show_health(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_answer.c */

ngx_int_t ngx_http_llm_init_answer(ngx_http_llm_ctx_t *ctx,
    const uint8_t *fingerprint);
const char *ngx_http_llm_finish_reason(ngx_uint_t reason);

/*
 * Note the text of a TOKEN record, and the end of a choice.
 * NGX_DECLINED: no memory, or more than the request can have asked for;
 * NGX_ERROR: no engine in its right mind sends this.
 */
ngx_int_t ngx_http_llm_add_text(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t kind, const char *text, size_t len);
ngx_int_t ngx_http_llm_add_end(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t reason);

/* these write into ctx->writer: a whole answer, or a stream's events */
void ngx_http_llm_put_answer(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_put_text_event(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t kind, const u_char *text, size_t len);
void ngx_http_llm_put_end_event(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t reason);
void ngx_http_llm_put_last_events(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_writer.c */

void ngx_http_llm_put(ngx_http_llm_writer_t *w, const void *data, size_t len);
void ngx_http_llm_put_escaped(ngx_http_llm_writer_t *w, const void *text,
    size_t len);
void ngx_http_llm_put_string(ngx_http_llm_writer_t *w, const void *text,
    size_t len);
void ngx_http_llm_put_c_string(ngx_http_llm_writer_t *w, const char *text);
void ngx_http_llm_put_number(ngx_http_llm_writer_t *w, uint64_t n);

#define ngx_http_llm_put_text(w, text)                                       \
    ngx_http_llm_put(w, text, sizeof(text) - 1)

/* of w->out, which is not empty */
ngx_buf_t *ngx_http_llm_last_buf(ngx_http_llm_writer_t *w);


/* ngx_http_llm_output.c */

/*
 * Keeps a record of a stream until the client is ready for it; kind 0 is the
 * end of a choice.  NGX_DECLINED: no memory.
 */
ngx_int_t ngx_http_llm_pend(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t kind, ngx_uint_t reason, const char *text, size_t len);
void ngx_http_llm_pending_free(ngx_http_llm_ctx_t *ctx);

/* writes and sends what the client takes now; may finalize the request */
void ngx_http_llm_stream(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_keep_alive(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_write_handler(ngx_http_request_t *r);

/* a whole answer; the result is for ngx_http_finalize_request() */
ngx_int_t ngx_http_llm_send_json(ngx_http_llm_ctx_t *ctx, ngx_uint_t status,
    ngx_http_llm_writer_t *w);
ngx_int_t ngx_http_llm_send_document(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *type, ngx_http_llm_writer_t *w);
void ngx_http_llm_set_header(ngx_http_request_t *r, ngx_str_t *type,
    off_t length);
ngx_int_t ngx_http_llm_add_header(ngx_http_request_t *r, const char *key,
    const void *value, size_t len);


/* ngx_http_llm_error.c */

/* the result is for ngx_http_finalize_request() */
ngx_int_t ngx_http_llm_send_error(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_error_t *error);
void ngx_http_llm_put_error(ngx_http_llm_writer_t *w,
    ngx_http_llm_error_t *error);

/* of enum llm_ipc_status */
ngx_http_llm_error_t *ngx_http_llm_status_error(ngx_uint_t status);

/* of an engine that is not ready */
ngx_http_llm_error_t *ngx_http_llm_health_error(ngx_http_llm_health_e health);

/* the same of an engine that the request would have gone to */
ngx_http_llm_error_t *ngx_http_llm_refusal(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_health_e health, ngx_http_llm_engine_t *engine);

/* fills ctx->error with what FINISHED says when it does not say OK */
void ngx_http_llm_finished_error(ngx_http_llm_ctx_t *ctx);

ngx_int_t ngx_http_llm_init_filter(ngx_conf_t *cf);


/* ngx_http_llm_limit.c */

/*
 * Before the body is read: counts the request, and sees whether tokens are
 * left.  NGX_OK, NGX_ERROR, or NGX_DECLINED: ctx->error says why not.
 */
ngx_int_t ngx_http_llm_limit_check(ngx_http_llm_ctx_t *ctx);

/* whether the engine must wait for ngx_http_llm_limit_reserve(), and a delay */
ngx_uint_t ngx_http_llm_limit_holds(ngx_http_llm_ctx_t *ctx);

/*
 * When the prompt was counted: holds what it may use at most, and says in
 * ctx->allowed what that is.  Results are those of ngx_http_llm_limit_check().
 */
ngx_int_t ngx_http_llm_limit_reserve(ngx_http_llm_ctx_t *ctx);

/* until it may begin; not positive: it may now */
ngx_msec_int_t ngx_http_llm_limit_delay_left(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_limit_conf.c */

char *ngx_http_llm_limit_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_llm_limit(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_llm_budget(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);


/* ngx_http_llm_limit_headers.c */

ngx_int_t ngx_http_llm_limit_headers(ngx_http_llm_ctx_t *ctx);


/* ngx_http_llm_charge.c */

/* notes tokens of the completion; then one of these ends the charge */
void ngx_http_llm_charge_came(ngx_http_llm_charge_t *charge, uint32_t tokens);
void ngx_http_llm_charge_finished(ngx_http_llm_charge_t *charge,
    struct llm_ipc_finished *finished);
void ngx_http_llm_charge_lost(ngx_http_llm_charge_t *charge);


/* ngx_http_llm_limit_zone.c */

/* a worker begins: those that are gone may have left something */
void ngx_http_llm_limit_init_process(ngx_http_llm_main_conf_t *lmcf);


/* ngx_http_llm_zone.c */

/* of a directive's NAME:SIZE; NULL: there is none, which is logged */
ngx_shm_zone_t *ngx_http_llm_add_zone(ngx_conf_t *cf, ngx_str_t *value,
    void *tag);

/*
 * So many zeroed bytes, the data of a zone that was made just now; its log
 * messages name the directive.  NULL: no memory.
 */
void *ngx_http_llm_init_zone(ngx_shm_zone_t *shm_zone, const char *directive,
    size_t size);


/* ngx_http_llm_status_zone.c, ngx_http_llm_status.c */

char *ngx_http_llm_status_zone(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_llm_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
ngx_int_t ngx_http_llm_init_status(ngx_conf_t *cf);


#endif /* _NGX_HTTP_LLM_MODULE_H_INCLUDED_ */
