
/*
 * llm_keys: a file of keys' digests, read with the configuration and looked
 * up by the digest of the key that a request shows.
 */


#include "ngx_module/ngx_http_llm_module.h"

#include <openssl/crypto.h>


static ngx_http_llm_keys_t *ngx_http_llm_read_keys(ngx_conf_t *cf,
    ngx_str_t *file);
static ngx_int_t ngx_http_llm_read_key_file(ngx_conf_t *cf, ngx_str_t *file,
    ngx_str_t *text);
static ngx_int_t ngx_http_llm_parse_keys(ngx_conf_t *cf,
    ngx_http_llm_keys_t *keys, ngx_str_t *text);
static ngx_int_t ngx_http_llm_keep_key(ngx_conf_t *cf,
    ngx_http_llm_keyline_t *said);
static ngx_int_t ngx_http_llm_order_keys(ngx_conf_t *cf,
    ngx_http_llm_keys_t *keys);
static int ngx_libc_cdecl ngx_http_llm_cmp_digests(const void *one,
    const void *two);
static int ngx_libc_cdecl ngx_http_llm_cmp_names(const void *one,
    const void *two);
static ngx_int_t ngx_http_llm_index_keys(ngx_conf_t *cf,
    ngx_http_llm_keys_t *keys);
static ngx_uint_t ngx_http_llm_key_start(const ngx_http_llm_keys_t *keys,
    const u_char *digest);


char *
ngx_http_llm_keys(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_str_t                  *value, file;
    ngx_uint_t                  i;
    ngx_http_llm_keys_t       **keys;
    ngx_http_llm_main_conf_t   *lmcf;

    if (llcf->keys) {
        return "is duplicate";
    }

    if (llcf->tenant) {
        return "conflicts with \"llm_tenant\" of this level";
    }

    value = cf->args->elts;
    file = value[1];

    if (ngx_conf_full_name(cf->cycle, &file, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* a file named in several places is read once */

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    keys = lmcf->keys.elts;

    for (i = 0; i < lmcf->keys.nelts; i++) {

        if (ngx_strcmp(keys[i]->file.data, file.data) == 0) {
            llcf->keys = keys[i];
            return NGX_CONF_OK;
        }
    }

    keys = ngx_array_push(&lmcf->keys);
    if (keys == NULL) {
        return NGX_CONF_ERROR;
    }

    *keys = ngx_http_llm_read_keys(cf, &file);
    if (*keys == NULL) {
        return NGX_CONF_ERROR;
    }

    llcf->keys = *keys;

    return NGX_CONF_OK;
}


static ngx_http_llm_keys_t *
ngx_http_llm_read_keys(ngx_conf_t *cf, ngx_str_t *file)
{
    ngx_int_t             rc;
    ngx_str_t             text;
    ngx_http_llm_keys_t  *keys;

    keys = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_keys_t));
    if (keys == NULL) {
        return NULL;
    }

    keys->file = *file;

    if (ngx_http_llm_read_key_file(cf, file, &text) != NGX_OK) {
        return NULL;
    }

    rc = ngx_http_llm_parse_keys(cf, keys, &text);

    ngx_free(text.data);

    if (rc != NGX_OK
        || ngx_http_llm_order_keys(cf, keys) != NGX_OK
        || ngx_http_llm_index_keys(cf, keys) != NGX_OK)
    {
        return NULL;
    }

    return keys;
}


static ngx_int_t
ngx_http_llm_read_key_file(ngx_conf_t *cf, ngx_str_t *file, ngx_str_t *text)
{
    size_t           size;
    ssize_t          n;
    ngx_fd_t         fd;
    ngx_file_info_t  fi;

    fd = ngx_open_file(file->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", file);
        return NGX_ERROR;
    }

    text->data = NULL;
    text->len = 0;

    if (ngx_fd_info(fd, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_fd_info_n " \"%V\" failed", file);
        goto failed;
    }

    size = ngx_file_size(&fi);

    text->data = ngx_alloc(size + 1, cf->log);
    if (text->data == NULL) {
        goto failed;
    }

    while (text->len < size) {
        n = ngx_read_fd(fd, text->data + text->len, size - text->len);

        if (n == -1) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                               ngx_read_fd_n " \"%V\" failed", file);
            goto failed;
        }

        if (n == 0) {
            break;
        }

        text->len += n;
    }

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", file);
    }

    return NGX_OK;

failed:

    if (text->data) {
        ngx_free(text->data);
    }

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", file);
    }

    return NGX_ERROR;
}


/* errors quote nothing: a key may stand where its digest should */

static ngx_int_t
ngx_http_llm_parse_keys(ngx_conf_t *cf, ngx_http_llm_keys_t *keys,
    ngx_str_t *text)
{
    u_char              *p, *last, *end;
    uint32_t             line;
    ngx_uint_t           n;
    const char          *error;
    ngx_http_llm_key_t  *key;

    last = text->data + text->len;
    n = 1;

    for (p = text->data; p < last; p++) {
        n += *p == LF;
    }

    keys->elts = ngx_palloc(cf->pool, n * sizeof(ngx_http_llm_key_t));
    if (keys->elts == NULL) {
        return NGX_ERROR;
    }

    line = 0;

    for (p = text->data; p < last; p = end + 1) {
        end = ngx_strlchr(p, last, LF);

        if (end == NULL) {
            end = last;
        }

        key = &keys->elts[keys->nelts];
        key->line = ++line;

        switch (ngx_http_llm_keyline(p, end - p, &key->said, &error)) {

        case 0:
            break;

        case 1:
            if (ngx_http_llm_keep_key(cf, &key->said) != NGX_OK) {
                return NGX_ERROR;
            }

            keys->nelts++;
            break;

        default:
            ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "%s in %V:%uD",
                          error, &keys->file, line);
            return NGX_ERROR;
        }
    }

    if (keys->nelts == 0) {
        ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                      "no key in \"%V\"", &keys->file);
    }

    return NGX_OK;
}


/* the text of the file goes, the words stay */

static ngx_int_t
ngx_http_llm_keep_key(ngx_conf_t *cf, ngx_http_llm_keyline_t *said)
{
    u_char               *p;
    ngx_uint_t            i;
    ngx_http_llm_word_t  *words[3];

    words[0] = &said->id;
    words[1] = &said->tenant;
    words[2] = &said->models;

    p = ngx_pnalloc(cf->pool,
                    said->id.len + said->tenant.len + said->models.len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < 3; i++) {
        if (words[i]->len) {
            ngx_memcpy(p, words[i]->data, words[i]->len);
            words[i]->data = p;
            p += words[i]->len;
        }
    }

    return NGX_OK;
}


/* by digest; on the way, what is there twice is found */

static ngx_int_t
ngx_http_llm_order_keys(ngx_conf_t *cf, ngx_http_llm_keys_t *keys)
{
    ngx_int_t             rc;
    ngx_uint_t            i, n;
    ngx_http_llm_key_t  **names, *key;

    n = keys->nelts;
    key = keys->elts;

    ngx_qsort(key, n, sizeof(ngx_http_llm_key_t), ngx_http_llm_cmp_digests);

    for (i = 1; i < n; i++) {

        if (ngx_memcmp(key[i - 1].said.digest, key[i].said.digest,
                       LLM_IPC_KEY_DIGEST)
            == 0)
        {
            ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                          "the digest of line %uD again in %V:%uD",
                          ngx_min(key[i - 1].line, key[i].line), &keys->file,
                          ngx_max(key[i - 1].line, key[i].line));
            return NGX_ERROR;
        }
    }

    names = ngx_alloc((n + 1) * sizeof(ngx_http_llm_key_t *), cf->log);
    if (names == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        names[i] = &key[i];
    }

    ngx_qsort(names, n, sizeof(ngx_http_llm_key_t *), ngx_http_llm_cmp_names);

    rc = NGX_OK;

    for (i = 1; i < n; i++) {

        if (ngx_http_llm_cmp_names(&names[i - 1], &names[i]) == 0) {
            ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                          "the id of line %uD again in %V:%uD",
                          ngx_min(names[i - 1]->line, names[i]->line),
                          &keys->file,
                          ngx_max(names[i - 1]->line, names[i]->line));
            rc = NGX_ERROR;
            break;
        }
    }

    ngx_free(names);

    return rc;
}


static int ngx_libc_cdecl
ngx_http_llm_cmp_digests(const void *one, const void *two)
{
    const ngx_http_llm_key_t *first = one, *second = two;

    return ngx_memcmp(first->said.digest, second->said.digest,
                      LLM_IPC_KEY_DIGEST);
}


static int ngx_libc_cdecl
ngx_http_llm_cmp_names(const void *one, const void *two)
{
    const ngx_http_llm_key_t *const *first = one, *const *second = two;

    return ngx_memn2cmp((u_char *) (*first)->said.id.data,
                        (u_char *) (*second)->said.id.data,
                        (*first)->said.id.len, (*second)->said.id.len);
}


/*
 * Where those begin that begin alike: digests are evenly spread, so that
 * there are few of each, whatever the number of keys.
 */

static ngx_int_t
ngx_http_llm_index_keys(ngx_conf_t *cf, ngx_http_llm_keys_t *keys)
{
    ngx_uint_t  i, n, start;

    for (keys->bits = 1; keys->nelts >> keys->bits; keys->bits++) {
        /* void */
    }

    n = (ngx_uint_t) 1 << keys->bits;

    keys->first = ngx_palloc(cf->pool, n * sizeof(uint32_t));
    if (keys->first == NULL) {
        return NGX_ERROR;
    }

    start = 0;

    for (i = 0; i < n; i++) {
        keys->first[i] = start;

        while (start < keys->nelts
               && ngx_http_llm_key_start(keys, keys->elts[start].said.digest)
                  == i)
        {
            start++;
        }

        keys->most = ngx_max(keys->most, start - keys->first[i]);
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_llm_key_start(const ngx_http_llm_keys_t *keys, const u_char *digest)
{
    uint32_t  start;

    start = (uint32_t) digest[0] << 24 | digest[1] << 16 | digest[2] << 8
            | digest[3];

    return start >> (32 - keys->bits);
}


/*
 * In as many steps for a digest that is there as for any other, so that time
 * tells nothing.
 */

const ngx_http_llm_key_t *
ngx_http_llm_find_key(const ngx_http_llm_keys_t *keys, const u_char *digest)
{
    ngx_uint_t                 i, n, half;
    const ngx_http_llm_key_t  *key;

    if (keys->nelts == 0) {
        return NULL;
    }

    n = keys->most;
    i = keys->first[ngx_http_llm_key_start(keys, digest)];

    key = keys->elts + ngx_min(i, keys->nelts - n);

    while (n > 1) {
        half = n / 2;

        if (ngx_memcmp(key[half].said.digest, digest, LLM_IPC_KEY_DIGEST)
            <= 0)
        {
            key += half;
        }

        n -= half;
    }

    if (CRYPTO_memcmp(key->said.digest, digest, LLM_IPC_KEY_DIGEST) != 0) {
        return NULL;
    }

    return key;
}


ngx_uint_t
ngx_http_llm_key_allows(const ngx_http_llm_key_t *key, ngx_str_t *model)
{
    if (key == NULL || key->said.models.len == 0) {
        return 1;
    }

    return ngx_http_llm_keyline_names(&key->said.models, model->data,
                                      model->len);
}
