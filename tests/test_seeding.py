"""Seeds stay what they are: every result of an earlier run depends on them."""

import torch

from vidcsl.seeding import numpy_generator, sample_seed, seed_of, torch_generator


def test_seeds_are_the_same_on_every_machine():
    assert seed_of(0, 1, 2) == sample_seed(0, 1, 2) == 708678087251445158
    assert seed_of(0, "heads") == 89597836179661166


def test_parts_their_order_and_their_kind_matter():
    seeds = [seed_of(1, 2), seed_of(2, 1), seed_of(12), seed_of("1", 2), seed_of(1, 2, "")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_are_local():
    state = torch.random.get_rng_state()
    first, again = (torch.rand(3, generator=torch_generator(0, "a")) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert numpy_generator(0, "a").random() == numpy_generator(0, "a").random()
    assert numpy_generator(0, "a").random() != numpy_generator(0, "b").random()
