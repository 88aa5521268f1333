"""Times PyTorch's scaled_dot_product_attention (float32, causal, CPU) for the program `ratios`.

The one argument is the number of threads. Every line of stdin is a request in JSON; every answer is one line. The
first line says which PyTorch this is.
"""

import json
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
torch.manual_seed(0)
tensors = {}


def tensor(name, request, tokens, heads):
    """Random numbers [1, heads, tokens, head_dim]; every layer has its own memory, with room for later tokens."""
    key = (name, request["layer"], request[heads], request["head_dim"])
    if key not in tensors or tensors[key].shape[2] < tokens:
        tensors[key] = torch.randn(1, request[heads], tokens + 512, request["head_dim"])
    return tensors[key][:, :, :tokens]


def prefill(request):
    """All tokens at once. The kv heads are repeated beforehand, which is not timed."""
    tokens = request["keys"]
    q, k, v = (torch.randn(1, request["heads"], tokens, request["head_dim"]) for _ in "qkv")
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def decode(request):
    """One token. The queries of a group go through one kv head as rows of one matrix: nothing is repeated."""
    k, v = (tensor(name, request, request["keys"], "kv_heads") for name in "kv")
    group = request["heads"] // request["kv_heads"]
    q = torch.randn(1, request["kv_heads"], group, request["head_dim"])
    return lambda: scaled_dot_product_attention(q, k, v)


def answer(message):
    print(json.dumps(message), flush=True)


answer({"torch": torch.__version__, "threads": torch.get_num_threads()})
for line in sys.stdin:
    request = json.loads(line)
    attend = (prefill if request["queries"] == request["keys"] else decode)(request)
    start = time.perf_counter()
    attend()
    answer({"seconds": time.perf_counter() - start})
