"""Networks: values by hand, seeds, layout, and weights that travel with their buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.config import AgentConfig
from common.heads import QHead
from common.networks import (
    QNetwork,
    build_network,
    flatten_state,
    initialise,
    load_flat_state,
)
from common.torsos import FrameDifferences
from common.types import EnvironmentSpec, ObservationSpec

BYTE = 1.0 / 255.0
ATARI = EnvironmentSpec("pong", ObservationSpec((84, 84), "uint8", 4), 6, 4, "", scale=BYTE)
CARTPOLE = EnvironmentSpec("cartpole", ObservationSpec((4,), "float32", 1), 2, 1, "")
CNN = AgentConfig(network="nature_cnn")
MLP = AgentConfig(network="mlp", hidden=(8, 5))
CART = EnvironmentSpec(
    "cartpole_pixels", ObservationSpec((40, 90), "uint8", 2), 2, 1, "", scale=BYTE
)
PIXEL_CNN = AgentConfig(network="pixel_cnn", dueling=False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(network: QNetwork) -> QHead:
    assert isinstance(network.head, QHead)
    return network.head


def batch_norm_network() -> nn.Sequential:
    """Buffers of two types: float32 statistics and an int64 counter at an unaligned offset."""
    return nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


@pytest.mark.parametrize("dueling", [False, True])
def test_nature_cnn_maps_stacks_of_pixels_to_action_values(dueling: bool) -> None:
    network = build_network(AgentConfig(network="nature_cnn", dueling=dueling), ATARI)
    q = network(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=seeded(0)))
    assert q.shape == (3, 6)
    assert q.dtype == torch.float32
    # Convolutions and hidden layers of Mnih et al. 2015, with a second stream when dueling.
    convolutions = 4 * 32 * 64 + 32 + 32 * 64 * 16 + 64 + 64 * 64 * 9 + 64
    stream = 3136 * 512 + 512
    heads = 512 * 6 + 6 + ((512 + 1) if dueling else 0)
    expected = convolutions + stream * (2 if dueling else 1) + heads
    assert sum(p.numel() for p in network.parameters()) == expected


def test_nips_cnn_has_the_layers_of_its_paper() -> None:
    network = build_network(AgentConfig(network="nips_cnn", dueling=False), ATARI)
    assert network(torch.zeros(3, 4, 84, 84, dtype=torch.uint8)).shape == (3, 6)
    # Mnih et al. 2013, section 4.1: 16 filters of 8x8, stride 4; 32 of 4x4, stride 2; 256 units.
    convolutions = 4 * 16 * 64 + 16 + 16 * 32 * 16 + 32
    assert sum(p.numel() for p in network.parameters()) == (
        convolutions + (32 * 9 * 9) * 256 + 256 + 256 * 6 + 6
    )


def test_pixels_are_scaled_to_one_inside_the_network() -> None:
    pixels = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8, generator=seeded(1))
    floats = ATARI._replace(observation=ObservationSpec((84, 84), "float32", 4), scale=1.0)
    network, same = build_network(CNN, ATARI), build_network(CNN, floats)
    torch.testing.assert_close(network(pixels), same(pixels.float() / 255.0))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1.0 / 255.0, 0.5])
def test_scale_of_the_spec_alone_decides_and_what_is_scaled_is_not_changed(
    dtype: str, scale: float
) -> None:
    """Whatever the type: vectors of bytes are read as they are, pictures of floats are scaled."""
    spec = CARTPOLE._replace(observation=ObservationSpec((4,), dtype, 1), scale=scale)
    network = build_network(MLP, spec)
    observation = torch.tensor([[[3, 0, 1, 255]]], dtype=getattr(torch, dtype))
    before = observation.clone()
    assert network.as_float(observation).tolist() == (before.float() * scale).tolist()
    network(observation)
    assert torch.equal(observation, before)


def test_float_observations_are_not_scaled_and_not_changed() -> None:
    observation = torch.tensor([[[3.0, -2.0, 0.5, 9.0]]])
    before = observation.clone()
    network = build_network(AgentConfig(network="mlp", hidden=(4,), dueling=False), CARTPOLE)
    head = head_of(network)
    assert head.hidden is not None
    with torch.no_grad():
        head.hidden.weight.copy_(torch.eye(4))
        head.hidden.bias.zero_()
        head.advantage.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 1.0, 1.0]]))
        head.advantage.bias.zero_()
    torch.testing.assert_close(network(observation), torch.tensor([[3.0, 0.0 + 0.5 + 9.0]]))
    assert torch.equal(observation, before)


def test_dueling_is_value_plus_advantage_without_its_mean() -> None:
    network = build_network(AgentConfig(network="mlp", hidden=(1,), dueling=True), CARTPOLE)
    head = head_of(network)
    assert head.value is not None
    assert head.hidden is not None
    with torch.no_grad():
        head.hidden.weight.zero_()
        head.hidden.bias.copy_(torch.tensor([2.0, 3.0]))  # value's stream, advantage's
        head.value.weight.fill_(10.0)
        head.value.bias.fill_(1.0)
        head.advantage.weight.copy_(torch.tensor([[1.0], [5.0]]))
        head.advantage.bias.zero_()
    value, advantage, mean = 10.0 * 2.0 + 1.0, (3.0, 15.0), 9.0
    expected = torch.tensor([[value + advantage[0] - mean, value + advantage[1] - mean]])
    torch.testing.assert_close(network(torch.zeros(1, 1, 4)), expected)


def test_wide_or_stacked_observations_are_flattened_by_the_mlp() -> None:
    stacked = CARTPOLE._replace(observation=ObservationSpec((4,), "float32", 3))
    assert build_network(MLP, stacked)(torch.zeros(7, 3, 4)).shape == (7, 2)


@pytest.mark.parametrize("dueling", [False, True])
def test_pixel_cnn_is_three_normalised_convolutions_and_a_linear_head(dueling: bool) -> None:
    network = build_network(AgentConfig(network="pixel_cnn", dueling=dueling), CART)
    head = head_of(network)
    pixels = torch.randint(0, 256, (3, 2, 40, 90), dtype=torch.uint8, generator=seeded(0))
    q = network(pixels)
    assert q.shape == (3, 2)
    assert q.dtype == torch.float32
    # One channel comes in; weight and bias of a normalisation for each channel that goes out.
    convolutions = 25 * 16 + 25 * 16 * 32 + 25 * 32 * 32
    normalisations = 2 * (16 + 32 + 32)
    # 40 x 90 shrinks to 18 x 43, 7 x 20 and 2 x 8.
    features = 32 * 2 * 8
    linear = features * 2 + 2 + ((features + 1) if dueling else 0)
    expected = convolutions + normalisations + linear
    assert sum(p.numel() for p in network.parameters()) == expected
    assert head.hidden is None


def test_dueling_streams_of_a_network_without_a_hidden_layer_see_the_same_features() -> None:
    network = build_network(AgentConfig(network="pixel_cnn", dueling=True), CART)
    head = head_of(network)
    pixels = torch.randint(0, 256, (3, 2, 40, 90), dtype=torch.uint8, generator=seeded(0))
    assert head.value is not None
    floats = pixels.float() / 255.0
    features = network.torso(floats).permute(0, 2, 3, 1).flatten(1)
    value, advantage = head.value(features), head.advantage(features)
    expected = value + advantage - advantage.mean(dim=1, keepdim=True)
    torch.testing.assert_close(network(pixels), expected)


def test_pixel_cnn_sees_nothing_but_the_difference_of_the_frames() -> None:
    network = build_network(PIXEL_CNN, CART)
    frames = torch.randint(60, 200, (4, 2, 40, 90), dtype=torch.uint8, generator=seeded(3))
    brighter = frames + 50  # both frames alike
    torch.testing.assert_close(network(frames), network(brighter), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(frames), network(frames.flip(1)))


def test_frame_differences_are_the_screen_less_the_one_before() -> None:
    """Ink is the screen's negative, 1 - screen."""
    screens = torch.rand(2, 3, 4, 5, generator=seeded(4))
    differences = FrameDifferences()(1.0 - screens)
    torch.testing.assert_close(differences, screens[:, 1:] - screens[:, :-1])


@pytest.mark.parametrize(
    ("frame_shape", "stack"), [((4,), 2), ((28, 90), 2), ((40, 90), 1), ((3, 40, 90), 2)]
)
def test_pixel_cnn_rejects_what_it_cannot_see(frame_shape: tuple[int, ...], stack: int) -> None:
    spec = CART._replace(observation=ObservationSpec(frame_shape, "uint8", stack))
    with pytest.raises(ValueError, match="two sizes >= 29 and `stack` >= 2 for network pixel_cnn"):
        build_network(PIXEL_CNN, spec)


def test_single_and_batched_rows_give_the_same_values() -> None:
    network = build_network(CNN, ATARI)
    pixels = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8, generator=seeded(2))
    together = network(pixels)
    alone = torch.cat([network(pixels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_memory_layout_of_the_observation_does_not_matter() -> None:
    network = build_network(CNN, ATARI)
    pixels = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8, generator=seeded(3))
    last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(pixels), network(last))


@pytest.mark.parametrize(
    "observation",
    [
        torch.zeros(1, 4, 84, 84),
        torch.zeros(4, 84, 84, dtype=torch.uint8),
        torch.zeros(1, 3, 84, 84, dtype=torch.uint8),
    ],
    ids=["dtype", "no batch", "stack"],
)
def test_observation_of_another_dtype_or_shape_is_rejected(observation: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        build_network(CNN, ATARI)(observation)


@pytest.mark.parametrize(("name", "least"), [("nature_cnn", 36), ("nips_cnn", 20)])
def test_cnn_rejects_frames_that_it_cannot_see(name: Any, least: int) -> None:
    for frame_shape in [(4,), (least - 1, 84), (3, 84, 84)]:
        spec = ATARI._replace(observation=ObservationSpec(frame_shape, "uint8", 4))
        with pytest.raises(ValueError, match=f"of two sizes >= {least} .* for network {name}"):
            build_network(AgentConfig(network=name), spec)


@pytest.mark.parametrize(("name", "least"), [("nature_cnn", 36), ("nips_cnn", 20)])
def test_cnn_takes_the_smallest_frames_and_any_that_are_not_square(name: Any, least: int) -> None:
    spec = ATARI._replace(observation=ObservationSpec((least, 100), "uint8", 2))
    network = build_network(AgentConfig(network=name), spec)
    assert network(torch.zeros(1, 2, least, 100, dtype=torch.uint8)).shape == (1, 6)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = (build_network(CNN, ATARI) for _ in range(3))
    initialise(first, seeded(5))
    initialise(second, seeded(5))
    initialise(other, seeded(6))
    assert np.array_equal(flatten_state(first), flatten_state(second))
    assert not np.array_equal(flatten_state(first), flatten_state(other))


def test_weights_are_uniform_within_one_over_the_root_of_the_fan_in() -> None:
    network = build_network(CNN, ATARI)
    head = head_of(network)
    assert head.hidden is not None
    bound = 3136**-0.5
    weight = head.hidden.weight.detach()
    assert weight.abs().max() <= bound
    # Standard deviation of a uniform variable; 3.2 million draws.
    torch.testing.assert_close(weight.std(), torch.tensor(bound / 3**0.5), rtol=0.01, atol=0.0)


def test_building_and_initialising_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    initialise(build_network(CNN, ATARI), seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_initialise_resets_batch_normalisation_and_its_statistics() -> None:
    network = batch_norm_network()
    network(torch.ones(2, 1, 3, 3))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked == 1
    initialise(network, seeded(0))
    assert norm.num_batches_tracked == 0
    assert norm.running_var is not None
    assert torch.equal(norm.running_var, torch.ones(3))


class Support(nn.Module):
    """Holds a buffer, as the support of a distribution is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("support", torch.linspace(-1.0, 1.0, 3))


class Drawn(Support):
    """Says how it is drawn."""

    def draw(self, generator: torch.Generator) -> None:
        self.support = torch.rand(3, generator=generator)


class Noisy(nn.Linear):
    """Holds more than a linear layer does."""


@pytest.mark.parametrize("layer", [Support(), Noisy(2, 2)])
def test_initialise_refuses_a_layer_that_may_hold_what_nobody_draws(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"Expect `0` to be .* actually: {type(layer).__name__}"):
        initialise(nn.Sequential(layer), seeded(0))


def test_a_layer_of_a_kind_of_its_own_is_drawn_as_it_says() -> None:
    network = nn.Sequential(Drawn())
    initialise(network, seeded(5))
    (support,) = network.buffers()
    assert torch.equal(support, torch.rand(3, generator=seeded(5)))


def test_initialise_refuses_layers_that_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="Expect `0` to be .* actually: PReLU"):
        initialise(nn.Sequential(nn.PReLU()), seeded(0))


@pytest.mark.parametrize(("agent", "spec"), [(CNN, ATARI), (MLP, CARTPOLE)])
def test_flat_state_round_trip_is_exact(agent: AgentConfig, spec: EnvironmentSpec) -> None:
    network, copy = build_network(agent, spec), build_network(agent, spec)
    initialise(network, seeded(9))
    buffer = flatten_state(network)
    assert buffer.dtype == np.uint8
    assert buffer.nbytes == 4 * sum(p.numel() for p in network.parameters())
    load_flat_state(copy, buffer)
    for ours, theirs in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_flat_state_carries_the_buffers_of_batch_normalisation() -> None:
    network, copy = batch_norm_network(), batch_norm_network()
    for _ in range(3):
        network(torch.randn(4, 1, 5, 5, generator=seeded(1)))
    load_flat_state(copy, flatten_state(network))
    ours, theirs = network.state_dict(), copy.state_dict()
    assert any("running_mean" in name for name in ours)
    assert theirs["1.num_batches_tracked"] == 3
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_actor_of_a_pixel_cnn_acts_on_the_learners_statistics() -> None:
    """Weights alone would not do: without the buffers the same weights give other values."""
    learner, actor = build_network(PIXEL_CNN, CART), build_network(PIXEL_CNN, CART)
    initialise(learner, seeded(9))
    learner.train()
    pixels = torch.randint(0, 256, (16, 2, 40, 90), dtype=torch.uint8, generator=seeded(1))
    for _ in range(5):
        learner(pixels)
    learner.eval()
    for ours, theirs in zip(learner.parameters(), actor.parameters(), strict=True):
        theirs.data.copy_(ours)
    assert not torch.allclose(actor(pixels), learner(pixels))
    load_flat_state(actor, flatten_state(learner))
    assert torch.equal(actor(pixels), learner(pixels))


def test_flat_state_does_not_depend_on_the_memory_layout() -> None:
    network = batch_norm_network()
    before = flatten_state(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert np.array_equal(flatten_state(network), before)


def test_flat_state_is_a_copy_in_both_directions() -> None:
    network = build_network(MLP, CARTPOLE)
    head = head_of(network)
    buffer = flatten_state(network)
    kept = buffer.copy()
    assert head.hidden is not None
    with torch.no_grad():
        head.hidden.weight.add_(1.0)
    assert np.array_equal(buffer, kept)
    load_flat_state(network, buffer)
    buffer[:] = 0
    assert np.array_equal(flatten_state(network), kept)


def test_read_only_buffers_are_accepted() -> None:
    network = build_network(MLP, CARTPOLE)
    buffer = flatten_state(network)
    buffer.flags.writeable = False  # as Ray hands them over
    load_flat_state(network, buffer)


def test_loading_a_buffer_of_another_length_is_rejected_and_changes_nothing() -> None:
    network = build_network(MLP, CARTPOLE)
    before = flatten_state(network)
    wrongs: list[Any] = [before[:-1], np.append(before, np.uint8(0)), before.view(np.float32)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=rf"Expect `buffer` uint8\[{len(before)}\]"):
            load_flat_state(network, wrong)
    assert np.array_equal(flatten_state(network), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flat_state_travels_between_devices() -> None:
    network, there = build_network(CNN, ATARI), build_network(CNN, ATARI).cuda()
    initialise(network, seeded(4))
    load_flat_state(there, flatten_state(network))
    assert np.array_equal(flatten_state(there), flatten_state(network))
