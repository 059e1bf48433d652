#!/usr/bin/env python3
"""Includes run one way: core <- kernels <- dist; core, dist, io, text <- model <- rollout, train <- lengthen, evaluate <- cli <- main.

Prints every include that does not, and every header without #pragma once; exit code 1 when there is one.
"""
import pathlib
import re
import sys

ALLOWED = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "dist": {"core", "kernels", "dist"},
    "io": {"core", "io"},
    "text": {"core", "text"},
    "model": {"core", "kernels", "dist", "io", "text", "model"},
}
BELOW = ALLOWED["model"]
ALLOWED["rollout"] = BELOW | {"rollout"}
ALLOWED["train"] = BELOW | {"train"}
ALLOWED["lengthen"] = BELOW | {"rollout", "train", "lengthen"}
ALLOWED["evaluate"] = ALLOWED["lengthen"] | {"evaluate"}
ALLOWED["cli"] = ALLOWED["evaluate"] | {"cli"}

SUFFIXES = (".cpp", ".hpp", ".cu", ".cuh")

root = pathlib.Path(__file__).resolve().parent.parent
failed = False
for part, allowed in ALLOWED.items():
    folder = root / part if part == "kernels" else root / "src" / part
    for path in sorted(p for p in folder.rglob("*.*") if p.suffix in SUFFIXES):
        text = path.read_text()
        if path.suffix in (".hpp", ".cuh") and "#pragma once" not in text:
            print(f"{path.relative_to(root)}: no #pragma once")
            failed = True
        for number, line in enumerate(text.splitlines(), 1):
            match = re.match(r'#include "(\w+)/', line)
            if match and match[1] not in allowed:
                print(f"{path.relative_to(root)}:{number}: {part} must not include {match[1]}")
                failed = True
sys.exit(failed)
