/* ggufscript: GGUF files, good and bad, written down as one line of text, for tests.
 *
 *   GGUF      these four bytes              x0a1b    these bytes
 *   b7 u7 U7  a number of 1, 4, 8 bytes     'text'   u64 length and the bytes
 *   r7        'aaaaaaa'                     z7       seven zero bytes
 *   @32       zeros up to a multiple of 32  *7(...)  the part in brackets seven times; inside,
 *                                           '%' in a text is the number of the round
 *
 * Numbers are read as C reads them (0x.., decimal), up to 2^64 - 1. */
#ifndef GGUFSCRIPT_H
#define GGUFSCRIPT_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct script_file {
    uint8_t *bytes; /* to be freed by the caller */
    size_t n, capacity;
} script_file;

static inline void script_put(script_file *f, const void *bytes, size_t n) {
    if (f->n + n > f->capacity) {
        f->capacity = 2 * (f->n + n);
        f->bytes = realloc(f->bytes, f->capacity);
        if (!f->bytes)
            abort();
    }
    if (n)
        memcpy(f->bytes + f->n, bytes, n);
    f->n += n;
}

static inline void script_fill(script_file *f, int byte, unsigned long long n) {
    uint8_t block[4096];
    memset(block, byte, sizeof block);
    for (; n > sizeof block; n -= sizeof block)
        script_put(f, block, sizeof block);
    script_put(f, block, (size_t)n);
}

/* A text up to its closing quote; '%' becomes the number of the round. */
static inline const char *script_text(script_file *f, const char *s, unsigned round) {
    char text[512];
    size_t n = 0;
    for (; *s && *s != '\'' && n < sizeof text - 16; s++) {
        if (*s == '%')
            n += (size_t)snprintf(text + n, 12, "%u", round);
        else
            text[n++] = *s;
    }
    uint64_t length = n;
    script_put(f, &length, sizeof length);
    script_put(f, text, n);
    return s + 1;
}

static inline const char *script_hex(script_file *f, const char *s) {
    unsigned value;
    for (; sscanf(s, "%2x", &value) == 1 && s[0] != ' '; s += 2) {
        uint8_t byte = (uint8_t)value;
        script_put(f, &byte, 1);
    }
    return s;
}

static inline const char *script_run(script_file *f, const char *s, unsigned round);

static inline const char *script_repeat(script_file *f, const char *body, unsigned long long n) {
    const char *end = strchr(body, ')');
    for (unsigned i = 0; i < n; i++)
        script_run(f, body, i);
    return end + 1;
}

/* Stops at the end or at a closing bracket. */
static inline const char *script_run(script_file *f, const char *s, unsigned round) {
    while (*s && *s != ')') {
        char kind = *s++;
        if (kind == ' ')
            continue;
        if (kind == 'G' && strncmp(s, "GUF", 3) == 0) {
            script_put(f, "GGUF", 4);
            s += 3;
            continue;
        }
        if (kind == '\'' || kind == 'x') {
            s = kind == 'x' ? script_hex(f, s) : script_text(f, s, round);
            continue;
        }
        char *end;
        unsigned long long n = strtoull(s, &end, 0);
        s = end;
        if (kind == 'b' || kind == 'u' || kind == 'U')
            script_put(f, &n, kind == 'b' ? 1 : kind == 'u' ? 4 : 8);
        else if (kind == 'r')
            script_put(f, &n, 8), script_fill(f, 'a', n);
        else if (kind == 'z')
            script_fill(f, 0, n);
        else if (kind == '@')
            script_fill(f, 0, (n - f->n % n) % n);
        else if (kind == '*')
            s = script_repeat(f, s + 1, n);
        else
            fprintf(stderr, "script: what is '%c'?\n", kind), abort();
    }
    return s;
}

static inline script_file script_make(const char *script) {
    script_file f = {NULL, 0, 0};
    script_run(&f, script, 0);
    return f;
}

/* Headers: version, number of tensors, number of keys. */
#define HEAD(nt, nk) "GGUF u3 U" #nt " U" #nk " "
/* Value types in scripts, as in the file format. */
#define STR "u8 "
#define ARR "u9 "

/* One of everything: scalars of all types, arrays, four tensors of four types and 1-3 dimensions,
 * out of order in the file, with a gap; the data of the last ends the file. */
static const char SCRIPT_EVERYTHING[] =
    "GGUF u3 U4 U19 "
    "'general.architecture' " STR "'llama' "
    "'general.alignment' u4 u64 "
    "'t.u8' u0 b200 't.i8' u1 xff 't.u16' u2 xffff 't.i16' u3 x00ff 't.u32' u4 u4000000000 "
    "'t.i32' u5 xfeffffff 't.f32' u6 x0000c03f 't.true' u7 b1 't.false' u7 b0 "
    "'t.u64' u10 U0x8000000000000000 't.i64' u11 U0xffffffffffffffff "
    "'t.f64' u12 x182d4454fb210940 "
    "'t.strings' " ARR STR "U4 'one' '' 'tab\there' x0300000000000000fff00a "
    "'t.floats' " ARR "u6 U3 x0000803f x000000c0 x0000c07f "
    "'t.bools' " ARR "u7 U2 b1 b0 't.none' " ARR "u5 U0 't.many' " ARR
    "u1 U10 x00010203040506070809 "
    "'b.weight' u2 U32 U3 u2 U64 "
    "'a.weight' u1 U5 u0 U0 "
    "'c.weight' u3 U2 U1 U3 u30 U192 "
    "'d \xc3\xa9.weight' u2 U256 U1 u14 U256 "
    "@64 z20 @64 *54(b165) @64 z64 *12(b63) @64 *209(b77) b60";

#endif
