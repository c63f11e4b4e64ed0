"""mistral.rs's side, the stand-in for Candle: Candle's CPU kernels behind a maintained server.

How it is timed. It only takes text, so the prompt is cut to the asked number of its own tokens; `RAYON_NUM_THREADS` is
set by the harness. Prefix cache and paged attention are off, temperature 0, end of text ignored. The seconds are the
engine's own (`usage.total_prompt_time_sec`, `total_completion_time_sec`, in milliseconds), which leave out tokenising,
queueing and Python: the reading that favours it.
"""

import os

import common
from mistralrs import CompletionRequest, Runner, Which


def open_model(path):
    """The runner for a GGUF file."""
    folder, name = os.path.split(path)
    return Runner(Which.GGUF(folder, name), prefix_cache_n=0, no_paged_attn=True)


def complete(runner, prompt, count):
    """Greedy completion of `count` tokens; its usage record and text."""
    request = CompletionRequest(prompt, "default", max_tokens=count, temperature=0.0, ignore_eos=True)
    answer = runner.send_completion_request(request)
    return answer.usage, answer.choices[0].text


def generate(job):
    """Prompt and generation speed: one short warm-up, then `repeats` runs."""
    runner = open_model(job["model"])
    ids = runner.tokenize_text(job["text"], False, None)[: job["prompt"]]
    text = runner.detokenize_text(ids, False)
    complete(runner, runner.detokenize_text(ids[:32], False), 4)
    runs = [complete(runner, text, job["tokens"] + 1) for _ in range(job["repeats"])]
    return {
        "ids": ids,
        "out": runner.tokenize_text(runs[-1][1], False, None),
        "prompt": [[use.prompt_tokens, use.total_prompt_time_sec] for use, _ in runs],
        "generate": [[use.completion_tokens, use.total_completion_time_sec] for use, _ in runs],
    }


if __name__ == "__main__":
    common.main({"generate": generate})
