/* embed: a program with a language model inside. Continues a prompt, half of the weights skipped.
 *
 *   gcc embed.c $(pkg-config --cflags --libs wina) -o embed && ./embed model.gguf "Once upon a
 * time"
 */
#include <stdio.h>
#include <string.h>
#include <wina.h>

int main(int argc, char **argv) {
    wina_model *model = NULL;
    wina_session *session = NULL;
    wina_stream *stream = NULL;
    wina_session_params settings;
    wina_stream_params params;
    wina_chunk chunk;
    int32_t prompt[1024];
    size_t n = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
        return 2;
    }
    wina_session_params_init(&settings);
    settings.sparsity.sparsity = 0.5f;
    wina_stream_params_init(&params);
    params.max_tokens = 32;
    params.sampler.temperature = 0;

    int32_t status = wina_model_load(argv[1], NULL, &model);
    if (status == WINA_OK)
        status = wina_session_create(model, &settings, &session);
    if (status == WINA_OK)
        status = wina_tokenize(model, argv[2], strlen(argv[2]), WINA_TOKENIZE_ADD_SPECIAL, prompt,
                               1024, &n);
    params.tokens = prompt;
    params.n_tokens = (int32_t)n;
    if (status == WINA_OK)
        status = wina_stream_create(session, &params, &stream);
    for (chunk.finish = WINA_FINISH_NONE; status == WINA_OK && chunk.finish == WINA_FINISH_NONE;) {
        status = wina_stream_next(stream, &chunk);
        if (status == WINA_OK)
            fwrite(chunk.text, 1, chunk.n_bytes, stdout);
    }
    putchar('\n');
    if (status != WINA_OK)
        fprintf(stderr, "%s\n", wina_error());
    wina_stream_free(stream);
    wina_session_free(session);
    wina_model_free(model);
    return status != WINA_OK;
}
