"""Loads models that `selflengthen export` wrote with Transformers and compares log-probabilities with those of our `score`.

Usage: .venv/bin/python tools/oracle/check_export.py FOLDER SCORES.jsonl [FOLDER SCORES.jsonl ...]
SCORES.jsonl is what `selflengthen score --model FOLDER` wrote; where a row has a text, the folder's tokenizer must give
its tokens too. Prints the largest difference of each; exit code 1 beyond 1e-4, 2 on bad input.
"""

import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import logprobs

TOLERANCE = 1e-4


def worst_of(folder, path):
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if loading["missing_keys"] or loading["unexpected_keys"]:
        print(f"{folder}: {loading}", file=sys.stderr)
        return math.inf, 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    worst, count = 0.0, 0
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for number, row in enumerate(rows, 1):
        if "text" in row and tokenizer.encode(row["text"]) != row["tokens"]:
            print(f"{path}: row {number} has other tokens in Transformers", file=sys.stderr)
            worst = math.inf
        theirs = logprobs(model.eval(), row["tokens"])
        for a, b in zip(theirs, row["logprobs"], strict=True):
            worst = max(worst, abs(a - b) if math.isfinite(a - b) else math.inf)
            count += 1
    return worst, count


def main():
    arguments = sys.argv[1:]
    if not arguments or len(arguments) % 2:
        print(__doc__, file=sys.stderr)
        return 2
    failed = False
    for folder, path in zip(arguments[::2], arguments[1::2]):
        worst, count = worst_of(folder, path)
        print(f"{folder}: largest difference {worst:.3g} over {count} tokens")
        failed = failed or not count or not worst <= TOLERANCE
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
