/* Invalid UTF-8 is written as U+FFFD, so that the output is JSON whatever the input was. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli.h"

static void separate(json *j, const char *key) {
    if (j->comma)
        fputc(',', j->out);
    j->comma = true;
    if (key)
        fprintf(j->out, "\"%s\":", key);
}

void json_open(json *j, const char *key, char bracket) {
    separate(j, key);
    fputc(bracket, j->out);
    j->comma = false;
}

void json_close(json *j, char bracket) {
    fputc(bracket, j->out);
    j->comma = true;
}

/* Bytes of the valid character at s, or 0. */
static size_t character(const unsigned char *s, size_t n) {
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (length == 0 || length > n || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

void json_string(json *j, const char *key, const char *text, size_t n_bytes) {
    const unsigned char *s = (const unsigned char *)text;
    separate(j, key);
    fputc('"', j->out);
    for (size_t i = 0, length; i < n_bytes; i += length) {
        length = character(s + i, n_bytes - i);
        if (length == 0) {
            fputs("\xef\xbf\xbd", j->out);
            length = 1;
        } else if (s[i] == '"' || s[i] == '\\') {
            fprintf(j->out, "\\%c", s[i]);
        } else if (s[i] == '\n') {
            fputs("\\n", j->out);
        } else if (s[i] < 0x20 || s[i] == 0x7f) {
            fprintf(j->out, "\\u%04x", s[i]);
        } else {
            fwrite(s + i, 1, length, j->out);
        }
    }
    fputc('"', j->out);
}

void json_text(json *j, const char *key, const char *text) {
    json_string(j, key, text, strlen(text));
}

void json_int(json *j, const char *key, int64_t value) {
    separate(j, key);
    fprintf(j->out, "%" PRId64, value);
}

void json_number(json *j, const char *key, double value) {
    separate(j, key);
    if (isfinite(value))
        fprintf(j->out, "%.9g", value);
    else
        fputs("null", j->out);
}

void json_float(json *j, const char *key, float value) {
    separate(j, key);
    if (isfinite(value))
        fprintf(j->out, "%.7g", (double)value); /* 0.4, not 0.400000006 */
    else
        fputs("null", j->out);
}
