"""QLoRA, LoRA, full and partial tuning on the same rows: quality, peak memory, speed and size.

    python tests/benchmarks/recipes.py ROWS [--base-model bundled] [--recipes qlora,lora,full,partial] [--epochs 1]
        [--accumulation 2] [--validation-share 0.1] [--json FILE]

ROWS is a file that `tandem rows` wrote. Every recipe runs in a process of its own, so that peak memory is its own, on
the same split by document, each at its default learning rate. Prints one Markdown row a recipe.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ONE = "--one"


def run_one(rows: Path, recipe: str, options: argparse.Namespace, home: Path) -> None:
    """Tune by one recipe and print its result as a line of JSON."""
    from service.commands.rows import RowSources
    from service.commands.tune import Request, run_tune
    from service.settings import load_settings
    from tuner.recipe import Recipe

    os.environ["TANDEM_HOME"] = str(home)
    sys.stdout, kept = sys.stderr, sys.stdout
    settings = {name: getattr(options, name) for name in ("epochs", "accumulation", "validation_share")}
    request = Request(Recipe(recipe, **settings), RowSources(rows=(rows,)), options.base_model, recipe)  # type: ignore[arg-type]
    body = run_tune(load_settings(), request, as_json=True)
    size = sum(path.stat().st_size for path in Path(body["folder"]).glob("*.safetensors"))
    print(json.dumps({**body["metrics"], "bytes": size, "trained": body["counts"]["trainable_parameters"]}), file=kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--base-model", default="bundled")
    parser.add_argument("--recipes", default="qlora,lora,full,partial")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--validation-share", type=float, default=0.1)
    parser.add_argument("--json", type=Path, default=None, help="Where to keep everything that was measured.")
    parser.add_argument(ONE, default="")
    parser.add_argument("--home", type=Path, default=None)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="recipes-"))
    if options.one:
        run_one(options.rows.resolve(), options.one, options, home)
        return
    print(
        "| Recipe | Trained | Loss before | Loss after | Token accuracy | Perplexity ratio | Peak GB | Tokens/s | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    results: dict[str, object] = {}
    for recipe in options.recipes.split(","):
        command = [sys.executable, __file__, str(options.rows), "--base-model", options.base_model, ONE, recipe]
        command += ["--epochs", str(options.epochs), "--accumulation", str(options.accumulation)]
        command += ["--validation-share", str(options.validation_share), "--home", str(home)]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        found = json.loads(lines[-1])
        results[recipe] = found
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
        forgetting = found["forgetting"]["perplexity_ratio"]
        cells = [recipe, f"{found['trained']:,}", found["validation_loss_before"], found["validation_loss_after"]]
        cells += [found["validation_token_accuracy"], forgetting, f"{found['peak_bytes'] / 1e9:.2f}"]
        cells += [found["tokens_per_second"], f"{found['bytes'] / 1e6:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
