// distributed-llama, loaded once and then asked prompt by prompt: run_dllama.py calls this. get.sh compiles it against
// distributed-llama's own objects. A prompt is cut into batches as its `inference` and its server cut it.
#include "app.hpp"
#include <algorithm>
#include <cstdio>
#include <exception>
#include <future>
#include <thread>
#include <unistd.h>

static AppInferenceContext *context = nullptr;  // lives as long as its handler runs
static std::promise<bool> loaded;

static void keep(AppInferenceContext *made) {
    context = made;
    loaded.set_value(true);
    for (;;)
        pause();
}

static void load(int argc, char **argv) {
    try {
        initQuants();
        initSockets();
        AppCliArgs args = AppCliArgs::parse(argc, argv, false);
        runInferenceApp(&args, &keep);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "distributed-llama: %s\n", error.what());
        loaded.set_value(false);
    }
}

static void forward(const int *ids, int n_tokens, int position) {
    context->inference->setBatchSize(n_tokens);
    context->inference->setPosition(position);
    for (int i = 0; i < n_tokens; i++)
        context->inference->setToken(i, ids[i]);
    context->inference->forward();
}

extern "C" {

// Options as on its command line; they must stay where they are. -> whether the model is loaded
bool dllama_load(int argc, char **argv) {
    std::thread(load, argc, argv).detach();
    return loaded.get_future().get();
}

// -> what its sampler takes after n_tokens, the first of them at `position`
int dllama_step(const int *ids, int n_tokens, int position) {
    const int n_batch = context->args->nBatches, n_before = n_tokens - 1;
    for (int done = 0; done < n_before; done += n_batch)
        forward(ids + done, std::min(n_batch, n_before - done), position + done);
    forward(ids + n_before, 1, position + n_before);
    return context->sampler->sample(context->inference->logitsPipe);
}
}
