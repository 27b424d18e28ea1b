/* status: how functions fail. Every function that can fail returns a wina_status; the reason is
 * kept as a thread-local text that names the thing and the offending value. The first report of a
 * failure wins: callers forward the status with WINA_TRY and add nothing. */
#ifndef WINA_STATUS_H
#define WINA_STATUS_H

#include "wina.h"

/* Stores the formatted reason (cut at 511 bytes, never split inside a character) and returns
 * status, so that a failing function ends in: return wina_fail(WINA_E_FORMAT, "..."); */
int32_t wina_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The analyzer, which sees one file at a time, must know that a failure is one. */
#ifdef __clang_analyzer__
#define wina_fail(status, ...) ((void)wina_fail(status, __VA_ARGS__), (status))
#endif

/* Forwards a failure. For functions that own nothing; others use goto for their one clean-up. */
#define WINA_TRY(call)                                                                             \
    do {                                                                                           \
        int32_t wina_try_status = (call);                                                          \
        if (wina_try_status != WINA_OK)                                                            \
            return wina_try_status;                                                                \
    } while (0)

#endif
