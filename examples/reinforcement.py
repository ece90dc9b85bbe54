"""Half of a recurrent policy trained by reinforcement learning: `RecurrentPPO` of `sb3-contrib`, without a reward.

    pip install -e '.[examples]'
    python -m examples.reinforcement

The task is gymnasium's cart and pole, of which the policy is shown positions and no velocities, so that it must
remember; 500 is the most that an episode returns. The policy is trained first (some minutes). What stays of its LSTM
and of the layer after it is chosen, repaired and taught by what the dense policy does in some episodes of its own; then
it goes back into the agent, and stable-baselines3 itself judges it, in episodes that all policies begin alike.
"""

import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from examples.halving import halved
from examples.shown import Shown, options

NOTHING = -100
"""The target after an episode's end, which does not count."""


class Positions(gymnasium.ObservationWrapper):
    """The cart and the pole without their velocities."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        low, high = self.env.observation_space.low, self.env.observation_space.high
        self.observation_space = gymnasium.spaces.Box(low[[0, 2]], high[[0, 2]])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return what is shown: where the cart is, and how far the pole leans."""
        return observation[[0, 2]]


class Actor(nn.Module):
    """What chooses the actions in `RecurrentActorCriticPolicy`, without what only its training needs."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.lstm, self.policy_net = policy.lstm_actor, policy.mlp_extractor.policy_net
        self.action_net = policy.action_net

    def forward(self, shown: Tensor) -> Tensor:
        """Return the logits of the actions at each step, (episodes, steps, 2), from what is shown until then."""
        outputs, _ = self.lstm(shown.transpose(0, 1))
        return self.action_net(self.policy_net(outputs)).transpose(0, 1)

    def act_in(self, policy: Any) -> None:
        """Take the places of these modules in a policy."""
        policy.lstm_actor, policy.mlp_extractor.policy_net = self.lstm, self.policy_net
        policy.action_net = self.action_net


def agent_of(steps: int) -> RecurrentPPO:
    """Return an agent trained for so many steps, with the settings that RL Baselines3 Zoo has for this task."""
    several = DummyVecEnv([Positions for _ in range(8)])
    kinds = {
        "ortho_init": False,
        "activation_fn": nn.ReLU,
        "lstm_hidden_size": 64,
        "net_arch": {"pi": [64], "vf": [64]},
    }
    agent = RecurrentPPO(
        "MlpLstmPolicy", several, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
        learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, policy_kwargs=kinds,
        seed=1, device="cpu",
    )  # fmt: skip
    return agent.learn(steps)


def episodes(agent: RecurrentPPO, count: int, *, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return what the agent was shown, (16, 500, 2), and what it drew to do, (16, 500), in episodes by sixteen."""
    several, batches = DummyVecEnv([Positions for _ in range(16)]), []
    several.seed(seed)
    for _ in range(0, count, 16):
        shown, done, state, going, now = [], [], None, np.ones(16, bool), several.reset()
        for _ in range(500):
            actions, state = agent.predict(now, state=state)
            shown.append(now)
            done.append(np.where(going, actions, NOTHING))
            now, _, ended, _ = several.step(actions)
            going &= ~ended
        batches.append((torch.from_numpy(np.stack(shown, 1)), torch.from_numpy(np.stack(done, 1))))
    return batches


def main(words: Sequence[str]) -> Shown:
    """Train, prune and show what each step keeps."""
    asked = options(__doc__).parse_args(words)
    agent = agent_of(1000 if asked.quick else 100_000)
    judges = DummyVecEnv([Positions for _ in range(2 if asked.quick else 32)])

    def returned(actor: nn.Module) -> float:
        actor.act_in(agent.policy)  # type: ignore[operator]
        judges.seed(100)
        return float(evaluate_policy(agent, judges, judges.num_envs, warn=False)[0])

    network = Actor(agent.policy).eval()
    batches = episodes(agent, 32 if asked.quick else 64, seed=1)
    shown = Shown(f"Cart and pole, {judges.num_envs} episodes to judge", {"return": returned})
    shown.row("dense", network)
    for name, smaller in halved(network, batches, nn.CrossEntropyLoss(), keep=asked.keep, epochs=5):
        shown.row(name, smaller)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
