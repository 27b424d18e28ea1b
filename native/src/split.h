/* split: GGUF files in several parts, NAME-00001-of-0000N.gguf and so on. Every part is a whole
 * GGUF file; the first has all metadata, each has
 *
 *   split.no             its number, from 0
 *   split.count          how many parts there are
 *   split.tensors.count  tensors of all parts together
 *
 * Nothing in a part says which model it is of. So parts of two models are told apart only if
 * counts, names or metadata differ, and here or where shapes are checked. */
#ifndef WINA_SPLIT_H
#define WINA_SPLIT_H

#include <stdint.h>

#include "gguf.h"

#define WINA_SPLIT_MAX_PARTS 4096u

/* Opens the other parts of the file at path, if it has some, and adds their tensors. gguf must be
 * the first part. A packed file is whole, whatever the file it was made from was. */
int32_t wina_split_attach(wina_gguf *gguf, const char *path);

#endif
