"""Log-probabilities of the choices of some questions by SmolLM2-135M-Instruct, for `evaluate choice`.

Usage: .venv/bin/python tools/oracle/choices.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf]. Writes
tests/reference/smollm2/choices.jsonl (tests/reference/README.md).
"""

import argparse

from gguf import GGUFReader

from common import ROOT, digits, logprobs, write_lines
from smollm2 import HERE, load_model, load_tokenizer

QUESTIONS = [
    ("What is the capital of France?", ["Paris", "Berlin", "Madrid", "Rome"], 0),
    ("Which of these is a fruit?", ["A hammer", "An apple", "A river", "A cloud of dust"], "An apple"),
    ("How many legs does a spider have?", ["Six", "Eight"], 1),
    ("At which temperature does water freeze, at sea level?", ["0 degrees Celsius", "50 degrees Celsius", "100 degrees Celsius"], 0),
    ("Who wrote 'Hamlet'?", ["Charles Dickens", "William Shakespeare", "Jane Austen", "Mark Twain", "Homer"], 1),
    ("Which planet is the closest to the Sun?", ["Neptune", "Mercury", "Jupiter"], "Mercury"),
    ("Is the Earth flat?", ["Yes", "No, it is nearly a sphere."], 1),
    ("中国的首都是哪里？", ["北京", "上海", "广州"], 0),
    ("Which sentence is correct?", ["He go to school.", "He goes to school.", "He going to school."], 1),
    ("What do bees make?", ["Honey", "Milk", "Silk", "Steel"], 0),
    ("Which is the largest?", ["a mouse", "a cat", "an elephant", "a dog", "a bee", "a frog"], "an elephant"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    reader = GGUFReader(parser.parse_args().model)
    tokenizer, _ = load_tokenizer(reader)
    model = load_model(reader)

    def sums(prompt, continuations):
        found = []
        for continuation in continuations:
            tokens = tokenizer.encode(continuation, add_special_tokens=False)
            found.append((digits(sum(logprobs(model, prompt + tokens)[-len(tokens):])), len(tokens)))
        return [list(column) for column in zip(*found)]

    rows = []
    for question, choices, answer in QUESTIONS:
        turn = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        chat, counts = sums(turn, choices)
        raw, raw_counts = sums(tokenizer.encode(question, add_special_tokens=False), [" " + choice for choice in choices])
        rows.append({"question": question, "choices": choices, "answer": answer, "logprobs": chat, "token_counts": counts,
                     "raw_logprobs": raw, "raw_token_counts": raw_counts})
    write_lines(HERE / "choices.jsonl", rows)
    right = sum(row["choices"][row["logprobs"].index(max(row["logprobs"]))] in (row["answer"], row["choices"][row["answer"]]
                if isinstance(row["answer"], int) else None) for row in rows)
    print(f"{right} of {len(rows)} right")


if __name__ == "__main__":
    main()
