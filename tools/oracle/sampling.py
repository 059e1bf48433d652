"""Final probabilities after Transformers' logits processors: repetition penalty, temperature, top-k, top-p, in that order.

Usage: .venv/bin/python tools/oracle/sampling.py. Writes tests/reference/sampling.json; format: tests/reference/README.md.
"""

import torch
from transformers import (RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

from common import REFERENCE, digits, write_json

SIZE = 64
# (penalty, temperature, top_k, top_p): 1, 1, 0 and 1 mean off
SETTINGS = [
    (1.1, 0.7, 20, 0.8), (1.0, 1.0, 0, 1.0), (1.3, 1.0, 0, 1.0), (0.8, 1.0, 0, 1.0), (1.0, 0.5, 0, 1.0), (1.0, 2.0, 0, 1.0),
    (1.0, 1.0, 5, 1.0), (1.0, 1.0, 1, 1.0), (1.0, 1.0, 200, 1.0), (1.0, 1.0, 0, 0.5), (1.0, 1.0, 0, 0.01), (1.0, 1.0, 0, 0.999),
    (1.2, 0.3, 10, 0.9), (1.1, 1.5, 40, 0.95), (2.0, 0.7, 3, 0.8), (1.1, 0.7, 64, 0.8), (1.0, 0.1, 20, 0.8), (1.05, 5.0, 20, 0.7),
]


def probabilities(logits, seen, penalty, temperature, top_k, top_p):
    ids = torch.tensor([seen], dtype=torch.long)
    scores = logits[None].clone()
    if penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    if temperature != 1.0:
        scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return torch.softmax(scores.double(), -1)[0]


def nearly_cut(logits, seen, penalty, temperature, top_k, top_p):
    """Whether rounding could decide if a token stays: the nucleus ends within 1e-4 of top_p."""
    if top_p >= 1.0:
        return False
    before = probabilities(logits, seen, penalty, temperature, top_k, 1.0)
    cumulative = torch.cumsum(before.sort().values, 0)
    return bool((cumulative - (1.0 - top_p)).abs().min() < 1e-4)


def main():
    generator = torch.Generator().manual_seed(21)
    rows = []
    for i, setting in enumerate(SETTINGS * 3):
        while True:
            scale = (0.5, 2.0, 5.0)[i // len(SETTINGS)]
            logits = torch.tensor([digits(v, 6) for v in torch.randn(SIZE, generator=generator) * scale], dtype=torch.float32)
            seen = torch.randint(0, SIZE, ((0, 7, 30)[i % 3],), generator=generator).tolist()  # repeats count once
            if not nearly_cut(logits, seen, *setting):
                break
        penalty, temperature, top_k, top_p = setting
        rows.append({"logits": [digits(v, 9) for v in logits], "seen": seen, "repetition_penalty": penalty,
                     "temperature": temperature, "top_k": top_k, "top_p": top_p,
                     "probabilities": [digits(p) for p in probabilities(logits, seen, *setting)]})
    write_json(REFERENCE / "sampling.json", {"rows": rows}, indent=None)
    print(len(rows), "rows; tokens kept:", [sum(p > 0 for p in row["probabilities"]) for row in rows])


if __name__ == "__main__":
    main()
