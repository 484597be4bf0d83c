"""Reinforcement learning, GRPO style, with the public tinker SDK and a reward that plain Python can check.

The task is small arithmetic: the prompt is "3+4=", the answer is one token.  The reward is 1 for the right digit and
a tenth less for every step beside it; what is no digit gets 0.  Every prompt is answered GROUP times; an answer's
advantage is its reward minus the group's mean, divided by the group's spread, and importance_sampling corrects for the
weights having moved since the sample.

The model is the state that sft.py saved: a tiny network that has read some licences and starts by answering with words.
In these few steps it learns that a digit answers, and which digits are near; it does not learn to add."""

import random

import tinker
from tinker import types
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import record as records

STEPS = 80
PROMPTS = 8  # questions a step
GROUP = 32  # answers a question
LEARNING_RATE = 4e-3


def question(choose):
    a = choose.randrange(10)
    b = choose.randrange(10 - a)
    return f"{a}+{b}=", str(a + b)


def reward_of(answer, right):
    answer = answer.strip()
    if len(answer) != 1 or not answer.isdigit():
        return 0.0
    return 1.0 - abs(int(answer) - int(right)) / 10


def advantages_of(rewards):
    mean = sum(rewards) / len(rewards)
    spread = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    return [(r - mean) / (spread + 1e-6) for r in rewards]


def datum(prompt, sequence, advantage):
    """The prompt is context only: its positions get advantage 0."""
    tokens = prompt + list(sequence.tokens)
    context = [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": context + list(sequence.logprobs),
            "advantages": context + [advantage] * len(sequence.tokens),
        },
    )


def main():
    record = records.Record("rl")
    service = tinker.ServiceClient()
    training = service.create_training_client_from_state(records.load("sft")["checkpoint"]).result()
    tokenizer = training.get_tokenizer()
    record.ids.append(training.model_id)
    print(f"RL: {STEPS} steps of {PROMPTS} sums x {GROUP} answers; reward 1 for the right digit, less beside it")

    choose = random.Random(2)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        bar = progress.add_task("reward   ...", total=STEPS)
        for step in range(STEPS):
            sampler = training.save_weights_and_get_sampling_client().result()
            asked = []
            for i in range(PROMPTS):
                text, right = question(choose)
                prompt = tokenizer.encode(text)
                params = types.SamplingParams(max_tokens=1, temperature=1.0, seed=step * PROMPTS + i, stop=[])
                future = sampler.sample(types.ModelInput.from_ints(prompt), GROUP, params)
                asked.append((prompt, right, future))

            batch, rewards = [], []
            for prompt, right, future in asked:
                sequences = future.result().sequences
                group = [reward_of(tokenizer.decode(s.tokens), right) for s in sequences]
                rewards += group
                record.tokens["prefill"] += len(prompt)
                record.tokens["sample"] += sum(len(s.tokens) for s in sequences)
                batch += [datum(prompt, s, a) for s, a in zip(sequences, advantages_of(group)) if a != 0]

            reward = sum(rewards) / len(rewards)
            if batch:  # without a difference inside any group there is nothing to learn from
                gradient = training.forward_backward(batch, "importance_sampling")
                update = training.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
                gradient.result()
                update.result()
                record.tokens["train"] += sum(d.model_input.length for d in batch)

            record.add(step, reward)
            progress.update(bar, advance=1, description=f"reward {reward:5.3f}")
            if step % 10 == 0 or step == STEPS - 1:
                progress.console.print(f"  step {step:3d}  mean reward {reward:6.4f}")

    record.save()
    first = sum(v for _, v in record.values[:5]) / 5
    last = sum(v for _, v in record.values[-5:]) / 5
    print(f"RL: mean reward {first:.3f} (first five steps) -> {last:.3f} (last five)")
    service.close("success").result()


if __name__ == "__main__":
    main()
