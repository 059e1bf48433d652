"""Loads a base model and one of our adapters with PEFT and compares log-probabilities with those of our `score`.

Usage: .venv/bin/python tools/oracle/check_adapter.py MODEL_DIR ADAPTER_DIR SCORES.jsonl
MODEL_DIR is a Hugging Face folder or SmolLM2's .gguf file; SCORES.jsonl is what `selflengthen score --adapter ADAPTER_DIR` wrote
(rows with tokens and logprobs). Prints the largest difference; exit code 1 beyond 1e-3, 2 on bad input.
"""

import json
import math
import sys

import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common import logprobs
from smollm2 import load_model

TOLERANCE = 1e-3


def main():
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    base, adapter, scores = sys.argv[1:]
    if base.endswith(".gguf"):
        model = load_model(GGUFReader(base))
    else:
        model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    changed = sum(float(p.detach().norm()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    with open(scores, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    worst, count = 0.0, 0
    for number, row in enumerate(rows, 1):
        theirs = logprobs(model, row["tokens"])
        if len(theirs) != len(row["logprobs"]):
            print(f"{scores}: row {number} has {len(row['logprobs'])} log-probabilities for {len(row['tokens'])} tokens",
                  file=sys.stderr)
            return 2
        for a, b in zip(theirs, row["logprobs"]):
            difference = abs(a - b)
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
            count += 1
    print(f"largest difference {worst:.3g} over {count} tokens in {len(rows)} rows ({changed} adapted layers)")
    return 0 if count and worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
