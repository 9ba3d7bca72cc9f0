
#include "ngx_module/ngx_http_llm_keyline.h"

#include "engine/ipc/abi.h"
#include "engine/ipc/utf8.h"

#include <string.h>


typedef struct ngx_http_llm_setting_s  ngx_http_llm_setting_t;

/* returns NULL, or what is wrong with the value */
typedef const char *(*ngx_http_llm_setting_pt)(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key);


struct ngx_http_llm_setting_s {
    const char               *name;     /* with its "=" */
    ngx_http_llm_setting_pt   read;
    size_t                    offset;   /* of a number */
    uint32_t                  max;
    const char               *error;
};


static int ngx_http_llm_keyline_word(ngx_http_llm_word_t *rest,
    ngx_http_llm_word_t *word);
static int ngx_http_llm_keyline_digest(const ngx_http_llm_word_t *word,
    unsigned char *digest);
static const char *ngx_http_llm_keyline_setting(ngx_http_llm_word_t *word,
    ngx_http_llm_keyline_t *key, unsigned *seen);
static const char *ngx_http_llm_keyline_number(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key);
static const char *ngx_http_llm_keyline_expires(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key);
static int ngx_http_llm_keyline_digits(ngx_http_llm_word_t *word, size_t n,
    int before, int *value);
static const char *ngx_http_llm_keyline_models(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key);


static const ngx_http_llm_setting_t  ngx_http_llm_settings[] = {

    { "weight=", ngx_http_llm_keyline_number,
      offsetof(ngx_http_llm_keyline_t, weight), LLM_IPC_MAX_WEIGHT,
      "the weight is no integer from 1 to 1000" },

    { "queued=", ngx_http_llm_keyline_number,
      offsetof(ngx_http_llm_keyline_t, max_queued), UINT32_MAX,
      "\"queued\" is no integer from 1 to 4294967295" },

    { "running=", ngx_http_llm_keyline_number,
      offsetof(ngx_http_llm_keyline_t, max_running), UINT32_MAX,
      "\"running\" is no integer from 1 to 4294967295" },

    { "pages=", ngx_http_llm_keyline_number,
      offsetof(ngx_http_llm_keyline_t, max_pages), UINT32_MAX,
      "\"pages\" is no integer from 1 to 4294967295" },

    { "expires=", ngx_http_llm_keyline_expires, 0, 0,
      "the date is no YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ" },

    { "models=", ngx_http_llm_keyline_models, 0, 0,
      "the models are no names with commas between them" },

    { NULL, NULL, 0, 0, NULL }
};


int
ngx_http_llm_keyline(const unsigned char *line, size_t len,
    ngx_http_llm_keyline_t *key, const char **error)
{
    unsigned             seen;
    ngx_http_llm_word_t  rest, word;

    memset(key, 0, sizeof(ngx_http_llm_keyline_t));

    rest.data = line;
    rest.len = len;

    if (!ngx_http_llm_keyline_word(&rest, &key->id)) {
        return 0;
    }

    if (!llm_ipc_key_name_valid(key->id.data, key->id.len)) {
        *error = "the id is not of 1 to 64 printable ASCII characters";
        return -1;
    }

    if (!ngx_http_llm_keyline_word(&rest, &word)
        || !ngx_http_llm_keyline_digest(&word, key->digest))
    {
        *error = "the digest is not of 64 hexadecimal digits";
        return -1;
    }

    if (!ngx_http_llm_keyline_word(&rest, &key->tenant)
        || !llm_ipc_key_tenant_valid(key->tenant.data, key->tenant.len))
    {
        *error = "the tenant is not of 1 to 255 printable ASCII characters, "
                 "or a reserved name";
        return -1;
    }

    seen = 0;

    while (ngx_http_llm_keyline_word(&rest, &word)) {
        *error = ngx_http_llm_keyline_setting(&word, key, &seen);

        if (*error) {
            return -1;
        }
    }

    return 1;
}


static int
ngx_http_llm_keyline_is_blank(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}


/* takes the next word off the rest; 0: there is none, or a comment */

static int
ngx_http_llm_keyline_word(ngx_http_llm_word_t *rest, ngx_http_llm_word_t *word)
{
    while (rest->len && ngx_http_llm_keyline_is_blank(*rest->data)) {
        rest->data++;
        rest->len--;
    }

    if (rest->len == 0 || *rest->data == '#') {
        rest->len = 0;
        return 0;
    }

    word->data = rest->data;

    while (rest->len && !ngx_http_llm_keyline_is_blank(*rest->data)) {
        rest->data++;
        rest->len--;
    }

    word->len = rest->data - word->data;

    return 1;
}


static int
ngx_http_llm_keyline_hex(unsigned char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }

    c |= 0x20;

    return (c >= 'a' && c <= 'f') ? c - 'a' + 10 : -1;
}


static int
ngx_http_llm_keyline_digest(const ngx_http_llm_word_t *word,
    unsigned char *digest)
{
    int     high, low;
    size_t  i;

    if (word->len != 2 * LLM_IPC_KEY_DIGEST) {
        return 0;
    }

    for (i = 0; i < LLM_IPC_KEY_DIGEST; i++) {
        high = ngx_http_llm_keyline_hex(word->data[2 * i]);
        low = ngx_http_llm_keyline_hex(word->data[2 * i + 1]);

        if (high == -1 || low == -1) {
            return 0;
        }

        digest[i] = (unsigned char) (high << 4 | low);
    }

    return 1;
}


static const char *
ngx_http_llm_keyline_setting(ngx_http_llm_word_t *word,
    ngx_http_llm_keyline_t *key, unsigned *seen)
{
    size_t                         i, n;
    ngx_http_llm_word_t            value;
    const ngx_http_llm_setting_t  *setting;

    for (i = 0; ngx_http_llm_settings[i].name; i++) {
        setting = &ngx_http_llm_settings[i];
        n = strlen(setting->name);

        if (word->len < n || memcmp(word->data, setting->name, n) != 0) {
            continue;
        }

        if (*seen & 1u << i) {
            return "a setting is said twice";
        }

        *seen |= 1u << i;

        value.data = word->data + n;
        value.len = word->len - n;

        return setting->read(&value, setting, key);
    }

    return "there is no such setting: those after the tenant are \"weight\", "
           "\"queued\", \"running\", \"pages\", \"expires\" and \"models\"";
}


static const char *
ngx_http_llm_keyline_number(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key)
{
    size_t    i;
    uint64_t  n;

    n = 0;

    for (i = 0; i < value->len; i++) {

        if (value->data[i] < '0' || value->data[i] > '9') {
            return setting->error;
        }

        n = n * 10 + (value->data[i] - '0');

        if (n > setting->max) {
            return setting->error;
        }
    }

    if (n == 0) {
        return setting->error;
    }

    *(uint32_t *) ((unsigned char *) key + setting->offset) = (uint32_t) n;

    return NULL;
}


static const char *
ngx_http_llm_keyline_expires(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key)
{
    int  leap, year, month, day, hour, minute, second, days;

    static const int  length[] = { 31, 28, 31, 30, 31, 30,
                                   31, 31, 30, 31, 30, 31 };
    static const int  before[] = { 0, 31, 59, 90, 120, 151,
                                   181, 212, 243, 273, 304, 334 };

    hour = minute = second = 0;

    if (!ngx_http_llm_keyline_digits(value, 4, 0, &year)
        || !ngx_http_llm_keyline_digits(value, 2, '-', &month)
        || !ngx_http_llm_keyline_digits(value, 2, '-', &day)
        || year < 1970 || month < 1 || month > 12 || day < 1)
    {
        return setting->error;
    }

    leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

    if (day > length[month - 1] + (leap && month == 2)) {
        return setting->error;
    }

    if (value->len
        && (!ngx_http_llm_keyline_digits(value, 2, 'T', &hour)
            || !ngx_http_llm_keyline_digits(value, 2, ':', &minute)
            || !ngx_http_llm_keyline_digits(value, 2, ':', &second)
            || value->len != 1 || *value->data != 'Z'
            || hour > 23 || minute > 59 || second > 59))
    {
        return setting->error;
    }

    /* leap days of the years before this one count from the year 0 */

    days = (year - 1970) * 365
           + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400
           - (1969 / 4 - 1969 / 100 + 1969 / 400)
           + before[month - 1] + (leap && month > 2) + day - 1;

    key->expires = days * INT64_C(86400) + hour * 3600 + minute * 60 + second;

    /* the first second of all times is as good as the next, and not "never" */

    if (key->expires == 0) {
        key->expires = 1;
    }

    return NULL;
}


/* takes that character, if any, and n digits off the word */

static int
ngx_http_llm_keyline_digits(ngx_http_llm_word_t *word, size_t n, int before,
    int *value)
{
    if (before) {

        if (word->len == 0 || *word->data != before) {
            return 0;
        }

        word->data++;
        word->len--;
    }

    if (word->len < n) {
        return 0;
    }

    for (*value = 0; n; n--) {

        if (*word->data < '0' || *word->data > '9') {
            return 0;
        }

        *value = *value * 10 + (*word->data - '0');

        word->data++;
        word->len--;
    }

    return 1;
}


/* takes the next name off the names, with the comma behind it */

static void
ngx_http_llm_keyline_name(ngx_http_llm_word_t *names,
    ngx_http_llm_word_t *name)
{
    const unsigned char  *comma;

    comma = memchr(names->data, ',', names->len);

    name->data = names->data;
    name->len = comma ? (size_t) (comma - names->data) : names->len;

    names->data += name->len + (comma != NULL);
    names->len -= name->len + (comma != NULL);
}


static const char *
ngx_http_llm_keyline_models(ngx_http_llm_word_t *value,
    const ngx_http_llm_setting_t *setting, ngx_http_llm_keyline_t *key)
{
    ngx_http_llm_word_t  rest, name;

    if (value->len == 0 || value->data[value->len - 1] == ',') {
        return setting->error;
    }

    rest = *value;

    while (rest.len) {
        ngx_http_llm_keyline_name(&rest, &name);

        if (name.len == 0 || name.len > LLM_IPC_MAX_NAME
            || !llm_ipc_utf8_valid(name.data, name.len))
        {
            return setting->error;
        }
    }

    key->models = *value;

    return NULL;
}


int
ngx_http_llm_keyline_names(const ngx_http_llm_word_t *models,
    const unsigned char *name, size_t len)
{
    ngx_http_llm_word_t  rest, one;

    rest = *models;

    while (rest.len) {
        ngx_http_llm_keyline_name(&rest, &one);

        if (one.len == len && memcmp(one.data, name, len) == 0) {
            return 1;
        }
    }

    return 0;
}
