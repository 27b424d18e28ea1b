/* gguf_value: metadata values by key, converted and checked, and as text for people. Works on
 * entries that gguf.c has validated, so nothing here can run past a value's end. */
#include "gguf.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"
#include "unicode.h"

typedef unsigned long long ull;

/* ---- types ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint8_t n_bytes;
} TYPES[] = {
    [WINA_GGUF_U8] = {"u8", 1},     [WINA_GGUF_I8] = {"i8", 1},     [WINA_GGUF_U16] = {"u16", 2},
    [WINA_GGUF_I16] = {"i16", 2},   [WINA_GGUF_U32] = {"u32", 4},   [WINA_GGUF_I32] = {"i32", 4},
    [WINA_GGUF_F32] = {"f32", 4},   [WINA_GGUF_BOOL] = {"bool", 1}, [WINA_GGUF_STRING] = {"str", 0},
    [WINA_GGUF_ARRAY] = {"arr", 0}, [WINA_GGUF_U64] = {"u64", 8},   [WINA_GGUF_I64] = {"i64", 8},
    [WINA_GGUF_F64] = {"f64", 8},
};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

const char *wina_gguf_type_name(uint32_t type) {
    return type < N_TYPES ? TYPES[type].name : "?";
}

uint64_t wina_gguf_type_bytes(uint32_t type) {
    return type < N_TYPES ? TYPES[type].n_bytes : 0;
}

static bool is_float(uint32_t type) {
    return type == WINA_GGUF_F32 || type == WINA_GGUF_F64;
}

static bool is_signed(uint32_t type) {
    return type == WINA_GGUF_I8 || type == WINA_GGUF_I16 || type == WINA_GGUF_I32 ||
           type == WINA_GGUF_I64;
}

static bool is_integer(uint32_t type) {
    return wina_gguf_type_bytes(type) != 0 && !is_float(type) && type != WINA_GGUF_BOOL;
}

/* ---- items ------------------------------------------------------------------------------- */

/* The item's bytes as a little-endian number, sign-extended for signed types. */
static uint64_t item_bits(const wina_gguf_kv *kv, uint64_t i) {
    uint64_t n = wina_gguf_type_bytes(kv->item_type), bits = 0;
    if (n == 0)
        return 0;
    memcpy(&bits, kv->data + i * n, (size_t)n);
    uint64_t sign = 1ull << (8 * n - 1);
    return is_signed(kv->item_type) ? (bits ^ sign) - sign : bits;
}

static double bits_to_double(uint32_t type, uint64_t bits) {
    if (type == WINA_GGUF_F32) {
        float f;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

int64_t wina_gguf_item_int(const wina_gguf_kv *kv, uint64_t i) {
    uint64_t bits = item_bits(kv, i);
    if (!is_float(kv->item_type))
        return (int64_t)bits;
    double d = bits_to_double(kv->item_type, bits);
    if (isnan(d))
        return 0;
    if (d >= 0x1p63)
        return INT64_MAX;
    return d <= -0x1p63 ? INT64_MIN : (int64_t)d;
}

double wina_gguf_item_float(const wina_gguf_kv *kv, uint64_t i) {
    uint64_t bits = item_bits(kv, i);
    if (is_float(kv->item_type))
        return bits_to_double(kv->item_type, bits);
    return is_signed(kv->item_type) ? (double)(int64_t)bits : (double)bits;
}

wina_str wina_gguf_next_str(const uint8_t **cursor) {
    wina_str s;
    memcpy(&s.n, *cursor, sizeof s.n);
    s.data = (const char *)*cursor + sizeof s.n;
    *cursor += sizeof s.n + s.n;
    return s;
}

/* ---- scalars and arrays by key ----------------------------------------------------------- */

static int32_t fail_missing(const char *key) {
    return wina_fail(WINA_E_FORMAT, "metadata key %s is missing", key);
}

static int32_t fail_type(const wina_gguf_kv *kv, const char *key, const char *want) {
    bool array = kv->type == WINA_GGUF_ARRAY;
    return wina_fail(WINA_E_FORMAT, "metadata key %s has type %s%s, must be %s", key,
                     array ? "array of " : "", wina_gguf_type_name(kv->item_type), want);
}

static int32_t convert_u32(const wina_gguf_kv *kv, const char *key, uint32_t *out) {
    if (!is_integer(kv->type))
        return fail_type(kv, key, "an integer");
    uint64_t bits = item_bits(kv, 0);
    if (is_signed(kv->type) && (int64_t)bits < 0)
        return wina_fail(WINA_E_FORMAT, "metadata key %s is %lld, must not be negative", key,
                         (long long)bits);
    if (bits > UINT32_MAX)
        return wina_fail(WINA_E_FORMAT, "metadata key %s is %llu, must be below 2^32", key,
                         (ull)bits);
    *out = (uint32_t)bits;
    return WINA_OK;
}

int32_t wina_gguf_has_u32(const wina_gguf *gguf, const char *key, uint32_t fallback,
                          uint32_t *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = fallback;
    return kv ? convert_u32(kv, key, out) : WINA_OK;
}

int32_t wina_gguf_get_u32(const wina_gguf *gguf, const char *key, uint32_t *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = 0;
    return kv ? convert_u32(kv, key, out) : fail_missing(key);
}

static int32_t convert_f32(const wina_gguf_kv *kv, const char *key, float *out) {
    if (!is_float(kv->type))
        return fail_type(kv, key, "f32 or f64");
    double d = wina_gguf_item_float(kv, 0);
    if (isfinite(d) && fabs(d) > (double)FLT_MAX)
        return wina_fail(WINA_E_FORMAT, "metadata key %s is %g, too large for f32", key, d);
    *out = (float)d;
    return WINA_OK;
}

int32_t wina_gguf_has_f32(const wina_gguf *gguf, const char *key, float fallback, float *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = fallback;
    return kv ? convert_f32(kv, key, out) : WINA_OK;
}

int32_t wina_gguf_get_f32(const wina_gguf *gguf, const char *key, float *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = 0;
    return kv ? convert_f32(kv, key, out) : fail_missing(key);
}

int32_t wina_gguf_has_bool(const wina_gguf *gguf, const char *key, bool fallback, bool *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = fallback;
    if (!kv)
        return WINA_OK;
    if (kv->type != WINA_GGUF_BOOL)
        return fail_type(kv, key, "bool");
    *out = kv->data[0] != 0;
    return WINA_OK;
}

int32_t wina_gguf_get_str(const wina_gguf *gguf, const char *key, wina_str *out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = (wina_str){"", 0};
    if (!kv)
        return fail_missing(key);
    if (kv->type != WINA_GGUF_STRING)
        return fail_type(kv, key, "str");
    const uint8_t *cursor = kv->data;
    *out = wina_gguf_next_str(&cursor);
    return WINA_OK;
}

int32_t wina_gguf_get_array(const wina_gguf *gguf, const char *key, uint32_t item_type,
                            uint64_t want_count, const wina_gguf_kv **out) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    *out = NULL;
    if (!kv)
        return fail_missing(key);
    if (kv->type != WINA_GGUF_ARRAY || kv->item_type != item_type) {
        char want[32];
        snprintf(want, sizeof want, "array of %s", wina_gguf_type_name(item_type));
        return fail_type(kv, key, want);
    }
    if (want_count != 0 && kv->count != want_count)
        return wina_fail(WINA_E_FORMAT, "metadata key %s has %llu items, must have %llu", key,
                         (ull)kv->count, (ull)want_count);
    *out = kv;
    return WINA_OK;
}

/* ---- text for people --------------------------------------------------------------------- */

/* Characters are added whole or not at all; after the first that does not fit nothing follows. */
typedef struct printer {
    char *text;
    uint64_t n, cap;
    bool full;
} printer;

static void put(printer *p, const char *bytes, uint64_t n) {
    if (p->full || n > p->cap - 1 - p->n) {
        p->full = true;
        return;
    }
    memcpy(p->text + p->n, bytes, (size_t)n);
    p->n += n;
}

static void put_ascii(printer *p, const char *text) {
    for (; *text; text++)
        put(p, text, 1);
}

/* C1 controls (U+0080..9F) drive terminals like the ASCII ones. */
static bool is_control(uint32_t cp) {
    return cp < 32 || (cp >= 127 && cp < 160);
}

static void put_str(printer *p, wina_str s, bool quoted) {
    const uint8_t *bytes = (const uint8_t *)s.data;
    if (quoted)
        put(p, "\"", 1);
    for (uint64_t i = 0; i < s.n && !p->full;) {
        uint32_t cp;
        size_t n = wina_unicode_decode(bytes + i, (size_t)(s.n - i), &cp);
        bool layout = cp == '\t' || cp == '\n';
        if (quoted && layout)
            put(p, cp == '\t' ? "\\t" : "\\n", 2);
        else if (quoted && (cp == '"' || cp == '\\'))
            put(p, cp == '"' ? "\\\"" : "\\\\", 2);
        else if (cp == WINA_UNICODE_LIMIT || (is_control(cp) && !layout))
            put(p, "\xEF\xBF\xBD", 3);
        else
            put(p, s.data + i, n);
        i += n;
    }
    if (quoted)
        put(p, "\"", 1);
}

/* The shortest decimal that reads back as the same number. */
static void put_float(printer *p, double value, bool single) {
    char text[40];
    for (int digits = single ? 6 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        double back = strtod(text, NULL);
        if (isnan(value) || back == value || (single && (float)back == (float)value))
            break;
    }
    for (char *c = text; *c; c++) /* the host program's locale may have another decimal point */
        *c = *c == ',' ? '.' : *c;
    put_ascii(p, text);
}

static void put_item(printer *p, const wina_gguf_kv *kv, uint64_t i) {
    char text[24];
    if (is_float(kv->item_type)) {
        put_float(p, wina_gguf_item_float(kv, i), kv->item_type == WINA_GGUF_F32);
        return;
    }
    uint64_t bits = item_bits(kv, i);
    if (kv->item_type == WINA_GGUF_BOOL)
        snprintf(text, sizeof text, "%s", bits ? "true" : "false");
    else if (is_signed(kv->item_type))
        snprintf(text, sizeof text, "%lld", (long long)bits);
    else
        snprintf(text, sizeof text, "%llu", (ull)bits);
    put_ascii(p, text);
}

void wina_gguf_print_value(const wina_gguf_kv *kv, char *text, uint64_t cap) {
    enum { MAX_ITEMS = 8 };
    printer p = {.text = text, .cap = cap};
    bool array = kv->type == WINA_GGUF_ARRAY;
    const uint8_t *cursor = kv->data;
    if (array) {
        char head[48];
        snprintf(head, sizeof head, "[%s x %llu]", wina_gguf_type_name(kv->item_type),
                 (ull)kv->count);
        put_ascii(&p, head);
    }
    uint64_t n_shown = kv->count < MAX_ITEMS ? kv->count : MAX_ITEMS;
    for (uint64_t i = 0; i < n_shown; i++) {
        if (array)
            put_ascii(&p, i ? ", " : " ");
        if (kv->item_type == WINA_GGUF_STRING)
            put_str(&p, wina_gguf_next_str(&cursor), array);
        else
            put_item(&p, kv, i);
    }
    if (n_shown < kv->count)
        put_ascii(&p, ", ...");
    text[p.n] = '\0';
}
