"""OpenVINO GenAI behind HTTP, its model read from a GGUF file.

python tests/benchmarks/peers/openvino_server.py --gguf FILE --threads 2 --port 8001
"""

import argparse
import queue
import threading
from collections.abc import Iterator

import openvino_genai
from completions import serve


class OpenVino:
    def __init__(self, gguf: str, threads: int) -> None:
        self._pipeline = openvino_genai.LLMPipeline(gguf, "CPU", INFERENCE_NUM_THREADS=threads)
        self._tokenizer = self._pipeline.get_tokenizer()

    def count(self, prompt: str) -> int:
        return int(self._tokenizer.encode(prompt, add_special_tokens=False).input_ids.shape[1])

    def stream(self, question: str, prompt: str, max_tokens: int) -> Iterator[str]:
        config = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, do_sample=False, apply_chat_template=False)
        parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def put(text: str) -> openvino_genai.StreamingStatus:
            parts.put(text)
            return openvino_genai.StreamingStatus.RUNNING

        def run() -> None:
            try:
                self._pipeline.generate(prompt, config, put)
            finally:
                parts.put(None)

        thread = threading.Thread(target=run)
        thread.start()
        while (text := parts.get()) is not None:
            if text:
                yield text
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    serve(OpenVino(options.gguf, options.threads), options.port)


if __name__ == "__main__":
    main()
