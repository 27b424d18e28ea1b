/* pretok_words: cuts texts with one pre-tokenizer, for tools/compare_tokenizers.py.
 *
 *     pretok_words NAME < texts > words
 *
 * A text is its length in bytes (uint32) and its bytes; what comes out for it is the number of its
 * words and the length in bytes of each (uint32). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pretok.h"
#include "wina.h"

typedef struct lengths {
    uint32_t *items;
    uint32_t n;
} lengths;

static int32_t append(void *user, const uint8_t *word, size_t n) {
    lengths *found = user;
    (void)word;
    found->items[found->n++] = (uint32_t)n;
    return WINA_OK;
}

int main(int argc, char **argv) {
    const wina_pretok *pretok = argc == 2 ? wina_pretok_find(argv[1], strlen(argv[1])) : NULL;
    if (pretok == NULL) {
        fprintf(stderr, "usage: pretok_words NAME, with the name of a pre-tokenizer\n");
        return 2;
    }
    uint32_t n;
    while (fread(&n, sizeof n, 1, stdin) == 1) {
        uint8_t *text = malloc(n + 1);
        lengths found = {malloc((n + 1) * sizeof(uint32_t)), 0};
        if (text == NULL || found.items == NULL || fread(text, 1, n, stdin) != n ||
            wina_pretok_split(pretok, text, n, append, &found) != WINA_OK)
            return 1;
        fwrite(&found.n, sizeof found.n, 1, stdout);
        fwrite(found.items, sizeof *found.items, found.n, stdout);
        free(found.items);
        free(text);
    }
    return 0;
}
