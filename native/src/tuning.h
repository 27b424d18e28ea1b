/* tuning: what calibration found, read from a file's metadata or given by a caller. All of it is
 * optional, checked against the model's shape before it is used, and owned in one piece of memory.
 *
 *   wina.targets             f32 (n_targets)              sparsities in (0, 1), rising
 *   wina.kept                f32 (n_targets, n_layer, 4)  kept fractions in (0, 1]; qkv, o, ...
 *   wina.kept_projections    f32 (n_targets, n_layer, 7)  the same by projection
 *   wina.thresholds          f32 (n_targets, n_layer, 4)  least scores that are kept
 *   wina.norms.<group>       f32 (n_layer, n_in)          qkv, o, gate_up, down: all four or none
 *   wina.norms.<projection>  f32 (n_layer, n_in)          q, k, v, gate, up
 *   wina.exponents           f32 (4)                      of the norms, in [0, 4]; default 1
 */
#ifndef WINA_TUNING_H
#define WINA_TUNING_H

#include "gguf.h"
#include "sparse/rule.h"
#include "weights.h"

typedef struct wina_tuning_store {
    wina_tuning tuning; /* points into memory */
    float *memory;
    bool present; /* there is anything at all */
} wina_tuning_store;

/* Reads and checks what the file has; nothing is an answer too. */
int32_t wina_tuning_read(const wina_gguf *gguf, const wina_weights *weights,
                         wina_tuning_store *out);

/* A checked copy. */
int32_t wina_tuning_copy(const wina_tuning *tuning, const wina_weights *weights,
                         wina_tuning_store *out);
void wina_tuning_free(wina_tuning_store *store);

/* The groups of a model as rules see them: (n_layer, 4), freed with free(). */
int32_t wina_tuning_groups(const wina_weights *weights, wina_rule_group **out);

/* The groups of the experts, (n_layer, n, 2), or nothing if there are none; what a token reads of
 * them is entered into the groups above. */
int32_t wina_tuning_experts(const wina_weights *weights, const wina_config *config,
                            wina_rule_group *groups, wina_rule_group **out);

#endif
