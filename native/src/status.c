/* status: the text of this thread's last failure and the names of the status codes. The text is
 * the only state of the library outside handles; each thread has its own. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TEXT_BYTES = 512 };

static _Thread_local char error_text[TEXT_BYTES];

/* Shortens a text that was cut at n bytes so that it does not end inside a UTF-8 character. */
static void drop_partial_character(char *text, size_t n) {
    size_t start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80)
        start--;
    if (start == 0)
        return;
    start--;
    unsigned char lead = (unsigned char)text[start];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (n - start < want)
        text[start] = '\0';
}

#undef wina_fail /* of the analyzer */
int32_t wina_fail(int32_t status, const char *format, ...) {
    /* Not straight into error_text: the arguments may contain it. */
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args); /* NOLINT(clang-analyzer-valist*) */
    va_end(args);
    if (n < 0)
        text[0] = '\0';
    else if ((size_t)n >= sizeof text)
        drop_partial_character(text, sizeof text - 1);
    memcpy(error_text, text, sizeof text);
    return status;
}

const char *wina_error(void) {
    return error_text;
}

const char *wina_status_name(int32_t status) {
    static const char *const NAMES[] = {
        [WINA_OK] = "WINA_OK",
        [WINA_E_ARGUMENT] = "WINA_E_ARGUMENT",
        [WINA_E_IO] = "WINA_E_IO",
        [WINA_E_FORMAT] = "WINA_E_FORMAT",
        [WINA_E_UNSUPPORTED] = "WINA_E_UNSUPPORTED",
        [WINA_E_MEMORY] = "WINA_E_MEMORY",
        [WINA_E_CONTEXT] = "WINA_E_CONTEXT",
        [WINA_E_NUMERIC] = "WINA_E_NUMERIC",
        [WINA_E_CANCELLED] = "WINA_E_CANCELLED",
        [WINA_E_STATE] = "WINA_E_STATE",
        [WINA_E_SPACE] = "WINA_E_SPACE",
        [WINA_E_DEVICE] = "WINA_E_DEVICE",
    };
    if (status < 0 || (size_t)status >= sizeof NAMES / sizeof NAMES[0])
        return "unknown status";
    return NAMES[status];
}
