"""Small GGUF files: one for each tensor type with its dequantized values, and two whole models with Transformers' figures.

Usage: .venv/bin/python tools/oracle/tiny_gguf.py (after tiny_models.py). Formats: tests/reference/README.md.
"""

import json
import math

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, TokenType, dequantize, quantize
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import REFERENCE, write_lines
from smollm2 import NAMES, unpermute
from tiny_models import score_rows

HERE = REFERENCE / "gguf"

QUANTIZED = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
# bytes of a block of 256 values, and where its fp16 scales stand: the package has no quantizer for these
K_BLOCKS = {Kind.Q4_K: (144, [0, 2]), Kind.Q5_K: (176, [0, 2]), Kind.Q6_K: (210, [208])}
SHAPES = {"matrix": (6, 512), "narrow": (3, 256), "vector": (256,)}
ALIGNMENT = {Kind.Q8_0: 64}  # one file with another alignment than the usual 32


def floats(shape, rng):
    """Values of many sizes: a zero row, a constant row, an outlier, fp16 subnormals."""
    data = (rng.standard_normal(shape) * 0.3).astype(np.float32)
    if len(shape) == 2:
        data[1] = 0.0
        data[2, :40] = -0.25
        data[0, 5] = 30.0
        data[0, 64:96] *= 1e-6
    return data


def random_blocks(kind, shape, rng):
    size, scales = K_BLOCKS[kind]
    count = math.prod(shape) // 256
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in scales:
        values = (rng.uniform(0.0005, 0.02, count) * rng.choice([1, 1, 1, -1], count)).astype(np.float16)
        values[0] = 0.0 if count > 3 else values[0]
        values[-1] = 3e-6 if count > 3 else values[-1]  # subnormal
        data[:, place:place + 2] = values.view(np.uint8).reshape(count, 2)
    return data.reshape(*shape[:-1], shape[-1] // 256 * size)


def write_types():
    (HERE / "types").mkdir(parents=True, exist_ok=True)
    for kind in [*QUANTIZED, *K_BLOCKS]:
        rng = np.random.default_rng(kind.value + 100)
        writer = GGUFWriter(HERE / "types" / f"{kind.name}.gguf", "llama")
        writer.add_name("tensor type " + kind.name)
        if kind in ALIGNMENT:
            writer.add_custom_alignment(ALIGNMENT[kind])
        expected = {}
        for name, shape in SHAPES.items():
            data = random_blocks(kind, shape, rng) if kind in K_BLOCKS else quantize(floats(shape, rng), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            expected[name] = np.ascontiguousarray(dequantize(data, kind).astype(np.float32))
            assert expected[name].shape == shape and np.isfinite(expected[name]).all()
        finish(writer)
        save_file(expected, HERE / "types" / f"{kind.name}.safetensors")
        for tensor in GGUFReader(HERE / "types" / f"{kind.name}.gguf").tensors:
            assert tensor.tensor_type == kind and tuple(reversed(tensor.shape.tolist())) == SHAPES[tensor.name]
            assert np.array_equal(dequantize(tensor.data, kind).reshape(SHAPES[tensor.name]), expected[tensor.name])


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, folder, pre):
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = dict(raw["model"]["vocab"])
    special = {t["content"]: t["id"] for t in raw["added_tokens"]}
    ids.update(special)
    tokens = sorted(ids, key=ids.get)
    assert [ids[t] for t in tokens] == list(range(len(tokens)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    writer.add_eos_token_id(special[config["eos_token"]])
    writer.add_chat_template(config["chat_template"])
    return config, special


def permute(weight, heads):
    """The converter's order of the rows of q and k of Llama models: the inverse of `unpermute`."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def llama3_factors(scaling, theta, size):
    """llama.cpp's rope_freqs.weight: by what each rotary frequency is divided."""
    out = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * theta ** (i / size)
        low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
        high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
        if wavelength < high:
            out.append(1.0)
        elif wavelength > low:
            out.append(scaling["factor"])
        else:
            smooth = ((scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"])
                      / (scaling["high_freq_factor"] - scaling["low_freq_factor"]))
            out.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    module, ending = rest.rsplit(".", 1)
    return f"blk.{layer}.{ {v: k for k, v in NAMES.items()}[module] }.{ending}"


def write_model(name, kind, pre):
    """models/NAME as GGUF with matrices of type `kind`, and the figures of the dequantized weights."""
    source, target = REFERENCE / "models" / name, HERE / name
    target.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32, attn_implementation="eager").eval()
    config, arch = model.config, model.config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = GGUFWriter(target / "model.gguf", arch)
    writer.add_name("random " + name)
    writer.add_file_type(1 if kind == Kind.F16 else 7)
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokenizer_config, special = add_tokenizer(writer, source, pre)
    if arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_bos_token_id(special["<|begin_of_text|>"])
        factors = llama3_factors(config.rope_scaling, config.rope_theta, head_dim)
        plain = config.rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
        assert np.allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
        writer.add_tensor("rope_freqs.weight", factors)
    else:
        writer.add_bos_token_id(special["<|endoftext|>"])
        writer.add_pad_token_id(special[tokenizer_config["pad_token"]])
        writer.add_add_bos_token(False)
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            data = parameter.numpy()
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(full_name.split(".")[-2])
            permuted = arch == "llama" and heads is not None
            if permuted:
                data = permute(data, heads)
            stored = kind if data.ndim == 2 else Kind.F32
            data = quantize(np.ascontiguousarray(data), stored)
            writer.add_tensor(gguf_name(full_name), data, raw_dtype=stored)
            values = dequantize(data, stored).astype(np.float32)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(unpermute(values, heads) if permuted else values)))
    finish(writer)
    tokenizer = AutoTokenizer.from_pretrained(source)
    write_lines(target / "logprobs.jsonl", score_rows(model, tokenizer, 300))


if __name__ == "__main__":
    write_types()
    write_model("llama31", Kind.F16, "llama-bpe")
    write_model("qwen2", Kind.Q8_0, "qwen2")
