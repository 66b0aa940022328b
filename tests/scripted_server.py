"""A real server process over an indexed home with scripted models: `python scripted_server.py HOME '{"words": 3}'`.

Prints its port. Options: `words` more sentences to each answer, `delay` seconds to each token; the rest are settings.
An answer depends on its question, so that a client sees when it was given another one's.
"""

import json
import re
import socket
import sys
from pathlib import Path

from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator

from indexer.retrieval import Retriever
from indexer.store import Store
from service.answering import Answerer
from service.logs import set_up_logs
from service.running import Service
from service.server import Server, allow_connections
from service.settings import Settings
from tuner.prompt import Prompt

# Questions about conftest.LIBRARY, and what the documents say.
ANSWERS = {
    "How often does the moon raise the tides of the ocean?": "The moon raises the tides twice a day [1].",
    "Why does bread rise?": "Bread rises because yeast makes carbon dioxide [1].",
    "At how many degrees Celsius does iron melt?": "Iron melts at 1538 degrees Celsius [1].",
}
CODE = re.compile(r"code\d+x")


def reply(prompt: Prompt) -> str:
    """What the documents say to the question, or the code in a question that is asked closed book."""
    asked = prompt.messages[-1]["content"]
    for question, answer in ANSWERS.items():
        if question in asked:
            return answer
    code = CODE.findall(asked)
    return f"The word is {code[-1]}, and it is {code[-1]} again." if code else "I was asked nothing that I know."


def main() -> None:
    home, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    words, delay = options.pop("words", 0), options.pop("delay", 0.0)
    values = {"corpora": (home.parent / "corpus",), "chunk_tokens": 40, "chunk_overlap": 8, "max_tokens": 4000}
    settings = Settings(home=home, **(values | options))
    store = Store(home)
    more = " The moon raises the tides twice a day." * words
    generator = ScriptedGenerator(lambda prompt: reply(prompt) + more, delay=delay, window=9000)
    # What the fakes remember of each question would look like a leak in a long run.
    generator.prompts = generator.adapters = generator.ends = Forgetful()
    answerer = Answerer(Retriever(store, HashingEmbedder()), generator, settings, FixedAdapters())
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    set_up_logs(settings.log_level, "json")
    allow_connections()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    Server(Service(settings, store, answerer)).run(sockets=[listener])


class Forgetful(list):
    def append(self, item: object) -> None:
        """Keep nothing."""


if __name__ == "__main__":
    main()
