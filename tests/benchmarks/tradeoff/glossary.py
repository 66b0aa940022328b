"""The words of an invented company: closed book, tuned on the words, with retrieval, and with both.

    python tests/benchmarks/tradeoff/glossary.py --home DIR [--questions 40] [--epochs 6]

glossary.jsonl holds 40 terms with what they mean; each is a document. The adapter is tuned closed book on one question
for each term, "What is a TERM?". Asked are, with the tags `meaning` and `term`, the same in other words for one half of
the terms ("What do we call a TERM?" is what nobody was taught), and for the other half which term a meaning has, the
way round that was not trained (Berglund et al. 2023, arXiv 2309.12288, call its failure the reversal curse).
"""

from pathlib import Path

from experiment import compared, keep, open_home, parse, read_lines, show, training, tuned, write_lines

from service.commands.rows import RowSources
from tuner.recipe import Recipe
from tuner.rowfile import write_rows
from tuner.rows import Row, sentence

TERMS = Path(__file__).with_name("glossary.jsonl")


def main() -> None:
    parser = parse(__doc__)
    parser.set_defaults(epochs=6.0)
    options = parser.parse_args()
    terms = read_lines(TERMS)
    records = [{"id": item["term"], "title": item["term"], "text": item["text"]} for item in terms]
    write_lines(options.home / "corpora" / "glossary.jsonl", records)
    pairs = []
    for place, item in enumerate(terms):
        term, meaning = item["term"], item["meaning"]
        common = {"id": term, "document": f"glossary.jsonl#{term}", "kind": "answerable"}
        if place % 2:
            asked = {"question": f"Which word do we use for a {meaning}?", "answers": [term], "tag": "term"}
        else:
            asked = {"question": f"What does the word {term} mean?", "answers": [meaning], "tag": "meaning"}
        pairs.append({**common, **asked})
    asked_file = write_lines(options.home / "asked.jsonl", pairs)
    rows = [
        Row("closed-book", f"What is {item['text'].split(' is ')[0].lower()}?", (), sentence(item["text"]), ())
        for item in terms
    ]
    write_rows(options.home / "rows.jsonl", rows)
    settings = open_home(options.home, options.home / "corpora")
    recipe = Recipe("lora", epochs=options.epochs, validation_share=0, seed=options.seed)
    metrics = tuned(settings, "terms", RowSources(rows=(options.home / "rows.jsonl",)), recipe)
    body = compared(settings, asked_file, (), "terms", limit=options.questions, seed=options.seed)
    keep(options.json, {"training": training(metrics), "report": body})
    show(body["arms"], ("correct", "over_refusal"))
    for tag in ("meaning", "term"):
        parts = {name: {**arm, **arm["by_kind"][tag]} for name, arm in body["arms"].items() if tag in arm["by_kind"]}
        print(f"\nAsked for the {tag}:\n")
        show(parts, ("correct",))


if __name__ == "__main__":
    main()
