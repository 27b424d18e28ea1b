/* columns: weights of a packed file that is larger than the memory. Of every panel of the layers as
 * many columns are kept in memory as the given bytes allow, those that are used most; the others
 * are read from the file for the token that wants them, into a copy of the panel (a `view`) that
 * has only those and the scales, and whose table of columns leads to them and to those in memory.
 * Nothing else about a product of one token changes. */
#ifndef WINA_COLUMNS_H
#define WINA_COLUMNS_H

#include "../model.h"

typedef struct wina_columns wina_columns;

int32_t wina_columns_create(const wina_model *model, uint64_t n_bytes, wina_columns **out);
void wina_columns_free(wina_columns *c); /* accepts NULL */
/* Bytes of the layers' panels, of which n_bytes are kept, and what is held besides. */
uint64_t wina_columns_total(const wina_model *model);
uint64_t wina_columns_overhead(const wina_model *model);

/* A view of a layer's group, without columns. It is good until the next one begins. */
void wina_columns_begin(wina_columns *c, int32_t layer, int group, wina_group_weights *view);
/* Adds kept inputs, rising, to one of the view's panels. */
void wina_columns_add(wina_columns *c, int32_t panel, const int32_t *kept, int32_t n_kept);
/* How much is to be read so far: what was added is there when so much has come. */
uint64_t wina_columns_mark(const wina_columns *c);
/* Reads what was not in memory. Meanwhile it calls work(user, n), n being how much has come, which
 * returns false if nothing can be done yet; what is left to do at the end is the caller's. */
typedef bool (*wina_columns_work)(void *user, uint64_t n);
int32_t wina_columns_finish(wina_columns *c, wina_columns_work work, void *user);
/* A whole group is going to be read through the mapping: the view's memory is given back, so that
 * both never count at once. */
void wina_columns_leave(wina_columns *c);
/* Gives the pages of the mapped file back that a whole group was read through. */
void wina_columns_release(const wina_columns *c, const wina_group_weights *group);

#endif
