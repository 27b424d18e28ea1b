/* packed: files that hold panels instead of matrices, so that loading is mapping. Such a file is a
 * GGUF file with all metadata and unpacked tensors of its source, and
 *
 *   wina.pack.version  u32  number of this format
 *   wina.pack.layout   u32  WINA_PANEL_LAYOUT of the panels
 *   wina.pack.names, .types, .rows, .cols   what the packed matrices were, in file order
 *   wina.pack.stacks  how many each of them was, if there are stacks (of experts) among them
 *   wina.pack.padding  u8[] moves the tensor data to a 4096-byte border
 *
 *   wina.pack.panels   all panels as wina_weights places them     (tensors of F32: a type that
 *   wina.pack.norms    column norms                                every reader of GGUF knows)
 *   wina.pack.sums     a 64-bit checksum per section, see wina_packed_section
 *
 * The header's checksum is compared at every load, the others by wina_packed_verify. Any bytes are
 * safe in panels and norms: they are numbers, and sizes come from the header.
 */
#ifndef WINA_PACKED_H
#define WINA_PACKED_H

#include "weights.h"

enum { WINA_PACKED_VERSION = 1, WINA_PACKED_BORDER = 4096 };

/* Sections: the header; the output panel; the panels of each layer; all behind the panels. */
static inline uint64_t wina_packed_n_sections(int32_t n_layer) {
    return 3 + (uint64_t)n_layer;
}

/* Whether the file is packed. */
bool wina_packed_find(const wina_gguf *gguf);

/* Checks version, layout and the header's checksum, and adds the packed matrices to the tensors.
 * Nothing happens to a file that is not packed. */
int32_t wina_packed_attach(wina_gguf *gguf);

/* The panels, n_bytes as planned: inside the mapping, or copied (free with wina_mem_free_big). */
int32_t wina_packed_get_panels(const wina_gguf *gguf, uint64_t n_bytes, bool copy, uint8_t **out);

/* Creates all norms of the weights and fills them. */
int32_t wina_packed_read_norms(const wina_gguf *gguf, wina_weights *weights);

/* Bytes [*begin, *end) of section i in a file whose data starts at data_offset and whose checksums
 * lie at sums_offset from there. */
void wina_packed_section(const wina_weights *weights, uint64_t data_offset, uint64_t sums_offset,
                         uint64_t i, uint64_t *begin, uint64_t *end);

/* 64 bits over data (n) that differ if any one word of it does. */
uint64_t wina_packed_hash(const uint8_t *data, uint64_t n);

/* Compares all checksums; the weights must be planned. WINA_E_FORMAT names the section. */
int32_t wina_packed_verify(const wina_gguf *gguf, const wina_weights *weights);

/* Writes a loaded model as a packed file, whole or not at all. stop: as in wina_weights_how. */
int32_t wina_packed_write(const wina_gguf *gguf, const wina_weights *weights, const char *path,
                          int32_t (*stop)(float progress, void *user), void *user);

#endif
