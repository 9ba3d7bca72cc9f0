/* The latent memory when nobody says how much, on a device with memory of its own: what a backend
 * is asked for by the room it has. */

#include "engine/model/plane.h"
#include "engine/serve/served.h"
#include "t/unit/tap.h"

static uint64_t room_bytes;
static struct llm_backend_options asked;

static uint64_t room(const struct llm_model *model, uint32_t device)
{
    (void) model, (void) device;
    return room_bytes;
}

static int load(const struct llm_model *model, const struct llm_backend_options *options,
                struct llm_backend **out, struct llm_error *err)
{
    (void) model, (void) out;
    asked = *options;
    return llm_fail(err, LLM_ENOMEM, "12 MB are missing");
}

static const struct llm_backend_ops ops = {.room = room, .load = load};

/* What load is asked for; the error is its own. */
static uint64_t latent_bytes(struct llm_served *s, uint64_t bytes)
{
    const struct llm_settings settings = {.latent_dtype = LLM_LATENT_BF16, .max_context = 1024};
    const struct llm_served_watch nobody = {0};
    struct llm_error err = {0};

    room_bytes = bytes;
    asked = (struct llm_backend_options){0};
    is_int(llm_served_load(s, &settings, &nobody, &err), LLM_ENOMEM, "there is no room");
    is_str(err.text, "12 MB are missing", "as the backend says");
    return asked.latent_bytes;
}

int main(void)
{
    struct llm_served s = {.ops = &ops};
    struct llm_page_layout layout;
    struct llm_error err;
    uint64_t one;

    if (llm_model_open("models/demo", &s.model, &err) != LLM_OK
        || llm_page_layout_init(&layout, &s.model->config, LLM_LATENT_BF16, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    one = 1024 / LLM_PAGE_TOKENS * layout.page_bytes;

    is_int(latent_bytes(&s, 8 * one), 6 * one, "three quarters of the room");
    is_int(latent_bytes(&s, 1000 * one), 32 * one, "no more than 32 sequences take");
    is_int(latent_bytes(&s, 0), one,
           "where the weights leave none, a sequence's: the backend says what is missing");

    llm_page_layout_free(&layout);
    llm_model_close(s.model);
    return done_testing();
}
