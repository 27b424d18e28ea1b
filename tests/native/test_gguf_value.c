/* Metadata values of GGUF files: conversion, refusal, and the text shown to people. */
#include <stdlib.h>

#include "check.h"
#include "gguf.h"
#include "ggufscript.h"
#include "status.h"

static wina_gguf *open_script(const char *script, script_file *f) {
    wina_gguf *g = NULL;
    *f = script_make(script);
    int32_t status = wina_gguf_open_memory("memory", f->bytes, f->n, &g);
    CHECK_MSG(status == WINA_OK, "%s", wina_error());
    return g;
}

static void test_integers(const wina_gguf *g) {
    uint32_t u = 7;
    CHECK(wina_gguf_get_u32(g, "t.u8", &u) == WINA_OK && u == 200);
    CHECK(wina_gguf_get_u32(g, "t.u16", &u) == WINA_OK && u == 65535);
    CHECK(wina_gguf_get_u32(g, "t.u32", &u) == WINA_OK && u == 4000000000u);
    CHECK(wina_gguf_has_u32(g, "t.u32", 5, &u) == WINA_OK && u == 4000000000u);
    CHECK(wina_gguf_has_u32(g, "absent", 5, &u) == WINA_OK && u == 5);
    CHECK(wina_gguf_get_u32(g, "absent", &u) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "absent") != NULL && strstr(wina_error(), "missing") != NULL);
    const char *const negative[] = {"t.i8", "t.i16", "t.i32", "t.i64"};
    for (int i = 0; i < 4; i++) {
        CHECK(wina_gguf_get_u32(g, negative[i], &u) == WINA_E_FORMAT);
        CHECK(strstr(wina_error(), negative[i]) != NULL &&
              strstr(wina_error(), "negative") != NULL);
    }
    CHECK(strstr(wina_error(), "is -1") != NULL);
    CHECK(wina_gguf_has_u32(g, "t.u64", 1, &u) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "9223372036854775808") != NULL);
    CHECK(wina_gguf_has_u32(g, "t.f32", 1, &u) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "f32") != NULL && strstr(wina_error(), "integer") != NULL);
    CHECK(wina_gguf_has_u32(g, "t.true", 1, &u) == WINA_E_FORMAT);
    CHECK(wina_gguf_has_u32(g, "t.many", 1, &u) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "array of i8") != NULL);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.i8"), 0) == -1);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.i16"), 0) == -256);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.i32"), 0) == -2);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.u32"), 0) == 4000000000);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.u64"), 0) == INT64_MIN);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.f64"), 0) == 3);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.floats"), 2) == 0);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.true"), 0) == 1);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.strings"), 1) == 0);
    CHECK(wina_gguf_item_float(wina_gguf_find(g, "t.u64"), 0) == 0x1p63);
    CHECK(wina_gguf_item_float(wina_gguf_find(g, "t.i64"), 0) == -1);
    CHECK(wina_gguf_item_int(wina_gguf_find(g, "t.many"), 9) == 9);
}

static void test_floats_and_bools(const wina_gguf *g) {
    float f = 7;
    bool b = false;
    CHECK(wina_gguf_get_f32(g, "t.f32", &f) == WINA_OK && f == 1.5f);
    CHECK(wina_gguf_has_f32(g, "t.f64", 1, &f) == WINA_OK && f == (float)3.141592653589793);
    CHECK(wina_gguf_has_f32(g, "absent", 2.5f, &f) == WINA_OK && f == 2.5f);
    CHECK(wina_gguf_get_f32(g, "absent", &f) == WINA_E_FORMAT);
    CHECK(wina_gguf_get_f32(g, "t.u32", &f) == WINA_E_FORMAT);
    CHECK(wina_gguf_get_f32(g, "t.floats", &f) == WINA_E_FORMAT);
    CHECK(wina_gguf_has_bool(g, "t.true", false, &b) == WINA_OK && b);
    CHECK(wina_gguf_has_bool(g, "t.false", true, &b) == WINA_OK && !b);
    CHECK(wina_gguf_has_bool(g, "absent", true, &b) == WINA_OK && b);
    CHECK(wina_gguf_has_bool(g, "t.u8", true, &b) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "u8") != NULL && strstr(wina_error(), "bool") != NULL);
    script_file huge_file;
    wina_gguf *huge = open_script(HEAD(0, 1) "'big' u12 xffffffffffffef7f", &huge_file);
    CHECK(huge && wina_gguf_get_f32(huge, "big", &f) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "too large") != NULL);
    CHECK(huge && wina_gguf_item_int(&huge->kv[0], 0) == INT64_MAX);
    wina_gguf_close(huge);
    free(huge_file.bytes);
}

static void test_strings_and_arrays(const wina_gguf *g) {
    wina_str s;
    const wina_gguf_kv *kv;
    CHECK(wina_gguf_get_str(g, "general.architecture", &s) == WINA_OK);
    CHECK(s.n == 5 && memcmp(s.data, "llama", 5) == 0);
    CHECK(wina_gguf_get_str(g, "absent", &s) == WINA_E_FORMAT && s.n == 0);
    CHECK(wina_gguf_get_str(g, "t.u8", &s) == WINA_E_FORMAT);
    CHECK(wina_gguf_get_str(g, "t.strings", &s) == WINA_E_FORMAT);
    CHECK(wina_gguf_get_array(g, "t.strings", WINA_GGUF_STRING, 4, &kv) == WINA_OK);
    const uint8_t *cursor = kv->data;
    s = wina_gguf_next_str(&cursor);
    CHECK(s.n == 3 && memcmp(s.data, "one", 3) == 0);
    CHECK(wina_gguf_next_str(&cursor).n == 0);
    CHECK(wina_gguf_next_str(&cursor).n == 8);
    CHECK(wina_gguf_next_str(&cursor).n == 3 && cursor == kv->data + kv->n_bytes);
    CHECK(wina_gguf_get_array(g, "t.many", WINA_GGUF_I8, 0, &kv) == WINA_OK && kv->count == 10);
    CHECK(wina_gguf_get_array(g, "t.none", WINA_GGUF_I32, 0, &kv) == WINA_OK && kv->count == 0);
    CHECK(wina_gguf_get_array(g, "t.many", WINA_GGUF_I8, 11, &kv) == WINA_E_FORMAT && kv == NULL);
    CHECK(strstr(wina_error(), "10 items") != NULL && strstr(wina_error(), "11") != NULL);
    CHECK(wina_gguf_get_array(g, "t.many", WINA_GGUF_U8, 0, &kv) == WINA_E_FORMAT);
    CHECK(strstr(wina_error(), "array of i8") && strstr(wina_error(), "array of u8"));
    CHECK(wina_gguf_get_array(g, "t.u8", WINA_GGUF_U8, 0, &kv) == WINA_E_FORMAT);
    CHECK(wina_gguf_get_array(g, "absent", WINA_GGUF_U8, 0, &kv) == WINA_E_FORMAT);
}

static void test_types(void) {
    static const struct {
        uint32_t type;
        const char *name;
        uint64_t n_bytes;
    } want[] = {{0, "u8", 1},   {1, "i8", 1},  {2, "u16", 2},       {3, "i16", 2},
                {4, "u32", 4},  {5, "i32", 4}, {6, "f32", 4},       {7, "bool", 1},
                {8, "str", 0},  {9, "arr", 0}, {10, "u64", 8},      {11, "i64", 8},
                {12, "f64", 8}, {13, "?", 0},  {0xFFFFFFFF, "?", 0}};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        CHECK(strcmp(wina_gguf_type_name(want[i].type), want[i].name) == 0);
        CHECK(wina_gguf_type_bytes(want[i].type) == want[i].n_bytes);
    }
}

static void test_print(const wina_gguf *g) {
    static const struct {
        const char *key, *text;
    } want[] = {
        {"general.architecture", "llama"},
        {"t.u8", "200"},
        {"t.i8", "-1"},
        {"t.f32", "1.5"},
        {"t.f64", "3.141592653589793"},
        {"t.true", "true"},
        {"t.false", "false"},
        {"t.u64", "9223372036854775808"},
        {"t.strings", "[str x 4] \"one\", \"\", \"tab\\there\", \"\xef\xbf\xbd\xef\xbf\xbd\\n\""},
        {"t.floats", "[f32 x 3] 1, -2, nan"},
        {"t.bools", "[bool x 2] true, false"},
        {"t.none", "[i32 x 0]"},
        {"t.many", "[i8 x 10] 0, 1, 2, 3, 4, 5, 6, 7, ..."},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        char text[256];
        const wina_gguf_kv *kv = wina_gguf_find(g, want[i].key);
        CHECK_MSG(kv != NULL, "%s", want[i].key);
        if (!kv)
            continue;
        wina_gguf_print_value(kv, text, sizeof text);
        CHECK_MSG(strcmp(text, want[i].text) == 0, "%s: %s", want[i].key, text);
        /* Every shorter buffer gets a whole-character start of it, as long as fits. */
        size_t n = strlen(want[i].text);
        for (size_t cap = 1; cap <= n; cap++) {
            memset(text, '#', sizeof text);
            wina_gguf_print_value(kv, text, cap);
            size_t m = strlen(text);
            CHECK(m < cap && m + 4 >= cap && memcmp(text, want[i].text, m) == 0);
            CHECK(((unsigned char)want[i].text[m] & 0xC0) != 0x80 && text[cap] == '#');
        }
    }
}

int main(void) {
    script_file f;
    wina_gguf *g = open_script(SCRIPT_EVERYTHING, &f);
    if (g) {
        test_integers(g);
        test_floats_and_bools(g);
        test_strings_and_arrays(g);
        test_types();
        test_print(g);
    }
    wina_gguf_close(g);
    free(f.bytes);
    return check_report("test_gguf_value");
}
