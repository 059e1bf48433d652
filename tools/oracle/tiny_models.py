"""Small random models of the three families with their own small tokenizers, and Transformers' figures on them.

Usage: .venv/bin/python tools/oracle/tiny_models.py [qwen2 llama31 tied yarn]. Formats: tests/reference/README.md.
"""

import json
import random
import shutil
import sys

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
                          Qwen2Config, Qwen2ForCausalLM)

import beams
import texts
from common import REFERENCE, chat_rows, greedy, logprobs, tokens_rows, usable, write_json, write_lines

HERE = REFERENCE / "models"

QWEN2_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                 r"|\s+(?!\S)|\s+")
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                  r"|\s+(?!\S)|\s+")

CHATML = ("{{% for message in messages %}}{{% if loop.first and messages[0]['role'] != 'system' %}}"
          "{{{{ '<|im_start|>system\n{default}<|im_end|>\n' }}}}{{% endif %}}"
          "{{{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}}}{{% endfor %}}"
          "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}")
HEADERS = ("{% set loop_messages = messages %}{% for message in loop_messages %}"
           "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
           "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
           "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")


class Family:
    """What a family's tokenizer.json and tokenizer_config.json hold beside vocabulary and merges."""

    def __init__(self, special, bos, eos, pad, template, special_first):
        self.special, self.bos, self.eos, self.pad = special, bos, eos, pad
        self.template, self.special_first = template, special_first


QWEN2 = Family(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>",
               CHATML.format(default="You are a helpful assistant."), special_first=False)
LLAMA3 = Family(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", HEADERS, special_first=False)
SMOLLM2 = Family(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>", "<|im_end|>",
                 CHATML.format(default="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
                 special_first=True)


def byte_level(trim, regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim, use_regex=regex)


def splitter(family):
    if family is SMOLLM2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True, True)])
    pattern = QWEN2_PATTERN if family is QWEN2 else LLAMA3_PATTERN
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
                                    byte_level(family is LLAMA3, False)])


def train_tokenizer(family, size, folder, unreachable=()):
    """Trains BPE on texts.ALL; `unreachable`: whole words added to the vocabulary without merges (for ignore_merges)."""
    core = Tokenizer(models.BPE(ignore_merges=family is LLAMA3))
    core.normalizer = normalizers.NFC() if family is QWEN2 else None
    core.pre_tokenizer = splitter(family)
    core.decoder = decoders.ByteLevel(add_prefix_space=family is not QWEN2, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=size - len(unreachable) - (0 if family.special_first else len(family.special)),
                                  min_frequency=1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=family.special if family.special_first else [], show_progress=False)
    core.train_from_iterator(texts.ALL, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in family.special])
    if family is QWEN2:
        core.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    elif family is LLAMA3:
        core.post_processor = processors.Sequence([
            processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                          special_tokens=[("<|begin_of_text|>", core.token_to_id("<|begin_of_text|>"))])])
    raw = json.loads(core.to_str())
    if unreachable:
        vocabulary = raw["model"]["vocab"]
        start = min(t["id"] for t in raw["added_tokens"])
        for word in unreachable:
            assert word not in vocabulary
            vocabulary[word] = start
            start += 1
        for token in raw["added_tokens"]:  # special tokens stay behind the vocabulary, as published
            token["id"] += len(unreachable)
        for processor in raw["post_processor"]["processors"]:
            for token in processor.get("special_tokens", {}).values():
                token["ids"] = [i + len(unreachable) for i in token["ids"]]
    if family is not LLAMA3:  # the older form of the file: "a b"; the newer one is ["a", "b"]
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
    config = {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {key: t[key] for key in ("content", "lstrip", "normalized", "rstrip",
                                                                        "single_word", "special")} for t in raw["added_tokens"]},
        "bos_token": family.bos, "chat_template": family.template, "clean_up_tokenization_spaces": False,
        "eos_token": family.eos, "model_max_length": 4096, "pad_token": family.pad,
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None}
    write_json(folder / "tokenizer_config.json", config, indent=2)
    return len(raw["model"]["vocab"]) + sum(t["content"] not in raw["model"]["vocab"] for t in raw["added_tokens"])


def randomize(model, seed):
    """Every block of order one, attention not flat, logits of standard deviation about 2, norms around 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter, mean, deviation):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation + mean)

    hidden = model.config.hidden_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                normal(parameter, 1.0, 0.15)
            elif name.endswith("bias"):
                normal(parameter, 0.0, 0.5)
            elif "embed_tokens" in name or "lm_head" in name:
                normal(parameter, 0.0, 2.0 / hidden**0.5)
            else:
                sharper = 1.4 if "q_proj" in name or "k_proj" in name else 1.0
                normal(parameter, 0.0, sharper / parameter.shape[1] ** 0.5)


def save(model, folder, dtype, shard, overrides):
    """The model in the stated type, with config.json and generation_config.json as the families publish them."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    for key in ("layer_types", "pretraining_tp"):
        config.pop(key, None)
    config.update(overrides)
    write_json(folder / "config.json", config, indent=2)


def build(name):
    folder = HERE / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    if name in ("qwen2", "yarn"):
        if name == "qwen2":
            size = train_tokenizer(QWEN2, 1200, folder)
        else:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(HERE / "qwen2" / file, folder / file)
            size = len(AutoTokenizer.from_pretrained(folder))
        small = name == "yarn"
        scaling = {"factor": 4.0, "original_max_position_embeddings": 64, "type": "yarn"}
        config = Qwen2Config(
            vocab_size=size, hidden_size=64 if small else 128, intermediate_size=96 if small else 192,
            num_hidden_layers=2 if small else 3, num_attention_heads=4 if small else 8, num_key_value_heads=2 if small else 4,
            max_position_embeddings=256 if small else 2048, rms_norm_eps=1e-6, rope_theta=1e4 if small else 1e6,
            rope_scaling=dict(scaling) if small else None, tie_word_embeddings=False, use_sliding_window=False,
            bos_token_id=size - 3, eos_token_id=size - 1, pad_token_id=size - 3)
        model = Qwen2ForCausalLM._from_config(config, torch_dtype=torch.float32)
        randomize(model, 2 if small else 1)
        model.generation_config.update(eos_token_id=[size - 1, size - 3])
        save(model, folder, torch.bfloat16, "100MB" if small else "730KB", {"rope_scaling": scaling} if small else {})
        family = QWEN2
    elif name == "llama31":
        words = ["Ġlighthouses", "Ġinstruction", "ĠMichaelmas", "supercalifragilistic", "Ġstep", "ä½łå¥½", "hello", "Ġdogs"]
        size = train_tokenizer(LLAMA3, 1100, folder, words)
        scaling = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64,
                   "rope_type": "llama3"}
        config = LlamaConfig(
            vocab_size=size, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=500000.0,
            rope_scaling=dict(scaling), tie_word_embeddings=False, bos_token_id=size - 5, eos_token_id=size - 1)
        model = LlamaForCausalLM._from_config(config, torch_dtype=torch.float32)
        randomize(model, 3)
        model.generation_config.update(eos_token_id=[size - 4, size - 1])
        save(model, folder, torch.float16, "100MB", {"rope_scaling": scaling})
        family = LLAMA3
    else:
        size = train_tokenizer(SMOLLM2, 1000, folder)
        config = LlamaConfig(
            vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=100000.0,
            tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
        model = LlamaForCausalLM._from_config(config, torch_dtype=torch.float32)
        randomize(model, 4)
        save(model, folder, torch.float32, "100MB", {})
        family = SMOLLM2
    record(name, folder, family)


def score_rows(model, tokenizer, longest):
    """Two rows of running text (with the tokenizer's own start token) and two of random tokens."""
    rows = []
    for pieces in (texts.ENGLISH[:4], texts.CHINESE[2:] + texts.CODE + texts.EMOJI):
        text = "\n".join(pieces)
        while len(tokenizer.encode(text)) > longest:
            text = text[:-1]
        tokens = tokenizer.encode(text)
        rows.append({"text": text, "tokens": tokens, "logprobs": logprobs(model, tokens)})
    rng = random.Random(5)
    for _ in range(2):
        tokens = [rng.randrange(len(tokenizer)) for _ in range(longest)]
        rows.append({"tokens": tokens, "logprobs": logprobs(model, tokens)})
    return rows


def greedy_rows(model, tokenizer, count=32):
    rows = []
    rng = random.Random(6)
    for i in range(60):
        if i % 2 == 0:
            row = {"messages": [{"role": "user", "content": texts.ALL[i // 2 % len(texts.ALL)][:40]}]}
            row["prompt_tokens"] = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)
        else:
            row = {"prompt_tokens": [rng.randrange(len(tokenizer)) for _ in range(5 + 6 * i)]}
        new, gaps = greedy(model, row["prompt_tokens"], count)
        if usable(model, new, gaps, count) and len(set(new)) > count // 4:
            rows.append({**row, "tokens": new, "gaps": gaps})
        if len(rows) == 5:
            return rows
    raise SystemExit(f"only {len(rows)} usable prompts")


def beam_rows(model, greedy):
    """From the beginnings of recorded continuations: short searches, with and without a repetition penalty."""
    prompts = [{"prompt_tokens": row["prompt_tokens"] + row["tokens"][:cut]} for cut in (0, 5, 10) for row in greedy]
    return beams.rows(model, prompts, 24, [({"length_penalty": 0.8}, 3), ({"length_penalty": 1.2, "repetition_penalty": 1.3}, 3)])


def record(name, folder, family):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    assert len(tokenizer) == model.config.vocab_size
    logits = model(torch.arange(200)[None]).logits
    print(name, "vocabulary", len(tokenizer), "parameters", model.num_parameters(), "deviation of logits", float(logits.std()))
    write_lines(folder / "logprobs.jsonl", score_rows(model, tokenizer, 250 if name == "yarn" else 300))
    rows = greedy_rows(model, tokenizer)
    write_lines(folder / "greedy.jsonl", rows)
    write_lines(folder / "beams.jsonl", beam_rows(model, rows))
    if name != "yarn":  # its tokenizer is that of qwen2
        write_lines(folder / "chat.jsonl", chat_rows(tokenizer))
        write_lines(folder / "tokens.jsonl", tokens_rows(tokenizer, family.special))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["qwen2", "llama31", "tied", "yarn"]:
        build(wanted)
