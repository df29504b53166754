// Greedy tokens of a GGUF model on the CPU: greedy MODEL COUNT THREADS ID... prints COUNT token ids.
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL COUNT THREADS ID...\n", argv[0]);
        return 2;
    }
    const int count = atoi(argv[2]);
    std::vector<llama_token> ids;
    for (int i = 4; i < argc; i++) {
        ids.push_back(atoi(argv[i]));
    }
    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr) {
        return 3;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = ids.size() + count;
    params.n_threads = params.n_threads_batch = atoi(argv[3]);
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        return 3;
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> next = ids;
    for (int step = 0; step < count; step++) {
        if (llama_decode(context, llama_batch_get_one(next.data(), next.size())) != 0) {
            return 4;
        }
        const float * logits = llama_get_logits_ith(context, -1);
        const llama_token best = std::max_element(logits, logits + vocabulary) - logits;
        printf("%d\n", best);
        fflush(stdout);
        next = {best};
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}
