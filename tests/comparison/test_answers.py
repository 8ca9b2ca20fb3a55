"""Answers: the same for every batch size, sampled from the softmax, and known to have ended."""

from math import sqrt

import pytest
import torch

from trl_plus.comparison.answers import PerRowNoise, Sampling, answers_of, seed_of, stop_tokens


def test_the_noise_samples_from_the_softmax():
    """Frequencies of 40,000 draws, each within five standard errors of its probability."""
    draws, temperature = 40_000, 0.7
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = PerRowNoise(temperature, range(draws))
    picked = noise(torch.empty(draws, 0), logits.expand(draws, -1)).argmax(-1)
    for token, p in enumerate(torch.softmax(logits / temperature, -1).tolist()):
        share = float((picked == token).float().mean())
        assert abs(share - p) < 5 * sqrt(p * (1 - p) / draws), token


def test_the_noise_of_a_row_is_its_own():
    scores = torch.zeros(3, 50)
    together = PerRowNoise(1.0, [1, 2, 3])
    alone = PerRowNoise(1.0, [2])
    for _ in range(2):  # the next token has other noise
        first, second = together(scores[:, :0], scores), alone(scores[:1, :0], scores[:1])
        assert torch.equal(first[1], second[0])
        assert not torch.equal(first[0], first[1])
    assert not torch.equal(PerRowNoise(1.0, [2])(scores[:1, :0], scores[:1]), second)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_answers_for_every_batch_size(tiny, tokenizer, prompts, temperature):
    wanted = answers_of(tiny, tokenizer, prompts, Sampling(24, temperature, 5, batch_size=1))
    for size in (2, 3, 16):
        assert answers_of(tiny, tokenizer, prompts, Sampling(24, temperature, 5, batch_size=size)) == wanted
    backwards = answers_of(tiny, tokenizer, prompts[::-1], Sampling(24, temperature, 5, batch_size=2))
    assert backwards[::-1] == wanted


def test_seeds(tiny, tokenizer, prompts):
    def sampled(seed):
        return answers_of(tiny, tokenizer, prompts, Sampling(24, 1.0, seed))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert sampled(0) == sampled(0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert sampled(0) != sampled(1)
    assert sampled(0) != answers_of(tiny, tokenizer, prompts, Sampling(24))
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")}) == 3


def test_an_answer_ends_at_a_stop_token_or_at_the_limit(tiny, tokenizer):
    long = answers_of(tiny, tokenizer, ["anchor basil"], Sampling(12))[0]
    assert long.hit_limit
    assert len(long.tokens) == 12
    stop = long.tokens[4]
    before = tiny.generation_config.eos_token_id
    tiny.generation_config.eos_token_id = [stop]
    try:
        assert stop_tokens(tiny, tokenizer) == sorted({stop, tokenizer.eos_token_id})
        short = answers_of(tiny, tokenizer, ["anchor basil"], Sampling(12))[0]
    finally:
        tiny.generation_config.eos_token_id = before
    assert not short.hit_limit
    assert short.tokens == long.tokens[: long.tokens.index(stop)]
    assert short.text == tokenizer.decode(short.tokens).strip()


def test_progress_and_training_mode(tiny, tokenizer, prompts):
    done = []
    tiny.train()
    answers_of(tiny, tokenizer, prompts, Sampling(2, batch_size=3), done.append)
    assert tiny.training
    assert done == [3, 6, 7]
    tiny.eval()
