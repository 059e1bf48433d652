"""Reference training runs of PEFT and Transformers in fp32 on the small models `tied` and `qwen2`.

Usage: .venv/bin/python tools/oracle/peft_training.py (after tiny_models.py). Formats: tests/reference/README.md.
"""

import json
import math
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

import texts
from common import REFERENCE, digits, write_json

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 20
ACCUMULATION_STEPS = 5
LEARNING_RATE = 1e-3
FULL_LEARNING_RATE = 1e-4


def lora_config():
    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM")


def step_optimizer(parameters, learning_rate, steps):
    """AdamW without decay and Transformers' cosine schedule with 10 % warm-up, rounded up as its Trainer does."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = math.ceil(0.1 * steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, steps), warmup


def masked_loss(model, sequence):
    """(sum of the cross-entropy of the tokens with mask 1, their number); a token is predicted from those before it."""
    tokens = torch.tensor([sequence["tokens"]])
    mask = torch.tensor(sequence["mask"])[1:].bool()
    logits = model(tokens).logits[0, :-1][mask]
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:][mask], reduction="sum"), int(mask.sum())


def base_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()


def sequences(tokenizer, end):
    """20 chat turns, the answer's tokens and the end-of-turn token are the ones learnt."""
    pool = texts.ALL
    rows = []
    for i in range(STEPS):
        question = [{"role": "user", "content": "Continue: " + pool[(i * 5 + 3) % len(pool)][:10 + 3 * i]}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
        answer = tokenizer.encode(pool[i % len(pool)][i:], add_special_tokens=False)[:30 + 7 * i] + [end]
        rows.append({"tokens": prompt + answer, "mask": [0] * len(prompt) + [1] * len(answer)})
    return rows


def save_adapter(model, folder):
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None  # the path of the machine that recorded it
    config["target_modules"] = TARGETS  # PEFT writes a set in any order
    write_json(folder / "adapter_config.json", dict(sorted(config.items())), indent=2)


def initial_adapter(folder, target):
    """A and B random and both non-zero, so that every gradient is."""
    torch.manual_seed(11)
    model = get_peft_model(base_model(folder), lora_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.normal_(0, 0.5 / math.sqrt(parameter.shape[1]))
            elif "lora_B" in name:
                parameter.normal_(0, 0.03)
    save_adapter(model, target)


def train(folder, initial, final, steps):
    """`steps`: the sequences of each step. One backward per sequence; a step's loss is per learnt token of the step."""
    model = PeftModel.from_pretrained(base_model(folder), initial, is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule, warmup = step_optimizer(parameters, LEARNING_RATE, len(steps))
    record = {"learning_rate": LEARNING_RATE, "warmup_steps": warmup, "losses": [], "learning_rates": [], "grad_norms": []}
    for step in steps:
        total = sum(sum(s["mask"][1:]) for s in step)
        loss = 0.0
        for s in step:
            part, _ = masked_loss(model, s)
            (part / total).backward()
            loss += float(part.detach().double()) / total
        record["losses"].append(digits(loss))
        record["learning_rates"].append(schedule.get_last_lr()[0])
        record["grad_norms"].append(digits(torch.nn.utils.clip_grad_norm_(parameters, math.inf)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save_adapter(model, final)
    return record


def full_step(folder, sequence, weights):
    """One AdamW step on all weights at a constant rate; writes the new weights if a path is given."""
    model = base_model(folder)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=FULL_LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    total, count = masked_loss(model, sequence)
    (total / count).backward()
    norms = {name: digits(p.grad.double().norm()) for name, p in model.named_parameters()}
    record = {"learning_rate": FULL_LEARNING_RATE, "loss": digits(total / count),
              "grad_norm": digits(torch.nn.utils.clip_grad_norm_(parameters, math.inf)), "gradient_norms": norms}
    optimizer.step()
    if weights is not None:
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, weights, metadata={"format": "pt"})
    return record


def main():
    for name in ("tied", "qwen2"):
        folder = REFERENCE / "models" / name
        out = REFERENCE / "peft" / name
        out.mkdir(parents=True, exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = sequences(tokenizer, tokenizer.convert_tokens_to_ids("<|im_end|>"))
        initial_adapter(folder, out / "initial")
        pairs = [rows[2 * i:2 * i + 2] for i in range(ACCUMULATION_STEPS)]
        write_json(out / "data.json", {
            "sequences": rows,
            "lora": train(folder, out / "initial", out / "final", [[row] for row in rows]),
            "accumulation": train(folder, out / "initial", out / "final_accumulation", pairs),
            "full": full_step(folder, rows[0], out / "full.safetensors" if name == "tied" else None)}, indent=None)
        moved = [load_file(out / which / "adapter_model.safetensors") for which in ("initial", "final")]
        change = math.sqrt(sum(float((moved[1][k] - v).double().norm()) ** 2 for k, v in moved[0].items()))
        print(name, "adapter moved by", change, json.loads((out / "data.json").read_text())["lora"]["losses"])


if __name__ == "__main__":
    main()
