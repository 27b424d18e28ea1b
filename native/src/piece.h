/* piece: what a panel stores of one row and block of 32 inputs, taken from the blocks of the file:
 * a reader per quantised type. Integers and scales stay what they are; only their places change. */
#ifndef WINA_PIECE_H
#define WINA_PIECE_H

#include <stdint.h>

enum { WINA_BLOCK = 32 /* inputs of a block */ };

typedef struct wina_piece {
    uint8_t q[WINA_BLOCK]; /* stored values */
    uint16_t d, m;         /* f16 of the block or super-block */
    uint8_t s[2];          /* sub-scales, as the panel stores them */
} wina_piece;

/* Block b (32 inputs) of a row. */
typedef void (*wina_piece_reader)(const uint8_t *row, int32_t b, wina_piece *out);

void wina_piece_q8_0(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q4_0(const uint8_t *row, int32_t b, wina_piece *out); /* and IQ4_NL */
void wina_piece_q4_1(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q5_0(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q5_1(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q2_k(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q3_k(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q4_k(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q5_k(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_q6_k(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_iq4_xs(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_mxfp4(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_tq1_0(const uint8_t *row, int32_t b, wina_piece *out);
void wina_piece_tq2_0(const uint8_t *row, int32_t b, wina_piece *out);

#endif
