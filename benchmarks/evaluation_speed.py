"""Problems a second: this evaluation beside transformers' `generate` followed by a human-eval style harness.

    python -m benchmarks.evaluation_speed --model FOLDER --mbpp mbpp.jsonl --problems 24

Both write greedily after the same 3-shot prompts of MBPP's test problems with the same weights, end at the same stop string and
judge the same programs with three seconds each. The peer pads a batch on the left, in the order of the problems, runs it until its
last row has ended (`stop_strings`), and judges when all is written. Ours decodes in continuous batches and judges what is
done while the rest is being written. Greedy texts are compared: two ways of adding up the same numbers may choose differently where
two tokens are as likely as makes no difference. Beside the time there is the processor time of both with their children, which
other work on the machine disturbs less; OMP_WAIT_POLICY=PASSIVE keeps waiting threads out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import render_prompt, shots_of
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.evaluation.decoding import Request, Sampling, decode
from mlops_tasks.evaluation.sandbox import Program, Sandbox
from mlops_tasks.machine import accelerator, num_cores
from mlops_tasks.model import MtpModel
from mlops_tasks.pretrained import load_model, load_tokenizer

STOP = "[DONE]"
NUM_STOP_TOKENS = len(STOP) + 1  # no token is shorter than a letter
LIMIT_SECONDS = 3.0


@dataclass
class Work:
    """What both sides are given."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    prompts: list[str]
    max_new_tokens: int

    def text(self, ids: Sequence[int]) -> str:
        decoded = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded).partition(STOP)[0]

    def program(self, index: int, text: str) -> Program:
        problem = self.problems[index]
        return Program(text, problem.tests, problem.setup, LIMIT_SECONDS)


@dataclass
class Result:
    texts: list[str]
    passed: list[bool]
    seconds: float
    writing_seconds: float
    processor_seconds: float = 0.0


def ours(work: Work, batch_size: int) -> Result:
    started = time.perf_counter()
    prompts: Any = work.tokenizer(work.prompts)["input_ids"]
    requests = [Request(str(index), 0, tuple(ids), work.max_new_tokens) for index, ids in enumerate(prompts)]
    texts = {}
    with Sandbox() as sandbox, ThreadPoolExecutor(num_cores()) as pool:
        done = decode(
            MtpModel(work.model, num_heads=1, seed=0),
            requests,
            sampling=Sampling(0),
            end_ids=frozenset({int(work.tokenizer.eos_token_id)}),
            batch_size=batch_size,
            is_enough=lambda ids: STOP in work.tokenizer.decode(ids[-NUM_STOP_TOKENS:]),
        )
        verdicts = {}
        for one in done:
            index = int(one.request.problem_id)
            texts[index] = work.text(one.token_ids)
            verdicts[index] = pool.submit(sandbox.run, [work.program(index, texts[index])])
        written = time.perf_counter()
        passed = [verdicts[index].result()[0].passed for index in range(len(requests))]
    return Result(
        [texts[index] for index in range(len(requests))], passed, time.perf_counter() - started, written - started
    )


def peer(work: Work, batch_size: int) -> Result:
    started = time.perf_counter()
    texts: list[str] = []
    for first in range(0, len(work.prompts), batch_size):
        inputs: Any = work.tokenizer(
            work.prompts[first : first + batch_size], return_tensors="pt", padding=True, padding_side="left"
        ).to(work.model.device)
        model: Any = work.model
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=work.max_new_tokens,
            stop_strings=[STOP],
            tokenizer=work.tokenizer,
            pad_token_id=work.tokenizer.pad_token_id,
            eos_token_id=work.tokenizer.eos_token_id,
        )
        texts += [work.text(row) for row in made[:, inputs["input_ids"].shape[1] :].tolist()]
    written = time.perf_counter()
    passed = human_eval_verdicts([work.program(index, text).text for index, text in enumerate(texts)])
    return Result(texts, passed, time.perf_counter() - started, written - started)


def human_eval_verdicts(programs: Sequence[str]) -> list[bool]:
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "programs.json"), Path(folder, "verdicts.json")
        there.write_text(json.dumps(programs))
        script = Path(__file__).with_name("human_eval_style.py")
        subprocess.run([sys.executable, str(script), str(there), str(back)], check=True)
        verdicts: list[bool] = json.loads(back.read_text())
        return verdicts


def loaded(arguments: argparse.Namespace) -> Work:
    problems = read_mbpp(arguments.mbpp)
    shots = shots_of([problem for problem in problems if problem.split == "prompt"], "begin-done-3shot")
    asked = [problem for problem in problems if problem.split == "test"][: arguments.problems]
    prompts = [render_prompt(problem, "begin-done-3shot", shots) for problem in asked]
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Work(model.to(accelerator()), tokenizer, asked, prompts, arguments.max_new_tokens)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mbpp", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="of ours")
    parser.add_argument("--peer-batch-sizes", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    work = loaded(arguments)
    for _ in range(arguments.rounds):
        mine = timed(ours, work, arguments.batch_size)
        told(f"ours, batch {arguments.batch_size}", mine, mine)
        for batch_size in arguments.peer_batch_sizes:
            told(f"transformers, batch {batch_size}", timed(peer, work, batch_size), mine)


def timed(side: Callable[[Work, int], Result], work: Work, batch_size: int) -> Result:
    before = sum(os.times()[:4])
    result = side(work, batch_size)
    result.processor_seconds = sum(os.times()[:4]) - before
    return result


def told(name: str, result: Result, mine: Result) -> None:
    num = len(result.texts)
    differing = sum(one != other for one, other in zip(result.texts, mine.texts, strict=True))
    verdicts = sum(one != other for one, other in zip(result.passed, mine.passed, strict=True))
    print(
        f"{name:24} {num / result.seconds:6.3f} problems/s  {result.seconds:7.1f} s (writing {result.writing_seconds:.1f}, "
        f"processor {result.processor_seconds:.1f})  ours takes 1/{result.seconds / mine.seconds:.2f} of the time, "
        f"1/{result.processor_seconds / mine.processor_seconds:.2f} of the processor's  passed {sum(result.passed)} of {num}  "
        f"texts that differ {differing}, verdicts {verdicts}  load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
