/* Feeds a fuzz target what is in its corpus, t/fuzz/corpus/NAME; speaks TAP. */

#include "t/unit/files.h"
#include "t/unit/tap.h"

#include <dirent.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int is_file(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/'), *name = slash != NULL ? slash + 1 : argv[0];
    struct dirent **entries;
    char path[512];
    int n;

    (void) argc;
    snprintf(path, sizeof(path), "t/fuzz/corpus/%s", name);
    n = scandir(path, &entries, is_file, alphasort);
    for (int i = 0; i < n; i++) {
        uint8_t *exact;
        size_t len;
        char *data;

        snprintf(path, sizeof(path), "t/fuzz/corpus/%s/%s", name, entries[i]->d_name);
        data = read_file(path, &len);
        exact = malloc(len + (len == 0)); /* so that the byte behind it is seen to be read */
        if (exact == NULL) {
            printf("Bail out! out of memory\n");
            exit(1);
        }
        memcpy(exact, data, len);
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
        free(data);
        free(entries[i]);
    }
    if (n >= 0) {
        free(entries);
    }
    ok(n > 0, "%d inputs of t/fuzz/corpus/%s", n, name);
    return done_testing();
}
