/* gguf: a bounds-checked reader of GGUF v2 and v3 files (little-endian). The header is parsed and
 * validated once, by one cursor that compares every count with the bytes that remain; afterwards
 * all pointers in wina_gguf_kv and wina_gguf_tensor are safe to read to their stated lengths.
 *
 *   magic "GGUF"  u32 version  u64 n_tensors  u64 n_kv
 *   n_kv      x  string key, u32 type, value      string = u64 length + bytes
 *                                                 array  = u32 type, u64 count, values
 *   n_tensors x  string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
 *   padding to general.alignment (default 32), then tensor data; offsets count from here
 */
#ifndef WINA_GGUF_H
#define WINA_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "dtype.h"
#include "mapfile.h"

typedef enum wina_gguf_type {
    WINA_GGUF_U8 = 0,
    WINA_GGUF_I8 = 1,
    WINA_GGUF_U16 = 2,
    WINA_GGUF_I16 = 3,
    WINA_GGUF_U32 = 4,
    WINA_GGUF_I32 = 5,
    WINA_GGUF_F32 = 6,
    WINA_GGUF_BOOL = 7,
    WINA_GGUF_STRING = 8,
    WINA_GGUF_ARRAY = 9,
    WINA_GGUF_U64 = 10,
    WINA_GGUF_I64 = 11,
    WINA_GGUF_F64 = 12
} wina_gguf_type;

/* Limits on what a file may hold. The first two are the format's or near it, the others ours. */
#define WINA_GGUF_MAX_KEY       (64u << 10) /* bytes of a key */
#define WINA_GGUF_MAX_NAME      255u        /* bytes of a tensor name */
#define WINA_GGUF_MAX_STRING    (16u << 20) /* bytes of a string value */
#define WINA_GGUF_MAX_COUNT     (4u << 20)  /* items of an array */
#define WINA_GGUF_MAX_KV        (16u << 10)
#define WINA_GGUF_MAX_TENSORS   (64u << 10)
#define WINA_GGUF_MIN_ALIGNMENT 8u /* the format's: general.alignment is a multiple of 8 */
#define WINA_GGUF_MAX_ALIGNMENT (64u << 10)

/* Bytes inside the mapping, not terminated. Keys and tensor names are valid UTF-8 without control
 * characters, so they can be printed; string values may hold any bytes. */
typedef struct wina_str {
    const char *data;
    uint64_t n;
} wina_str;

typedef struct wina_gguf_kv {
    wina_str key;
    uint32_t type;       /* wina_gguf_type */
    uint32_t item_type;  /* of an array's items; else == type */
    uint64_t count;      /* items of an array; else 1 */
    const uint8_t *data; /* first item, unaligned; of a string: its length */
    uint64_t n_bytes;    /* of all items, lengths of strings included */
} wina_gguf_kv;

typedef struct wina_gguf_tensor {
    wina_str name;
    const wina_dtype *dtype;
    uint32_t n_dims;
    uint64_t ne[4];      /* unused dimensions are 1; ne[0] inputs (cols), ne[1] outputs (rows) */
    const uint8_t *data; /* aligned to the file's alignment, so to 8 bytes at least; NULL: its
                          * weights are in a panel of a packed file */
    uint64_t n_bytes;    /* of the whole tensor */
    uint64_t row_bytes;  /* of one row of ne[0] weights */
    uint64_t offset;     /* of data from the start of the file's tensor data */
} wina_gguf_tensor;

typedef struct wina_gguf {
    wina_mapfile map; /* the whole file */
    bool owns_map;
    uint32_t version; /* 2 or 3 */
    uint64_t alignment;
    uint64_t kv_offset, kv_end; /* of the keys and values from the start of the file */
    uint64_t data_offset;       /* of the tensor data from the start of the file */
    uint64_t n_kv;
    wina_gguf_kv *kv; /* (n_kv) in file order */
    uint64_t n_tensors;
    wina_gguf_tensor *tensors; /* (n_tensors) in file order */
    uint32_t *kv_slots;        /* hash tables: index + 1, 0 = empty; sizes are powers of two */
    uint32_t *tensor_slots;
    uint64_t n_kv_slots;
    uint64_t n_tensor_slots;
    uint64_t hash_key; /* random, so that a file cannot be made whose names all collide */
    uint32_t n_parts;
    struct wina_gguf **parts; /* (n_parts) of a split file: the others, owned; NULL: not open yet */
} wina_gguf;

/* Opens, maps and validates. Errors name the file and the key, tensor or offset at fault. */
int32_t wina_gguf_open(const char *path, wina_gguf **out);
void wina_gguf_close(wina_gguf *gguf); /* accepts NULL */

/* The same for a file that is already in memory, aligned to 8 bytes and named `name` in errors. The
 * bytes stay the caller's and must outlive *out. */
int32_t wina_gguf_open_memory(const char *name, const uint8_t *data, uint64_t n_bytes,
                              wina_gguf **out);

/* Adds n tensors that the file has in another form: name, dtype, n_dims and ne are given and
 * checked here like those of the header, data becomes NULL. Pointers to tensors become invalid. */
int32_t wina_gguf_add_tensors(wina_gguf *gguf, const wina_gguf_tensor *tensors, uint64_t n);

/* Adds the tensors of gguf->parts, whose data stays in their mappings. A name that is in two parts
 * is an error. Pointers to tensors become invalid. */
int32_t wina_gguf_join_parts(wina_gguf *gguf);

/* WINA_E_IO if the file or one of its parts is not as it was when it was opened. */
int32_t wina_gguf_check_unchanged(const wina_gguf *gguf);

/* Bytes of the file, or of all parts. */
uint64_t wina_gguf_file_bytes(const wina_gguf *gguf);

/* Tells the system that a tensor's data (not NULL) is not needed any more. */
void wina_gguf_release(const wina_gguf *gguf, const wina_gguf_tensor *tensor);

/* "u32", "str", "arr", ...; "?" if type is no wina_gguf_type. */
const char *wina_gguf_type_name(uint32_t type);

/* Bytes of one value of a type with a fixed size; 0 for strings, arrays and unknown types. */
uint64_t wina_gguf_type_bytes(uint32_t type);

/* NULL if absent. key and name are terminated strings. */
const wina_gguf_kv *wina_gguf_find(const wina_gguf *gguf, const char *key);
const wina_gguf_tensor *wina_gguf_find_tensor(const wina_gguf *gguf, const char *name);

/* Scalar metadata. Any integer type is accepted for an integer if the value fits; F32 and F64 for a
 * float (finite and beyond float is an error). has_* store the fallback if the key is absent; get_*
 * report WINA_E_FORMAT then. A key of the wrong type is always an error. */
int32_t wina_gguf_get_u32(const wina_gguf *gguf, const char *key, uint32_t *out);
int32_t wina_gguf_has_u32(const wina_gguf *gguf, const char *key, uint32_t fallback, uint32_t *out);
int32_t wina_gguf_get_f32(const wina_gguf *gguf, const char *key, float *out);
int32_t wina_gguf_has_f32(const wina_gguf *gguf, const char *key, float fallback, float *out);
int32_t wina_gguf_has_bool(const wina_gguf *gguf, const char *key, bool fallback, bool *out);
int32_t wina_gguf_get_str(const wina_gguf *gguf, const char *key, wina_str *out);

/* An array of count items of item_type (any count if want_count == 0). */
int32_t wina_gguf_get_array(const wina_gguf *gguf, const char *key, uint32_t item_type,
                            uint64_t want_count, const wina_gguf_kv **out);

/* Walks an array of strings (or the one string of a scalar): cursor starts at kv->data; call at
 * most kv->count times. */
wina_str wina_gguf_next_str(const uint8_t **cursor);

/* Item i < kv->count of an array of numbers or booleans (i = 0 of a scalar), unaligned and
 * converted: a U64 above INT64_MAX wraps, a float is cut towards zero and into range (NaN to 0).
 * 0 for strings. */
int64_t wina_gguf_item_int(const wina_gguf_kv *kv, uint64_t i);
double wina_gguf_item_float(const wina_gguf_kv *kv, uint64_t i);

/* Text of a value for people: strings whole, arrays as "[type x count] a, b, c, ..." with the first
 * items, strings among them quoted. What is no UTF-8 and control characters other than tab and
 * newline become U+FFFD. Cut at cap - 1 bytes on a character border, always terminated
 * (cap >= 1). */
void wina_gguf_print_value(const wina_gguf_kv *kv, char *text, uint64_t cap);

#endif
