/* Files in several parts, tensors that are added to a file that is open, and what is said of long
 * names: whatever the reader does after a single file has been parsed. */
#include "split.h"

#include <sys/random.h>
#include <unistd.h>

#include "check.h"
#include "config.h"
#include "ggufscript.h"
#include "status.h"

/* The kernel's random numbers, or none yet, as early at boot. */
static bool random_missing;
ssize_t __real_getrandom(void *out, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *out, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *out, size_t n, unsigned flags) {
    return random_missing ? -1 : __real_getrandom(out, n, flags);
}

static char folder[] = "/tmp/wina-test-split-XXXXXX";

static const char *part_path(int no) {
    static char path[128];
    snprintf(path, sizeof path, "%s/m-%05d-of-00003.gguf", folder, no + 1);
    return path;
}

static void write_part(int no, const script_file *f) {
    FILE *file = fopen(part_path(no), "wb");
    CHECK(file && fwrite(f->bytes, 1, f->n, file) == f->n);
    if (file)
        fclose(file);
}

#define KEYS(no, n, name)                                                                          \
    "'split.no' u4 u" #no " 'split.count' u4 u3 'split.tensors.count' u5 u" #n " 'general.name' "  \
    "u8 '" name "' "
#define SMALL(name) "'" name "' u1 U8 u0 U0 "

/* Three parts, the first of which is opened and joined with the others. */
static int32_t attach(const char *const script[3], wina_gguf **out) {
    for (int i = 0; i < 3; i++) {
        script_file f = script_make(script[i]);
        write_part(i, &f);
        free(f.bytes);
    }
    int32_t status = wina_gguf_open(part_path(0), out);
    CHECK(status == WINA_OK);
    return status ? status : wina_split_attach(*out, part_path(0));
}

static void test_three_parts(void) {
    static const char *const good[3] = {HEAD(1, 4) KEYS(0, 4, "m") SMALL("a") "@32 *32(b1)",
                                        HEAD(2, 4) KEYS(1, 4, "m")
                                            SMALL("b") "'c' u1 U8 u0 U32 @32 *32(b2) *32(b3)",
                                        HEAD(1, 4) KEYS(2, 4, "m") SMALL("d") "@32 *32(b4)"};
    wina_gguf *g = NULL;
    CHECK_MSG(attach(good, &g) == WINA_OK, "%s", wina_error());
    CHECK(g->n_parts == 2 && g->n_tensors == 4);
    uint64_t n = g->map.n_bytes + g->parts[0]->map.n_bytes + g->parts[1]->map.n_bytes;
    CHECK(wina_gguf_file_bytes(g) == n);
    static const char *const names[] = {"a", "b", "c", "d"};
    for (uint8_t i = 0; i < 4; i++) {
        const wina_gguf_tensor *t = wina_gguf_find_tensor(g, names[i]);
        CHECK(t == &g->tensors[i] && t->data[0] == i + 1 && t->data[31] == i + 1);
        wina_gguf_release(g, t); /* the bytes come back from the file */
        CHECK(t->data[31] == i + 1);
    }
    CHECK(wina_gguf_find_tensor(g, "e") == NULL);
    wina_gguf_close(g);
}

static void test_bad_parts(void) {
    static const char first[] = HEAD(1, 4) KEYS(0, 3, "m") SMALL("a") "@32 z32";
    static const char second[] = HEAD(1, 4) KEYS(1, 3, "m") SMALL("b") "@32 z32";
    static const struct {
        const char *script[3], *words;
    } bad[] = {
        {{first, second, HEAD(1, 4) KEYS(2, 3, "m") SMALL("a") "@32 z32"},
         "tensor \"a\" is in two parts"},
        {{first, second, HEAD(1, 4) KEYS(1, 3, "m") SMALL("c") "@32 z32"},
         "says that it is part 2"},
        {{first, second, HEAD(1, 4) KEYS(2, 4, "m") SMALL("c") "@32 z32"}, "split.tensors.count"},
        {{first, second, HEAD(1, 4) KEYS(2, 3, "n") SMALL("c") "@32 z32"}, "general.name differs"},
        {{first, second, HEAD(1, 0) SMALL("c") "@32 z32"}, "no split.count"},
        {{first, second, "GGUF u3"}, "00003-of-00003.gguf"},
        {{first, second, HEAD(2, 4) KEYS(2, 3, "m") SMALL("c") "'d' u1 U8 u0 U32 @32 z64"},
         "its parts hold 4"},
        {{HEAD(1, 4) KEYS(2, 3, "m") SMALL("a") "@32 z32", second, second}, "open part 1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        wina_gguf *g = NULL;
        CHECK(attach(bad[i].script, &g) != WINA_OK);
        CHECK_MSG(strstr(wina_error(), bad[i].words), "%d: \"%s\"", (int)i, wina_error());
        wina_gguf_close(g);
    }
}

/* Each part within the limit of a file, all together beyond it. */
static void test_too_many_tensors(void) {
    for (int no = 0; no < 3; no++) {
        char entry[128];
        script_file f = script_make(HEAD(30000, 3));
        snprintf(entry, sizeof entry,
                 "'split.no' u4 u%d 'split.count' u4 u3 'split.tensors.count' u4 u90000", no);
        script_run(&f, entry, 0);
        for (unsigned i = 0; i < 30000; i++) {
            snprintf(entry, sizeof entry, "'%c%u' u1 U8 u0 U%u", 'a' + no, i, i * 32);
            script_run(&f, entry, 0);
        }
        script_run(&f, "@32 z960000", 0);
        write_part(no, &f);
        free(f.bytes);
    }
    wina_gguf *g = NULL;
    CHECK(wina_gguf_open(part_path(0), &g) == WINA_OK);
    CHECK(wina_split_attach(g, part_path(0)) == WINA_E_UNSUPPORTED);
    CHECK_MSG(strstr(wina_error(), "tensor count 90000, the limit is 65536"), "%s", wina_error());
    CHECK(g->n_tensors == 30000 && wina_gguf_find_tensor(g, "a29999"));
    wina_gguf_close(g);
}

/* Tensors of a packed file, which stand in no list of the reader's. */
static void test_added_tensors(void) {
    static const struct {
        const char *name;
        uint64_t ne[4];
        int32_t status;
        const char *words;
    } cases[] = {
        {"p", {32, 2, 1, 1}, WINA_OK, ""},
        {"a", {32, 2, 1, 1}, WINA_E_FORMAT, "tensor \"a\": appears twice"},
        {"p", {32, 0, 1, 1}, WINA_E_FORMAT, "dimension 1 is zero"},
        {"p", {0, 2, 1, 1}, WINA_E_FORMAT, "dimension 0 is zero"},
        {"p", {33, 2, 1, 1}, WINA_E_FORMAT, "not whole Q4_0 blocks"},
        {"p", {32, 1ull << 62, 4, 1}, WINA_E_FORMAT, "needs more bytes"},
        {"p", {32, 1ull << 32, 1ull << 32, 1}, WINA_E_FORMAT, "needs more bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        script_file f = script_make(HEAD(1, 0) SMALL("a") "@32 z32");
        wina_gguf *g = NULL;
        CHECK(wina_gguf_open_memory("packed", f.bytes, f.n, &g) == WINA_OK);
        wina_gguf_tensor t = {
            .name = {cases[i].name, 1}, .dtype = wina_dtype_find(WINA_DTYPE_Q4_0), .n_dims = 2};
        memcpy(t.ne, cases[i].ne, sizeof t.ne);
        CHECK(wina_gguf_add_tensors(g, &t, 1) == cases[i].status);
        CHECK_MSG(!cases[i].status || strstr(wina_error(), cases[i].words), "%s", wina_error());
        const wina_gguf_tensor *added = wina_gguf_find_tensor(g, "p");
        CHECK(cases[i].status ? !added : added && !added->data && added->n_bytes == 36);
        CHECK(wina_gguf_find_tensor(g, "a") && g->n_tensors == (cases[i].status ? 1 : 2));
        CHECK(wina_gguf_add_tensors(g, &t, WINA_GGUF_MAX_TENSORS + 1) == WINA_E_UNSUPPORTED);
        wina_gguf_close(g);
        free(f.bytes);
    }
}

static bool is_utf8(const char *s) {
    for (; *s; s++) {
        int n = (unsigned char)*s < 0x80 ? 0 : (unsigned char)*s < 0xE0 ? 1 : 2;
        if (((unsigned char)*s & 0xC0) == 0x80)
            return false;
        for (; n > 0; n--)
            if (((unsigned char)*++s & 0xC0) != 0x80)
                return false;
    }
    return true;
}

/* Names and paths that messages cut are cut between characters. */
static void test_cut_characters(void) {
    for (size_t shift = 0; shift < 3; shift++) {
        char script[1024] = "GGUF u3 U1 U0 '", path[512] = "";
        memcpy(script + strlen(script), "xy", shift);
        memcpy(path, "xy", shift);
        for (int i = 0; i < 80; i++)
            strcat(script, "\xe4\xb8\xad"), strcat(path, "\xe4\xb8\xad");
        strcat(script, "' u1 U33 u2 U0 @32 z99");
        script_file f = script_make(script);
        wina_gguf *g = NULL;
        CHECK(wina_gguf_open_memory(path, f.bytes, f.n, &g) == WINA_E_FORMAT && !g);
        CHECK_MSG(is_utf8(wina_error()), "%s", wina_error());
        CHECK(strstr(wina_error(), "...\": rows of 33 weights") && *wina_error() == '.');
        free(f.bytes);
    }
}

/* Without random numbers tables are still hashed, by a key that is drawn from the clock. */
static void test_no_random_numbers(void) {
    uint64_t keys[2];
    random_missing = true;
    for (int i = 0; i < 2; i++) {
        script_file f = script_make(SCRIPT_EVERYTHING);
        wina_gguf *g = NULL;
        CHECK(wina_gguf_open_memory("memory", f.bytes, f.n, &g) == WINA_OK);
        CHECK(g && wina_gguf_find(g, "t.many") && wina_gguf_find_tensor(g, "a.weight"));
        keys[i] = g ? g->hash_key : 0;
        wina_gguf_close(g);
        free(f.bytes);
    }
    random_missing = false;
    CHECK(keys[0] && keys[0] != keys[1]);
}

/* More rows than a vocabulary may have. */
static void test_huge_vocabulary(void) {
    script_file f = script_make(
        HEAD(1, 7) "'general.architecture' " STR "'llama' 'llama.embedding_length' u4 u1 "
                   "'llama.block_count' u4 u1 'llama.feed_forward_length' u4 u1 "
                   "'llama.context_length' u4 u8 'llama.attention.head_count' u4 u1 "
                   "'llama.attention.key_length' u4 u2 "
                   "'token_embd.weight' u2 U1 U4194305 u1 U0 @32 z8388610");
    wina_gguf *g = NULL;
    wina_config c;
    CHECK(wina_gguf_open_memory("memory", f.bytes, f.n, &g) == WINA_OK);
    CHECK(wina_config_read(g, &c) == WINA_E_FORMAT && strstr(wina_error(), "rms_epsilon"));
    wina_gguf_close(g);
    free(f.bytes);
    f = script_make(HEAD(1, 8) "'general.architecture' " STR
                               "'llama' 'llama.embedding_length' u4 u1 "
                               "'llama.block_count' u4 u1 'llama.feed_forward_length' u4 u1 "
                               "'llama.context_length' u4 u8 'llama.attention.head_count' u4 u1 "
                               "'llama.attention.key_length' u4 u2 "
                               "'llama.attention.layer_norm_rms_epsilon' u6 x0000c03f "
                               "'token_embd.weight' u2 U1 U4194305 u1 U0 @32 z8388610");
    CHECK(wina_gguf_open_memory("memory", f.bytes, f.n, &g) == WINA_OK);
    CHECK(wina_config_read(g, &c) == WINA_E_FORMAT);
    CHECK_MSG(strstr(wina_error(), "has 4194305 rows, at most 4194304"), "%s", wina_error());
    wina_gguf_close(g);
    free(f.bytes);
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    test_three_parts();
    test_bad_parts();
    test_too_many_tensors();
    test_added_tensors();
    test_cut_characters();
    test_no_random_numbers();
    test_huge_vocabulary();
    for (int no = 0; no < 3; no++)
        unlink(part_path(no));
    rmdir(folder);
    return check_report("split");
}
