"""llama.cpp's own server in C++, as the package xllamacpp holds it: several answers at a time in one batch.

    python tests/benchmarks/peers/llama_server.py --gguf FILE --threads 2 --slots 16 --context 1024 --port 8001

`context` is that of one answer, and `cache-mebibytes` what is kept of prompts beside those in the slots.
The first line printed says for which processor it was built: the wheel on PyPI is for any, and so is slow on a new one.
"""

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--cache-mebibytes", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    print(xllamacpp.get_system_info(), flush=True)
    params = xllamacpp.CommonParams()
    params.model.path = options.gguf
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_prompt = options.cache_mebibytes > 0
    params.cache_ram_mib = options.cache_mebibytes
    params.port = options.port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
