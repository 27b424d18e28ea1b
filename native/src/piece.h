/* piece: what a panel stores of one row and block of 32 inputs, taken from the blocks of the file:
 * a reader per quantised type. Integers and scales stay what they are; only their places change. */
#ifndef WINA_PIECE_H
#define WINA_PIECE_H

#include <stdint.h>

enum {
    WINA_BLOCK = 32, /* inputs of a block */
    WINA_STRIP = 64  /* rows of a strip */
};

/* What a strip of rows has in one block. */
typedef struct wina_pieces {
    union {
        uint8_t q[WINA_STRIP][WINA_BLOCK];       /* stored values */
        uint8_t raw[WINA_STRIP][4 * WINA_BLOCK]; /* floats of any size, as the file has them */
    };
    uint16_t d[WINA_STRIP], m[WINA_STRIP]; /* f16 of the block or super-block */
    uint8_t s[2][WINA_STRIP];              /* sub-scales, as the panel stores them */
} wina_pieces;

/* Block b (32 inputs) of n_rows rows, to the first places of a strip. */
typedef void (*wina_piece_reader)(const uint8_t *rows, uint64_t row_bytes, int32_t n_rows,
                                  int32_t b, wina_pieces *out);

#define WINA_PIECE_READER(name)                                                                    \
    void name(const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t b, wina_pieces *out)
WINA_PIECE_READER(wina_piece_q8_0);
WINA_PIECE_READER(wina_piece_q4_0); /* and IQ4_NL */
WINA_PIECE_READER(wina_piece_q4_1);
WINA_PIECE_READER(wina_piece_q5_0);
WINA_PIECE_READER(wina_piece_q5_1);
WINA_PIECE_READER(wina_piece_q2_k);
WINA_PIECE_READER(wina_piece_q3_k);
WINA_PIECE_READER(wina_piece_q4_k);
WINA_PIECE_READER(wina_piece_q5_k);
WINA_PIECE_READER(wina_piece_q6_k);
WINA_PIECE_READER(wina_piece_iq4_xs);
WINA_PIECE_READER(wina_piece_mxfp4);
WINA_PIECE_READER(wina_piece_tq1_0);
WINA_PIECE_READER(wina_piece_tq2_0);

#endif
