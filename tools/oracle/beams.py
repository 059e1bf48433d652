"""Beam search by Transformers' generate, with how far each run was from another outcome."""

import torch

from common import SMALLEST_GAP, digits

BEAMS = 4
# Answers of a few words, so that length penalties and ends matter, and longer ones.
PROMPTS = [
    "What is the capital of France? Answer in one sentence.", "Name three colours.", "How many legs does a spider have?",
    "Say hello to Anna.", "What is 2 + 3?", "Translate 'good morning' to Spanish.", "Which animal says meow?",
    "Write a sentence about rain.", "Is the Earth flat? Answer yes or no.", "Finish the sentence: The early bird",
    "Give me a title for a story about a lost key.", "Why do cats purr?", "How does a bicycle stay upright?",
    "Name a fruit that is yellow.", "What do bees make?", "写一个关于秋天的句子。", "Describe a thunderstorm at sea.",
    "What is the opposite of cold?", "Write a short poem about the moon.", "Who wrote Hamlet?",
]


def between(kept, left_out):
    """The gap between the worst score that was kept and the best that was not."""
    return float((kept.min() - left_out.max()).item()) if len(kept) and len(left_out) else float("inf")


def search(model, prompt, count, **options):
    """The best hypothesis, its score, and the smallest gap on which a choice of Transformers' hung."""
    gaps = []
    original = type(model)._get_running_beams_for_next_iteration

    def watch(self, topk_log_probs, topk_running_sequences, topk_running_beam_indices, next_token_hits_stopping_criteria,
              num_beams):
        scores, ended = topk_log_probs[0].double(), next_token_hits_stopping_criteria[0]
        going_on = scores[~ended]
        gaps.append(between(going_on[:num_beams], going_on[num_beams:]))
        if ended.any():  # only those among the first `num_beams` become hypotheses
            gaps.append(between(scores[:num_beams], scores[num_beams:]))
        return original(self, topk_log_probs, topk_running_sequences, topk_running_beam_indices,
                        next_token_hits_stopping_criteria, num_beams)

    type(model)._get_running_beams_for_next_iteration = watch
    try:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                 do_sample=False, num_beams=BEAMS, num_return_sequences=BEAMS, early_stopping=False,
                                 max_new_tokens=count, output_scores=True, return_dict_in_generate=True, **options)
    finally:
        type(model)._get_running_beams_for_next_iteration = original
    scores = out.sequences_scores.double()
    gaps.append(between(scores[:1], scores[1:]))
    tokens = out.sequences[0, len(prompt):].tolist()
    ends = [i for i, token in enumerate(tokens) if token in end_tokens(model)]
    return tokens[:ends[0] + 1] if ends else tokens, digits(scores[0]), min(gaps)  # padding comes after an end


def end_tokens(model):
    end = model.generation_config.eos_token_id
    return end if isinstance(end, list) else [end]


def rows(model, prompts, count, settings):
    """For every (options of generate, number wanted) so many rows, of the first {"prompt_tokens", ...} that can be used."""
    found = []
    for options, wanted in settings:
        usable = []
        for prompt in prompts:
            tokens, score, gap = search(model, prompt["prompt_tokens"], count, **options)
            if gap > SMALLEST_GAP:
                usable.append({**prompt, "end_tokens": end_tokens(model), "beams": BEAMS, **options, "max_new_tokens": count,
                               "tokens": tokens, "score": score, "gap": digits(gap, 6)})
            if len(usable) == wanted:
                break
        assert len(usable) == wanted, f"only {len(usable)} of {wanted} prompts are usable with {options}"
        found += usable
    return found


def chat_prompts(tokenizer):
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [{"messages": turns, "prompt_tokens": tokenizer.apply_chat_template(turns, add_generation_prompt=True)}
            for turns in conversations]


# Both length penalties; fewer with a least length, or with a repetition penalty.
SETTINGS = [({"length_penalty": 0.8}, 10), ({"length_penalty": 1.2}, 10), ({"length_penalty": 0.8, "min_new_tokens": 24}, 5),
            ({"length_penalty": 1.2, "repetition_penalty": 1.1}, 5),
            ({"length_penalty": 1.0, "min_new_tokens": 12, "repetition_penalty": 1.3}, 5)]
