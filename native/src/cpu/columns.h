/* columns: weights of a packed file that is larger than the memory. Of every panel of the layers as
 * many columns are kept in memory as the given bytes allow, those that are used most; the others
 * are read from the file for the token that wants them. A product of one token finds its columns in
 * a copy of the panel (a `view`) that has only those. Nothing else about it changes. */
#ifndef WINA_COLUMNS_H
#define WINA_COLUMNS_H

#include "../model.h"

typedef struct wina_columns wina_columns;

int32_t wina_columns_create(const wina_model *model, uint64_t n_bytes, wina_columns **out);
void wina_columns_free(wina_columns *c); /* accepts NULL */
/* Bytes of the layers' panels, of which n_bytes are kept, and what is held besides. */
uint64_t wina_columns_total(const wina_model *model);
uint64_t wina_columns_overhead(const wina_model *model);

/* A view of a layer's group, without columns. */
void wina_columns_begin(wina_columns *c, int32_t layer, int group, wina_group_weights *view);
/* Adds the kept inputs to the view's panels [panel0, panel1). */
void wina_columns_add(wina_columns *c, int32_t panel0, int32_t panel1, const int32_t *kept,
                      int32_t n_kept);
/* Reads what was not in memory. */
int32_t wina_columns_finish(wina_columns *c);
/* A whole group is going to be read through the mapping: the view's memory is given back, so that
 * both never count at once. */
void wina_columns_leave(wina_columns *c);
/* Gives the pages of the mapped file back that a whole group was read through. */
void wina_columns_release(const wina_columns *c, const wina_group_weights *group);

#endif
