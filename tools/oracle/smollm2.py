"""Reference figures of SmolLM2-135M-Instruct, dequantized from its GGUF file, by Transformers and PEFT in fp32.

Usage: .venv/bin/python tools/oracle/smollm2.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [part ...]
Parts: tokens chat logprobs greedy beams lora (default: all). Formats: tests/reference/README.md.
"""

import argparse
import math

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import beams
import texts
from common import (REFERENCE, ROOT, chat_rows, digits, greedy, logprobs, messages, splitmix64, tokens_rows, usable,
                    write_json, write_lines)

HERE = REFERENCE / "smollm2"


def field(reader, name):
    return reader.fields[name].contents()


def load_tokenizer(reader):
    """The tokenizer as SmolLM2 publishes it: every digit alone, then GPT-2's byte-level pattern; no normalizer."""
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in field(reader, "tokenizer.ggml.merges")]
    assert field(reader, "tokenizer.ggml.pre") == "smollm"
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    core.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    special = [t for t, kind in zip(tokens, types) if kind == 3]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert core.get_vocab_size() == len(tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                        unk_token="<|endoftext|>", pad_token="<|im_end|>",
                                        clean_up_tokenization_spaces=False)
    tokenizer.chat_template = field(reader, "tokenizer.chat_template")
    return tokenizer, special


def unpermute(weight, heads):
    """Undoes the converter's reordering of q and k rows (pairs interleaved) to Transformers' two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def load_model(reader):
    def value(name):
        return field(reader, "llama." + name)

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=value("vocab_size"), hidden_size=value("embedding_length"), intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=value("context_length"), rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_theta=value("rope.freq_base"), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    state = {}
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{NAMES[kind]}.weight"
            if kind in ("attn_q", "attn_k"):
                data = unpermute(data, heads if kind == "attn_q" else kv_heads)
        state[name] = torch.from_numpy(np.ascontiguousarray(data))
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", torch_dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model.eval()


PROMPTS = [
    "Write an article about lighthouses.", "Tell me a long story about a clockmaker and her apprentice.",
    "Explain how bread is made, step by step.", "What causes the seasons on Earth?", "Describe the city of Rome to a blind traveller.",
    "Write a letter to a friend about moving to a new country.", "How does a bicycle stay upright?",
    "Give advice to someone who starts to learn the piano.", "Write a report on the use of water in farming.",
    "List ten uses of a paper clip and explain each.", "Write a Python function that sorts a list of words by length.",
    "What is the difference between weather and climate?", "Write the first chapter of a novel set on Mars.",
    "Summarize the history of the printing press.", "Describe how vaccines work for a class of ten-year-olds.",
    "Write a dialogue between the sun and the moon.", "Why do cats purr?", "Plan a week of simple vegetarian dinners.",
    "Write an essay on the value of patience.", "How do I repair a leaking tap?", "Describe your ideal library.",
    "What would happen if the Moon disappeared?", "Write a speech for the opening of a village school.",
    "Explain recursion with an example from daily life.", "Write a review of an imaginary restaurant.",
    "Compare train and aeroplane travel.", "Describe a thunderstorm at sea.", "Write a short biography of an invented explorer.",
    "How should a beginner start a vegetable garden?", "Explain supply and demand.", "写一篇关于秋天的文章。", "请介绍一下长城的历史。",
    "Translate to French and explain: the early bird catches the worm.", "Write instructions for building a kite. 🪁",
]


def greedy_rows(model, tokenizer, wanted, penalty=None):
    rows = []
    for i, prompt in enumerate(PROMPTS):
        conversation = [{"role": "user", "content": prompt}]
        if i % 4 == 3:
            conversation.insert(0, {"role": "system", "content": "You write long, detailed answers."})
        tokens = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        new, gaps = greedy(model, tokens, 64, penalty)
        if usable(model, new, gaps, 64):
            row = {"messages": conversation, "prompt_tokens": tokens, "tokens": new, "gaps": gaps}
            rows.append(row if penalty is None else {**row, "repetition_penalty": penalty})
        if len(rows) == wanted:
            return rows
    raise SystemExit(f"only {len(rows)} of {wanted} prompts are usable")


def hashed(tensor_index, shape, scale):
    """value = (2 u - 1) scale, u = (splitmix64(tensor_index 2^32 + element) >> 11) 2^-53, rounded to fp32."""
    count = shape[0] * shape[1]
    values = [(2.0 * (splitmix64((tensor_index << 32) + e) >> 11) * 2.0**-53 - 1.0) * scale for e in range(count)]
    return torch.tensor(np.array(values, dtype=np.float64).astype(np.float32).reshape(shape))


LORA_ORDER = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
              "mlp.down_proj"]
LORA_SCALE = {"A": 0.04, "B": 0.01}


def lora(model, tokenizer):
    from peft_training import lora_config, masked_loss, step_optimizer
    from peft import get_peft_model

    wrapped = get_peft_model(model, lora_config())
    named = []
    for layer in range(model.config.num_hidden_layers):
        for m, module in enumerate(LORA_ORDER):
            for which in "AB":
                index = (layer * len(LORA_ORDER) + m) * 2 + "AB".index(which)
                name = f"layers.{layer}.{module}.lora_{which}.weight"
                parameter = wrapped.get_parameter(f"base_model.model.model.layers.{layer}.{module}.lora_{which}.default.weight")
                with torch.no_grad():
                    parameter.copy_(hashed(index, tuple(parameter.shape), LORA_SCALE[which]))
                named.append((name, parameter))
    initial = [[name, digits(p.detach().double().norm())] for name, p in named]
    sequences = []
    for i in range(6):
        question = [{"role": "user", "content": PROMPTS[i]}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
        answer = tokenizer.encode((texts.ENGLISH + texts.CHINESE)[i], add_special_tokens=False)
        tokens = (prompt + answer)[:127] + [2]
        sequences.append({"tokens": tokens, "mask": [0] * len(prompt) + [1] * (len(tokens) - len(prompt))})
    steps = 6
    optimizer, schedule, warmup = step_optimizer([p for _, p in named], 1e-3, steps)
    losses, norms, rates = [], [], []
    for sequence in sequences:
        rates.append(schedule.get_last_lr()[0])
        total, count = masked_loss(wrapped, sequence)
        (total / count).backward()
        losses.append(digits(total / count))
        norms.append(digits(torch.nn.utils.clip_grad_norm_([p for _, p in named], math.inf)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    final = [[name, digits(p.detach().double().norm())] for name, p in named]
    write_json(HERE / "lora.json", {
        "rank": 8, "alpha": 16, "learning_rate": 1e-3, "steps": steps, "warmup_steps": warmup, "scale_A": LORA_SCALE["A"],
        "scale_B": LORA_SCALE["B"], "sequences": sequences, "losses": losses, "grad_norms": norms, "learning_rates": rates,
        "initial_norms": initial, "final_norms": final}, indent=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("parts", nargs="*", default=[])
    options = parser.parse_args()
    parts = options.parts or ["tokens", "chat", "logprobs", "greedy", "beams", "lora"]
    reader = GGUFReader(options.model)
    tokenizer, special = load_tokenizer(reader)
    if "tokens" in parts:
        write_lines(HERE / "tokens.jsonl", tokens_rows(tokenizer, special[:3] + special[-2:]))
    if "chat" in parts:
        write_lines(HERE / "chat.jsonl", chat_rows(tokenizer))
    if not {"logprobs", "greedy", "beams", "lora"} & set(parts):
        return
    model = load_model(reader)
    if "logprobs" in parts:
        rows = []
        for text in texts.ALL:
            tokens = tokenizer.encode(text, add_special_tokens=False)
            rows.append({"text": text, "tokens": tokens, "logprobs": logprobs(model, tokens)})
        for row in chat_rows(tokenizer):
            if len(row["tokens"]) > 150:
                rows.append({key: row[key] for key in ("text", "tokens")} | {"logprobs": logprobs(model, row["tokens"])})
        print(sum(len(row["tokens"]) for row in rows), "tokens scored, mean log-probability",
              np.mean([np.mean(row["logprobs"]) for row in rows]))
        write_lines(HERE / "logprobs.jsonl", rows)
    if "greedy" in parts:
        rows = greedy_rows(model, tokenizer, 20)
        write_lines(HERE / "greedy.jsonl", rows)
        print(tokenizer.decode(rows[0]["tokens"]))
        write_lines(HERE / "greedy_penalty.jsonl", greedy_rows(model, tokenizer, 5, 1.1))
    if "beams" in parts:
        rows = beams.rows(model, beams.chat_prompts(tokenizer), 40, beams.SETTINGS)
        write_lines(HERE / "beams.jsonl", rows)
        print(len(rows), "beam searches;", sum(row["tokens"][-1] == 2 for row in rows), "ended by an end token")
    if "lora" in parts:
        lora(model, tokenizer)


if __name__ == "__main__":
    main()
