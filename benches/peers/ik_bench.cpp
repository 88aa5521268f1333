// Times ik_llama.cpp: what `llama-bench` does of llama.cpp, with its options, for as many as `llama_cpp.py` uses. The package
// that ik_llama.cpp's sources come in does not have that program.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Options {
    std::string model;
    std::map<std::string, int> numbers = {
        {"-t", 1}, {"-p", 512}, {"-n", 0}, {"-d", 0}, {"-r", 5}, {"-fa", 1}, {"--repack", 0}, {"-ub", 512},
    };
    std::map<std::string, std::string> types = {{"-ctk", "f16"}, {"-ctv", "f16"}};
    bool warmup = true;
};

ggml_type type_of(const std::string & name) {
    for (auto type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_0, GGML_TYPE_Q4_0, GGML_TYPE_Q8_KV}) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw std::runtime_error("expected f16, bf16, q8_0, q6_0, q4_0 or q8_KV, got " + name);
}

Options options_of(int argc, char ** argv) {
    Options options;
    for (int i = 1; i < argc; i++) {
        const std::string name = argv[i];
        if (name == "--no-warmup") {
            options.warmup = false;
            continue;
        }
        if (i + 1 == argc) {
            throw std::runtime_error("expected a value after " + name + ", got none");
        }
        const char * value = argv[++i];
        if (name == "-m") {
            options.model = value;
        } else if (options.types.count(name)) {
            options.types[name] = value;
        } else if (options.numbers.count(name)) {
            options.numbers[name] = std::atoi(value);
        } else if (name != "-o") {
            throw std::runtime_error("unknown option " + name);
        }
    }
    return options;
}

struct Bench {
    llama_model * model;
    llama_context * context;
    int vocabulary;

    explicit Bench(Options & options) {
        auto model_params = llama_model_default_params();
        model_params.repack_tensors = options.numbers["--repack"] != 0;
        // Weights that are rearranged cannot stay in the file.
        model_params.use_mmap = !model_params.repack_tensors;
        model = llama_model_load_from_file(options.model.c_str(), model_params);
        if (!model) {
            throw std::runtime_error("cannot read " + options.model);
        }
        auto params = llama_context_default_params();
        auto & numbers = options.numbers;
        params.n_ctx = numbers["-p"] + numbers["-n"] + numbers["-d"];
        params.n_batch = 2048;
        params.n_ubatch = numbers["-ub"];
        params.n_threads = params.n_threads_batch = numbers["-t"];
        params.flash_attn = numbers["-fa"] != 0;
        params.type_k = type_of(options.types["-ctk"]);
        params.type_v = type_of(options.types["-ctv"]);
        context = llama_init_from_model(model, params);
        if (!context) {
            throw std::runtime_error("cannot make a context of this configuration");
        }
        vocabulary = llama_n_vocab(model);
    }

    ~Bench() {
        llama_free(context);
        llama_free_model(model);
    }

    void read(int tokens, int & position, int at_once) {
        std::vector<llama_token> batch;
        for (int end = position + tokens; position < end; position += int(batch.size())) {
            batch.resize(std::min(at_once, end - position));
            for (auto & token : batch) {
                token = std::rand() % vocabulary;
            }
            if (llama_decode(context, llama_batch_get_one(batch.data(), int(batch.size()), position, 0)) != 0) {
                throw std::runtime_error("llama_decode failed");
            }
        }
        llama_synchronize(context);
    }

    // Tokens a second, after `depth` tokens that are not timed.
    double speed(int prompt, int decoded, int depth) {
        llama_kv_cache_clear(context);
        int position = 0;
        read(depth, position, 2048);
        const auto start = std::chrono::steady_clock::now();
        read(prompt, position, 2048);
        read(decoded, position, 1);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        return (prompt + decoded) / seconds.count();
    }
};

} // namespace

int main(int argc, char ** argv) {
    try {
        auto options = options_of(argc, argv);
        auto & numbers = options.numbers;
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        Bench bench(options);
        const auto speed = [&] { return bench.speed(numbers["-p"], numbers["-n"], numbers["-d"]); };
        if (options.warmup) {
            speed();
        }
        std::printf("[{\"samples_ts\": [");
        for (int i = 0; i < numbers["-r"]; i++) {
            std::printf("%s%.4f", i ? ", " : "", speed());
        }
        std::printf("]}]\n");
    } catch (const std::exception & error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return 0;
}
