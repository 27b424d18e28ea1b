/* The GGUF reader: files that must load, files that must be refused with the right words, and
 * every truncation and thousands of mutations of a small file, which must do one or the other. */
#include "gguf.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "ggufscript.h"
#include "status.h"

/* Reads everything that the reader promises to be readable. */
static double touch(const wina_gguf *g) {
    double sum = 0;
    char text[200];
    for (uint64_t i = 0; i < g->n_kv; i++) {
        const wina_gguf_kv *kv = &g->kv[i];
        wina_gguf_print_value(kv, text, sizeof text);
        sum += (double)strlen(text);
        const uint8_t *cursor = kv->data;
        for (uint64_t j = 0; j < kv->count; j++) {
            if (kv->item_type == WINA_GGUF_STRING) {
                wina_str s = wina_gguf_next_str(&cursor);
                for (uint64_t k = 0; k < s.n; k++)
                    sum += s.data[k];
            } else {
                sum += (double)wina_gguf_item_int(kv, j);
                sum += wina_gguf_item_float(kv, j) > 0;
            }
        }
        CHECK(kv->item_type != WINA_GGUF_STRING || cursor == kv->data + kv->n_bytes);
    }
    float *row = malloc(1 << 16);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const wina_gguf_tensor *t = &g->tensors[i];
        for (uint64_t k = 0; k < t->n_bytes; k++)
            sum += t->data[k];
        if (row && t->ne[0] <= 1 << 14)
            t->dtype->decode(t->data, row, t->ne[0] / t->dtype->block);
    }
    free(row);
    return sum;
}

/* ---- a file with everything ---------------------------------------------------------------- */

static void test_tensors(const wina_gguf *g) {
    const wina_gguf_tensor *t = wina_gguf_find_tensor(g, "b.weight");
    CHECK(t && t->dtype->id == WINA_DTYPE_Q4_0 && t->n_dims == 2 && t->ne[0] == 32 &&
          t->ne[1] == 3);
    CHECK(t && t->ne[2] == 1 && t->ne[3] == 1 && t->row_bytes == 18 && t->n_bytes == 54);
    CHECK(t && t->offset == 64 && t->data == g->map.data + g->data_offset + 64);
    CHECK(t && t->data[0] == 165 && t->data[53] == 165);
    t = wina_gguf_find_tensor(g, "c.weight");
    CHECK(t && t->n_dims == 3 && t->ne[2] == 3 && t->row_bytes == 4 && t->n_bytes == 12);
    t = wina_gguf_find_tensor(g, "d \xc3\xa9.weight");
    CHECK(t && t->row_bytes == 210 && t->data[0] == 77 && t->data[209] == 60);
    CHECK(t && t->data + t->n_bytes == g->map.data + g->map.n_bytes);
    CHECK(wina_gguf_find_tensor(g, "b.weigh") == NULL);
    CHECK(wina_gguf_find_tensor(g, "b.weight2") == NULL);
    CHECK(wina_gguf_find_tensor(g, "") == NULL);
    CHECK(wina_gguf_find_tensor(g, "t.u8") == NULL);
}

static void test_everything(void) {
    script_file f = script_make(SCRIPT_EVERYTHING);
    wina_gguf *g = NULL;
    int32_t status = wina_gguf_open_memory("memory", f.bytes, f.n, &g);
    CHECK_MSG(status == WINA_OK && g, "%s", wina_error());
    if (g) {
        CHECK(g->version == 3 && g->alignment == 64 && g->n_kv == 19 && g->n_tensors == 4);
        CHECK(g->data_offset % 64 == 0 && ((uintptr_t)g->tensors[0].data & 7) == 0);
        touch(g);
        test_tensors(g);
    }
    wina_gguf_close(g);
    free(f.bytes);
    wina_gguf_close(NULL);
}

/* ---- files that load ----------------------------------------------------------------------- */

#define TENSOR(name, ne0, type, offset) "'" name "' u1 U" #ne0 " u" #type " U" #offset " "

static const struct good {
    const char *what, *script;
} GOOD[] = {
    {"empty file of version 2", "GGUF u2 U0 U0"},
    {"empty file of version 3", HEAD(0, 0)},
    {"no tensors and the padding missing", HEAD(0, 1) "'k' u4 u1"},
    {"default alignment", HEAD(1, 0) TENSOR("t", 1, 0, 0) "@32 u0"},
    {"smallest alignment", HEAD(1, 1) "'general.alignment' u4 u8 " TENSOR("t", 1, 0, 8) "@8 z12"},
    {"largest alignment",
     HEAD(1, 1) "'general.alignment' u4 u65536 " TENSOR("t", 1, 0, 65536) "@65536 z65540"},
    {"bytes after the last tensor", HEAD(1, 0) TENSOR("t", 1, 0, 0) "@32 z999"},
    {"tensors back to back in reverse order",
     HEAD(2, 0) TENSOR("s", 8, 0, 32) TENSOR("t", 8, 0, 0) "@32 z64"},
    {"four dimensions", HEAD(1, 0) "'t' u4 U2 U3 U4 U5 u0 U0 @32 z480"},
    {"longest name", HEAD(1, 0) "r255 u1 U1 u0 U0 @32 u0"},
    {"longest key", HEAD(0, 1) "r65536 u0 b1"},
    {"longest string", HEAD(0, 1) "'k' " STR "r16777216"},
    {"longest array", HEAD(0, 1) "'k' " ARR "u0 U4194304 z4194304"},
    {"most keys", HEAD(0, 16384) "*16384('k%' u0 b1)"},
    {"any bytes in a string value", HEAD(0, 1) "'k' " STR "U4 x00ff8000"},
};

static void test_good(void) {
    for (size_t i = 0; i < sizeof GOOD / sizeof GOOD[0]; i++) {
        script_file f = script_make(GOOD[i].script);
        wina_gguf *g = NULL;
        int32_t status = wina_gguf_open_memory("memory", f.bytes, f.n, &g);
        CHECK_MSG(status == WINA_OK && g, "%s: %s", GOOD[i].what, wina_error());
        if (g)
            touch(g);
        wina_gguf_close(g);
        free(f.bytes);
    }
}

/* ---- files that must be refused ------------------------------------------------------------ */

#define F         WINA_E_FORMAT
#define U         WINA_E_UNSUPPORTED
#define KV(rest)  HEAD(0, 1) "'some.key' " rest
#define ONE(rest) HEAD(1, 0) "'blk.0.w' " rest

static const struct bad {
    const char *what, *script;
    int32_t status;
    const char *words; /* must be in the message; `|` separates several */
} BAD[] = {
    /* the head */
    {"three bytes", "x474755", F, "cut short|magic"},
    {"wrong magic", "x67676d6c u3 U0 U0", F, "not a GGUF file|67 67 6d 6c"},
    {"magic reversed", "x46554747 u3 U0 U0", F, "not a GGUF file"},
    {"no version", "GGUF", F, "cut short|version"},
    {"version 0", "GGUF u0 U0 U0", U, "version 0"},
    {"version 1", "GGUF u1 u0 u0 U0 U0", U, "version 1"},
    {"version 4", "GGUF u4 U0 U0", U, "version 4"},
    {"big-endian", "GGUF x00000003 U0 U0", U, "big-endian"},
    {"half a count", "GGUF u3 u0", F, "cut short|tensor count"},
    {"no key count", "GGUF u3 U0", F, "cut short|key count"},
    {"2^64 - 1 tensors", HEAD(0xffffffffffffffff, 0) "z999", F, "cut short|18446744073709551615"},
    {"2^63 keys", HEAD(0, 0x8000000000000000) "z999", F, "cut short|key count"},
    {"2^58 tensors, whose table wraps", HEAD(0x400000000000000, 0) "z999", F, "cut short"},
    {"one tensor more than the bytes can hold", HEAD(4, 0) "z123", F, "tensor count 4"},
    {"one key more than the bytes can hold", HEAD(0, 3) "z41", F, "key count 3"},
    {"too many tensors", HEAD(65537, 0) "z2200000", U, "tensor count 65537|65536"},
    {"too many keys", HEAD(0, 16385) "z240000", U, "key count 16385|16384"},
    /* keys */
    {"empty key", HEAD(0, 1) "U0 u4 u1 z9", F, "key number 0|empty"},
    {"key longer than the file", HEAD(0, 1) "U1000 z20", F, "key number 0|cut short|1000"},
    {"key of 2^64 - 1 bytes", HEAD(0, 1) "U0xffffffffffffffff z20", F, "cut short"},
    {"key of 2^63 bytes", HEAD(0, 1) "U0x8000000000000000 z20", F, "cut short"},
    {"key over the limit", HEAD(0, 1) "r65537 u4 u1", F, "65537|65536"},
    {"NUL in a key", HEAD(0, 1) "U3 x610062 u4 u1", F, "key number 0|control character 0"},
    {"newline in a key", HEAD(0, 1) "'a\nb' u4 u1", F, "control character 10"},
    {"escape in a key", HEAD(0, 1) "'a\x1b[2J' u4 u1", F, "control character 27"},
    {"delete in a key", HEAD(0, 1) "'a\x7f' u4 u1", F, "control character 127"},
    {"key not UTF-8", HEAD(0, 1) "'ab\xff' u4 u1", F, "not UTF-8|byte 2"},
    {"overlong UTF-8 in a key", HEAD(0, 1) "'\xc0\xaf' u4 u1", F, "not UTF-8|byte 0"},
    {"surrogate in a key", HEAD(0, 1) "'\xed\xa0\x80' u4 u1", F, "not UTF-8"},
    {"key ends inside a character", HEAD(0, 1) "'a\xe2\x82' u4 u1", F, "not UTF-8|byte 1"},
    {"the same key twice", HEAD(0, 3) "'a' u0 b1 'b' u0 b1 'a' u0 b1", F, "\"a\"|twice|0 and 2"},
    {"the last of many keys twice", HEAD(0, 16384) "*16383('k%' u0 b1) 'k77' u0 b1", F,
     "\"k77\"|77 and 16383"},
    /* values */
    {"no value type", KV("z3"), F, "some.key|value type"},
    {"value type 13", KV("u13 U0"), F, "some.key|value type 13"},
    {"value type 2^32 - 1", KV("u0xffffffff U0"), F, "value type 4294967295"},
    {"half a u32", KV("u4 z2"), F, "some.key|cut short"},
    {"half an f64", KV("u12 z7"), F, "some.key|cut short"},
    {"boolean 2", KV("u7 b2"), F, "some.key|boolean is 2"},
    {"boolean 255 in an array", KV("u9 u7 U3 b0 b1 xff"), F, "boolean is 255"},
    {"string longer than the file", KV("u8 U10 z9"), F, "some.key|cut short"},
    {"string of 2^64 - 1 bytes", KV("u8 U0xffffffffffffffff z9"), F, "cut short"},
    {"string of 2^64 - 8 bytes, whose end wraps", KV("u8 U0xfffffffffffffff8 z9"), F, "cut short"},
    {"string over the limit", KV("u8 r16777217"), U, "some.key|16777217|16777216"},
    {"no item type", KV("u9 z3"), F, "some.key|cut short"},
    {"item type 13", KV("u9 u13 U1 z9"), F, "some.key|item type 13"},
    {"array of arrays", KV("u9 u9 U1 u4 U1 u7"), U, "some.key|arrays of arrays"},
    {"no array length", KV("u9 u4 z7"), F, "some.key|array length"},
    {"array longer than the file", KV("u9 u4 U3 u1 u2 z3"), F, "array of 3 items (u32)|11 bytes"},
    {"array of 2^62 u32, whose size wraps to 0", KV("u9 u4 U0x4000000000000000 z64"), F,
     "some.key|4611686018427387904"},
    {"array of 2^61 + 1 u64, whose size wraps to 8", KV("u9 u10 U0x2000000000000001 z64"), F,
     "cut short"},
    {"array of 2^60 strings", KV("u9 u8 U0x1000000000000000 z64"), F, "cut short|(str)"},
    {"one string more than the bytes can hold", KV("u9 u8 U3 U0 U0 z7"), F, "3 items"},
    {"string in an array longer than the file", KV("u9 u8 U2 'abc' U50 z9"), F, "cut short|string"},
    {"string of 2^64 - 1 bytes in an array", KV("u9 u8 U2 'abc' U0xffffffffffffffff z9"), F,
     "cut short"},
    {"array over the limit", KV("u9 u0 U4194305 z4194305"), U, "4194305 items|4194304"},
    {"array of strings over the limit", KV("u9 u8 U4194305 z33554440"), U, "4194305 items"},
    /* alignment */
    {"alignment 0", HEAD(0, 1) "'general.alignment' u4 u0", F, "general.alignment|is 0"},
    {"alignment 4", HEAD(0, 1) "'general.alignment' u4 u4", F, "general.alignment|is 4"},
    {"alignment 24", HEAD(0, 1) "'general.alignment' u4 u24", F, "is 24|power of two"},
    {"alignment 128 KiB", HEAD(0, 1) "'general.alignment' u4 u131072", F, "is 131072"},
    {"alignment 2^31", HEAD(0, 1) "'general.alignment' u4 u0x80000000", F, "is 2147483648"},
    {"alignment a string", HEAD(0, 1) "'general.alignment' u8 '32'", F, "general.alignment|str"},
    {"alignment an array", HEAD(0, 1) "'general.alignment' u9 u4 U1 u32", F,
     "general.alignment|arr"},
    /* tensors */
    {"empty name", HEAD(1, 0) "U0 u1 U1 u0 U0 @32 z99", F, "tensor number 0|empty"},
    {"name over the limit", HEAD(1, 0) "r256 u1 U1 u0 U0 @32 z99", F, "256|255"},
    {"name longer than the file", HEAD(1, 0) "U100 z40", F, "tensor number 0|cut short"},
    {"NUL in a name", HEAD(1, 0) "U3 x610062 u1 U1 u0 U0 @32 z9", F, "control character 0"},
    {"name not UTF-8", HEAD(1, 0) "'\xfe' u1 U1 u0 U0 @32 z9", F, "tensor number 0|not UTF-8"},
    {"the same name twice", HEAD(2, 0) TENSOR("w", 8, 0, 0) TENSOR("w", 8, 0, 32) "@32 z64", F,
     "tensor \"w\"|twice|0 and 1"},
    {"no dimensions", ONE("u0 u0 U0 @32 z99"), F, "blk.0.w|0 dimensions"},
    {"five dimensions", ONE("u5 U1 U1 U1 U1 U1 u0 U0 @32 z9"), F, "blk.0.w|5 dimensions"},
    {"2^32 - 1 dimensions", ONE("u0xffffffff z99"), F, "4294967295 dimensions"},
    {"first dimension zero", ONE("u2 U0 U4 u0 U0 @32 z99"), F, "blk.0.w|dimension 0 is zero"},
    {"last dimension zero", ONE("u3 U4 U4 U0 u0 U0 @32 z99"), F, "blk.0.w|dimension 2 is zero"},
    {"cut inside the dimensions", ONE("u4 U1 U1 z7"), F, "blk.0.w|cut short|dimension"},
    {"no type", ONE("u2 U1 U1 z3"), F, "blk.0.w|cut short|tensor type"},
    {"no offset", ONE("u1 U1 u0 z7"), F, "blk.0.w|cut short|offset"},
    {"a type of others", ONE("u1 U256 u15 U0 @32 z999"), U, "blk.0.w|Q8_K (15)"},
    {"another type of others", ONE("u1 U256 u21 U0 @32 z999"), U, "blk.0.w|IQ3_S (21)"},
    {"a withdrawn type", ONE("u1 U256 u4 U0 @32 z999"), U, "blk.0.w|Q4_2 (4)"},
    {"type 42", ONE("u1 U256 u42 U0 @32 z999"), U, "blk.0.w|unknown tensor type 42"},
    {"type 2^32 - 1", ONE("u1 U256 u0xffffffff U0 @32 z999"), U, "type 4294967295"},
    {"rows not of whole blocks of 32", ONE("u2 U33 U1 u2 U0 @32 z99"), F,
     "blk.0.w|33 weights|Q4_0 blocks of 32"},
    {"rows not of whole blocks of 256", ONE("u2 U128 U2 u12 U0 @32 z999"), F,
     "blk.0.w|128 weights|Q4_K blocks of 256"},
    {"2^32 x 2^32 wraps to 0", ONE("u4 U0x100000000 U0x100000000 U1 U1 u0 U0 @32 z99"), F,
     "blk.0.w|4294967296 x 4294967296"},
    {"2^62 wraps with the size of a weight", ONE("u1 U0x4000000000000000 u0 U0 @32 z99"), F,
     "blk.0.w|more bytes"},
    {"2^31 x 2^31 x 4 wraps to 0", ONE("u3 U0x80000000 U0x80000000 U4 u1 U0 @32 z99"), F,
     "blk.0.w|more bytes"},
    {"2^64 - 1 rows", ONE("u2 U32 U0xffffffffffffffff u8 U0 @32 z99"), F, "blk.0.w|more bytes"},
    {"larger than the file", ONE("u2 U32 U1000 u8 U0 @32 z99"), F, "blk.0.w|more bytes"},
    {"offset not aligned", ONE("u1 U4 u0 U16 @32 z99"), F, "blk.0.w|offset 16|alignment 32"},
    {"offset not aligned to the file's alignment",
     HEAD(1, 1) "'general.alignment' u4 u64 " TENSOR("w", 4, 0, 32) "@64 z99", F, "offset 32"},
    {"data cut by one byte", ONE("u1 U8 u0 U0 @32 z31"), F, "blk.0.w|cut short|32 bytes of F32|31"},
    {"offset after the file", ONE("u1 U8 u0 U0x100000 @32 z64"), F, "blk.0.w|offset 1048576"},
    {"offset 2^64 - 32, whose end wraps", ONE("u1 U8 u0 U0xffffffffffffffe0 @32 z64"), F,
     "blk.0.w|cut short"},
    {"no data at all", ONE("u1 U1 u0 U0"), F, "blk.0.w|cut short|0 bytes"},
    {"the second's data cut", HEAD(2, 0) TENSOR("s", 8, 0, 0) TENSOR("t", 8, 0, 32) "@32 z63", F,
     "tensor \"t\"|cut short"},
    {"two tensors at one offset", HEAD(2, 0) TENSOR("s", 8, 0, 0) TENSOR("t", 8, 0, 0) "@32 z64", F,
     "overlaps|\"s\"|\"t\""},
    {"overlap by some bytes",
     HEAD(3, 0) TENSOR("s", 8, 0, 64) TENSOR("t", 9, 0, 0) TENSOR("v", 8, 0, 32) "@32 z96", F,
     "tensor \"v\"|overlaps|\"t\""},
    {"a small tensor inside a large one",
     HEAD(2, 0) TENSOR("s", 64, 0, 0) TENSOR("t", 1, 0, 64) "@32 z256", F, "overlaps"},
    /* the header ends within an entry */
    {"second key missing", HEAD(0, 2) "'some.key' u8 'a long enough text'", F,
     "key number 1|cut short"},
    {"second tensor missing", HEAD(2, 0) TENSOR("a rather long name so that two fit", 1, 0, 0), F,
     "tensor number 1|cut short"},
};
#undef F
#undef U

static bool has_words(const char *text, const char *words) {
    char copy[256];
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok(copy, "|"); word; word = strtok(NULL, "|"))
        if (!strstr(text, word))
            return false;
    return true;
}

static void write_file(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, n, file) == n);
    if (file)
        fclose(file);
}

#define MAX_SECONDS check_time(0.1) /* what refusing a file may take */

static double cpu_seconds(void) {
    return (double)clock() / CLOCKS_PER_SEC;
}

static void test_bad(const char *path) {
    enum { N_BAD = sizeof BAD / sizeof BAD[0] };
    CHECK(N_BAD >= 40);
    for (size_t i = 0; i < N_BAD; i++) {
        script_file f = script_make(BAD[i].script);
        write_file(path, f.bytes, f.n);
        for (int from_memory = 0; from_memory < 2; from_memory++) {
            wina_gguf *g = (wina_gguf *)path;
            double start = cpu_seconds();
            uint8_t *exact = malloc(f.n); /* so that a sanitizer sees one byte too many */
            memcpy(exact, f.bytes, f.n);
            int32_t status = from_memory ? wina_gguf_open_memory(path, exact, f.n, &g)
                                         : wina_gguf_open(path, &g);
            CHECK_MSG(status == BAD[i].status && !g, "%s: %s, \"%s\"", BAD[i].what,
                      wina_status_name(status), status ? wina_error() : "");
            CHECK_MSG(status && has_words(wina_error(), BAD[i].words), "%s: \"%s\" has not \"%s\"",
                      BAD[i].what, wina_error(), BAD[i].words);
            CHECK_MSG(status && strstr(wina_error(), path), "%s: no path", BAD[i].what);
            CHECK_MSG(cpu_seconds() - start < MAX_SECONDS, "%s: slow", BAD[i].what);
            wina_gguf_close(status ? NULL : g);
            free(exact);
        }
        free(f.bytes);
    }
    printf("%d bad files refused\n", (int)N_BAD);
}

/* The reason must survive a path and names of any length. */
static void test_long_names(void) {
    char path[4096];
    memset(path, 'p', sizeof path);
    memcpy(path + sizeof path - 16, "/the-model.gguf", 16);
    script_file f = script_make(HEAD(1, 0) "r255 u1 U33 u2 U0 @32 z99");
    wina_gguf *g;
    CHECK(wina_gguf_open_memory(path, f.bytes, f.n, &g) == WINA_E_FORMAT);
    CHECK(has_words(wina_error(), "the-model.gguf|tensor \"aaaa|33 weights|Q4_0 blocks of 32"));
    free(f.bytes);
    f = script_make(HEAD(0, 1) "'a' u8 'b'");
    CHECK(wina_gguf_open_memory("odd", f.bytes + 1, f.n - 1, &g) == WINA_E_ARGUMENT && !g);
    CHECK(wina_gguf_open_memory("none", NULL, 0, &g) == WINA_E_ARGUMENT && !g);
    free(f.bytes);
}

/* ---- many tensors: nothing is quadratic ---------------------------------------------------- */

/* 65536 tensors of one block each in scrambled order, two of them at one place if `overlap`. */
static script_file many_tensors(bool overlap) {
    script_file f = script_make(HEAD(65536, 0));
    for (uint64_t i = 0; i < 65536; i++) {
        uint64_t place = (i * 40503) & 65535; /* odd factor: every place once */
        if (overlap && i == 65535)
            place = (place + 1) & 65535;
        char entry[128];
        snprintf(entry, sizeof entry, "'blk.%u.weight' u1 U8 u0 U%llu", (unsigned)i,
                 (unsigned long long)place * 32);
        script_run(&f, entry, 0);
    }
    script_run(&f, "@32 z2097152", 0);
    return f;
}

static void test_many_tensors(void) {
    for (int overlap = 0; overlap < 2; overlap++) {
        script_file f = many_tensors(overlap);
        wina_gguf *g = NULL;
        double start = cpu_seconds();
        int32_t status = wina_gguf_open_memory("many", f.bytes, f.n, &g);
        double took = cpu_seconds() - start;
        CHECK_MSG(took < 1.5, "%d tensors took %.3f s", 65536, took);
        CHECK(status == (overlap ? WINA_E_FORMAT : WINA_OK));
        if (overlap)
            CHECK(has_words(wina_error(), "overlaps|blk."));
        for (unsigned i = 0; g && i < 65536; i++) {
            char name[32];
            snprintf(name, sizeof name, "blk.%u.weight", i);
            const wina_gguf_tensor *t = wina_gguf_find_tensor(g, name);
            if (t != &g->tensors[i])
                CHECK(t == &g->tensors[i]);
        }
        wina_gguf_close(g);
        free(f.bytes);
    }
}

/* ---- truncations and mutations ------------------------------------------------------------- */

/* The bytes of a file, placed so that they end where an inaccessible page begins: reading past
 * the end crashes in every build, not only under a sanitizer. */
typedef struct fenced {
    uint8_t *pages;
    size_t n_pages_bytes, page;
} fenced;

static fenced fence_create(size_t n) {
    fenced f = {.page = (size_t)sysconf(_SC_PAGESIZE)};
    f.n_pages_bytes = (n / f.page + 2) * f.page;
    f.pages =
        mmap(NULL, f.n_pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(f.pages + f.n_pages_bytes - f.page, f.page, PROT_NONE);
    return f;
}

/* n bytes whose end is watched: a heap block of exactly n bytes under a sanitizer, else at the
 * fence, but for up to 7 bytes: the start must be aligned to 8. */
static uint8_t *watched_create(const fenced *f, const uint8_t *bytes, size_t n) {
#ifdef __SANITIZE_ADDRESS__
    (void)f;
    uint8_t *start = malloc(n ? n : 1);
#else
    uint8_t *start = f->pages + f->n_pages_bytes - f->page - (n + 7) / 8 * 8;
#endif
    memcpy(start, bytes, n);
    return start;
}

static void watched_free(uint8_t *start) {
#ifdef __SANITIZE_ADDRESS__
    free(start);
#else
    (void)start;
#endif
}

/* Opens the bytes; touches all if they load. */
static int32_t try_bytes(const fenced *fence, const uint8_t *bytes, size_t n) {
    wina_gguf *g = NULL;
    uint8_t *watched = watched_create(fence, bytes, n);
    int32_t status = wina_gguf_open_memory("mutant", watched, n, &g);
    if (status == WINA_OK)
        touch(g);
    CHECK(status == WINA_OK ? g != NULL
                            : !g && (status == WINA_E_FORMAT || status == WINA_E_UNSUPPORTED) &&
                                  strncmp(wina_error(), "mutant: ", 8) == 0);
    wina_gguf_close(g);
    watched_free(watched);
    return status;
}

static void test_truncations(const script_file *f, const fenced *fence, const char *path) {
    for (size_t n = 0; n < f->n; n++)
        CHECK_MSG(try_bytes(fence, f->bytes, n) == WINA_E_FORMAT, "%d of %d bytes", (int)n,
                  (int)f->n);
    /* Through files too, some of them. */
    for (size_t n = 0; n < f->n; n += n < 64 ? 1 : 61) {
        wina_gguf *g = NULL;
        write_file(path, f->bytes, n);
        CHECK(wina_gguf_open(path, &g) == WINA_E_FORMAT && !g && strstr(wina_error(), path));
        CHECK(n > 0 || strstr(wina_error(), "empty"));
    }
}

static void test_byte_mutations(script_file *f, const fenced *fence) {
    int n_loaded = 0, n_refused = 0;
    for (size_t i = 0; i < f->n; i++) {
        uint8_t old = f->bytes[i];
        const uint8_t values[] = {0,
                                  1,
                                  0x7F,
                                  0x80,
                                  0xFF,
                                  (uint8_t)(old + 1),
                                  (uint8_t)(old - 1),
                                  0x20,
                                  (uint8_t)(old ^ 0x10),
                                  (uint8_t)(old ^ 0x80)};
        for (size_t k = 0; k < sizeof values; k++) {
            f->bytes[i] = values[k];
            *(try_bytes(fence, f->bytes, f->n) == WINA_OK ? &n_loaded : &n_refused) += 1;
        }
        f->bytes[i] = old;
    }
    CHECK(n_loaded > 0 && n_refused > 0);
    printf("byte mutations: %d loaded, %d refused\n", n_loaded, n_refused);
}

/* Boundary values over every four and eight bytes, fields or not. */
static void test_word_mutations(script_file *f, const fenced *fence) {
    static const uint64_t values[] = {
        0,           1,          0x7FFFFFFF,      0x80000000,       0xFFFFFFFF,
        0x100000000, 1ull << 60, 1ull << 61,      (1ull << 61) + 1, 1ull << 62,
        INT64_MAX,   1ull << 63, UINT64_MAX - 31, UINT64_MAX - 7,   UINT64_MAX};
    int n_loaded = 0, n_refused = 0;
    for (size_t width = 4; width <= 8; width += 4)
        for (size_t i = 0; i + width <= f->n; i++)
            for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
                uint8_t old[8];
                memcpy(old, f->bytes + i, width);
                memcpy(f->bytes + i, &values[k], width);
                *(try_bytes(fence, f->bytes, f->n) == WINA_OK ? &n_loaded : &n_refused) += 1;
                memcpy(f->bytes + i, old, width);
            }
    CHECK(n_loaded > 0 && n_refused > 0);
    printf("word mutations: %d loaded, %d refused\n", n_loaded, n_refused);
}

int main(void) {
    char path[] = "/tmp/wina-test-gguf-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    test_everything();
    test_good();
    test_bad(path);
    test_long_names();
    test_many_tensors();
    script_file f = script_make(SCRIPT_EVERYTHING);
    fenced fence = fence_create(f.n);
    test_truncations(&f, &fence, path);
    test_byte_mutations(&f, &fence);
    test_word_mutations(&f, &fence);
    munmap(fence.pages, fence.n_pages_bytes);
    free(f.bytes);
    unlink(path);
    return check_report("test_gguf");
}
