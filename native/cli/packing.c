/* wina pack: a model's weights laid out once and for all, in a file that is mapped at load. */
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

static int32_t show_progress(float progress, void *user) {
    int *shown = user, percent = (int)(progress * 100);
    if (percent != *shown && isatty(2))
        fprintf(stderr, "\rwriting %3d%%", *shown = percent);
    return cli_interrupted();
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int cli_pack(const cli_options *o) {
    if (!o->output)
        return cli_fail("pack: an output is needed: -o FILE");
    if (same_file(o->model, o->output))
        return cli_fail("pack: %s is the input itself; give another name", o->output);
    wina_model *model = NULL;
    wina_model_params p;
    wina_model_params_init(&p);
    cli_options load = *o;
    load.backend = WINA_BACKEND_CPU;
    p.meta_only = o->dry_run;
    int32_t status = cli_load(&load, &p, &model);
    wina_model_info info;
    int shown = -1;
    if (status == WINA_OK) {
        wina_model_get_info(model, &info);
        if (info.packed || info.weight_bytes == 0) {
            wina_model_free(model);
            return cli_fail("pack: %s %s", o->model,
                            info.packed ? "is a packed file already" : "cannot be run, nor packed");
        }
        printf("%s: %.1f MB, panels %.1f MB\n", o->model, (double)info.file_bytes / 1e6,
               (double)info.weight_bytes / 1e6);
        if (!o->dry_run)
            status = wina_model_write_packed(model, o->output, show_progress, &shown);
        if (shown >= 0)
            fputs("\r              \r", stderr);
    }
    wina_model_free(model);
    if (status == WINA_OK && !o->dry_run)
        printf("wrote %s\n", o->output);
    return status == WINA_OK ? 0 : cli_report(status);
}
