"""The tour: from a tensor to a trained model to a rewarded one, each station a few lines. Read this file first.

What a station uses is one file of the project; every claim that it makes is checked right there.
"""

import torch

from kernels import Packing, attention, linear_cross_entropy
from minillm.batching import IGNORE, answering, pack
from minillm.generate import Sampling, generate
from minillm.gpt import GPT, GPTConfig
from minillm.inference import ready
from minillm.objective import backward
from minillm.policy import Rewards, leave_one_out

CONFIG = GPTConfig(vocab_size=8, max_seq_len=16, num_layers=2, width=32, num_heads=2)
PROMPTS = [[1, 2, 0], [3, 0], [4, 5, 1, 0], [2, 6, 0]]  # 0 asks for what stands before it, reversed
END = 7


def test_1_sequences_share_a_row_and_do_not_see_each_other():
    """kernels/packing.py, kernels/attention.py: the tokens of a batch lie one after the other, without padding."""
    torch.manual_seed(0)
    packing = Packing.from_lengths([3, 5])
    q, k, v = torch.randn(3, 8, 2, 4).unbind(0)  # 8 tokens, 2 heads, 4 numbers
    together = attention(q, k, v, causal=True, packing=packing)

    q_alone, k_alone, v_alone = (x[3:].unsqueeze(0) for x in (q, k, v))  # the second sequence, by itself
    scores = torch.einsum("bthd,bshd->bhts", q_alone, k_alone) / 4**0.5
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)  # the future
    probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    torch.testing.assert_close(together[3:], torch.einsum("bhts,bshd->bthd", probs, v_alone)[0])


def test_2_the_loss_never_stores_the_logits():
    """kernels/linear_cross_entropy.py: Σ weight · −log p(target), from hidden states and the output matrix."""
    torch.manual_seed(0)
    hidden, matrix, targets = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([3, IGNORE, 0, 8])
    weights = torch.tensor([0.5, 1.0, -2.0, 0.1])  # a target that is ignored counts nothing, whatever its weight
    ours = linear_cross_entropy(hidden, matrix, targets, token_weights=weights)
    logprobs = (hidden @ matrix.T).log_softmax(-1)
    torch.testing.assert_close(ours, -(0.5 * logprobs[0, 3] - 2.0 * logprobs[2, 0] + 0.1 * logprobs[3, 8]))


def test_3_a_document_is_what_is_read_and_what_should_follow():
    """minillm/batching.py: only the answer has targets; the token that ends it is one of them."""
    document = answering(prompt=[1, 2, 3], answer=[5, END])
    assert document.tokens == [1, 2, 3, 5]
    assert document.targets == [IGNORE, IGNORE, 5, END]
    batch = pack([document, answering([4], [END])])
    assert batch.tokens.tolist() == [1, 2, 3, 5, 4]
    assert batch.packing.lengths == (4, 1)
    assert batch.count == 3


def test_4_a_model_predicts_the_next_token_from_those_before():
    """minillm/gpt.py: tokens → hidden states → logits. Nothing that comes later changes what was predicted."""
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    for parameter in model.parameters():  # as it is made, every block is the identity
        torch.nn.init.normal_(parameter, std=0.2)
    logits = model.logits(model(torch.tensor([1, 2, 3, 4]), Packing.from_lengths([4])))
    other = model.logits(model(torch.tensor([1, 2, 6, 6]), Packing.from_lengths([4])))
    assert logits.shape == (4, 8)
    torch.testing.assert_close(logits[:2], other[:2])
    assert not torch.allclose(logits[2:], other[2:])


def test_5_supervised_learning_raises_the_likelihood_of_given_answers():
    """minillm/objective.py: every token of an answer weighs 1 / (number of tokens of answers)."""
    model = trained_to_reverse()
    samples = generate(ready(model.eval()), PROMPTS, 4, END, Sampling(temperature=0))
    assert [sample.tokens for sample in samples] == [[*reversed(prompt[:-1]), END] for prompt in PROMPTS]


def test_6_the_sampler_and_the_loss_agree_on_probabilities():
    """minillm/generate.py: a token's log-probability as it was drawn is what the loss of the same tokens says."""
    torch.manual_seed(0)
    model = trained_to_reverse(steps=5).eval()
    samples = generate(ready(model), PROMPTS, 4, END, Sampling(temperature=0.7), samples_per_prompt=2)
    answers = [answering(PROMPTS[i // 2], sample.tokens) for i, sample in enumerate(samples)]
    batch = pack(answers)
    losses = model.loss(batch, temperature=0.7)  # one a token
    drawn = torch.tensor([logprob for sample in samples for logprob in sample.logprobs])
    torch.testing.assert_close(-losses[batch.targets != IGNORE], drawn, rtol=0, atol=1e-4)


def test_7_reinforcement_raises_the_reward_of_its_own_answers():
    """minillm/policy.py: the same loss over answers of the model's own, each weighted by how much better it was than
    the other answers to its prompt. Nobody shows it an answer; the reward is the number of 6s."""
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    means = []
    for _ in range(40):
        samples = generate(ready(model), PROMPTS, 4, END, samples_per_prompt=8)
        rewards = torch.tensor([float(sample.tokens.count(6)) for sample in samples]).view(4, 8)
        batch = pack([answering(PROMPTS[i // 8], sample.tokens) for i, sample in enumerate(samples)])
        advantages = leave_one_out(Rewards(rewards)).flatten()
        backward(model, batch, advantages[batch.packing.sequence] / len(samples))
        optimizer.step()
        optimizer.zero_grad()
        means.append(float(rewards.mean()))
    assert means[0] < 1
    assert means[-1] > 3.5  # of 4


def trained_to_reverse(steps: int = 80) -> GPT:
    """A GPT that was shown how to answer each prompt with its tokens from the last to the first."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = pack([answering(prompt, [*reversed(prompt[:-1]), END]) for prompt in PROMPTS])
    for _ in range(steps):
        backward(model, batch, weights=1 / batch.count)
        optimizer.step()
        optimizer.zero_grad()
    return model
