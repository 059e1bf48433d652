"""Log-probabilities by PEFT of the small models with the adapters that peft_training.py made, for tests of `export`.

Usage: .venv/bin/python tools/oracle/merged.py. Writes tests/reference/peft/{tied,qwen2}/merged.jsonl: rows of
models/*/logprobs.jsonl with the log-probabilities of the model with the adapter `final`.
"""

import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common import REFERENCE, logprobs, write_lines

ROWS = 6


def main():
    for name in ("tied", "qwen2"):
        folder, adapted = REFERENCE / "models" / name, REFERENCE / "peft" / name
        base = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
        with open(folder / "logprobs.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][:ROWS]
        model = PeftModel.from_pretrained(base, adapted / "final").eval()
        found = [{"tokens": row["tokens"], "logprobs": logprobs(model, row["tokens"])} for row in rows]
        moved = max(abs(a - b) for row, new in zip(rows, found) for a, b in zip(row["logprobs"], new["logprobs"]))
        write_lines(adapted / "merged.jsonl", found)
        print(f"{name}: the adapter moves log-probabilities by up to {moved:.3g}")


if __name__ == "__main__":
    main()
