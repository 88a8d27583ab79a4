"""Floor of the learner step: what plain PyTorch reaches, without any of this project's code.

A compiled, channels-last, double-DQN step of the dueling Nature CNN with fused Adam, on tensors
that are already in place: no replay, no importance weights, no clipping, no copies. Run it as a
script: it prints samples/s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DuelingNatureCnn(nn.Module):
    """The usual one, as one would write it down."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.torso = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.value = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 1))
        self.advantage = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions))

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.torso(pixels.float() / 255.0)
        value, advantage = self.value(features), self.advantage(features)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


def compiled_step_rate(batch_size: int, num_actions: int, seconds: float) -> float:
    """Return samples per second after warm-up, on the CUDA device if there is one."""
    step, synchronize = make_step(batch_size, num_actions)
    for _ in range(3):
        step()
    synchronize()
    steps = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        synchronize()
        steps += 1
    return steps * batch_size / elapsed


def make_step(
    batch_size: int, num_actions: int, precision: str = "float32"
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that takes one step and one that waits for it, to measure them in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last
    online, target = (DuelingNatureCnn(num_actions).to(device) for _ in range(2))
    for network in (online, target):
        network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-4, fused=True)

    def pixels() -> Tensor:
        shape = (batch_size, 4, 84, 84)
        drawn = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return drawn.contiguous(memory_format=layout)

    s_tm1, s_t = pixels(), pixels()
    a_tm1 = torch.randint(0, num_actions, (batch_size, 1), device=device)
    r_t = torch.randn(batch_size, device=device)
    discount_t = torch.full((batch_size,), 0.97, device=device)

    def values(network: nn.Module, pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            q: Tensor = network(pixels)
        return q.float()

    @torch.compile
    def loss_of() -> Tensor:
        with torch.no_grad():
            a_t = values(online, s_t).argmax(dim=1, keepdim=True)
            goal = r_t + discount_t * values(target, s_t).gather(1, a_t).squeeze(1)
        return F.huber_loss(values(online, s_tm1).gather(1, a_tm1).squeeze(1), goal)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, synchronize


def main() -> None:
    """Print the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--num-actions", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    rate = compiled_step_rate(arguments.batch_size, arguments.num_actions, arguments.seconds)
    print(f"{rate:.0f} samples/s, batch {arguments.batch_size}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
