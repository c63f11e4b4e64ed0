"""CartPole by proximal policy optimisation (PPO, arXiv:1707.06347): balance a pole on a cart for 500 steps.

    python -m zoo.train_cartpole

Ends when the last 100 episodes have lasted 475 steps on average, which counts as solved: under a minute on two cores.
"""

import argparse
import contextlib
from typing import NamedTuple

import numpy as np

import tensorlib
from tensorlib import autograd, nn, optim, train

SOLVED, LONGEST = 475.0, 500


class CartPole:
    """`n` carts with poles (Barto, Sutton and Anderson, 1983): state (x, v, angle, angular velocity), two actions."""

    GRAVITY, CART, POLE, HALF, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    FAR, STEEP = 2.4, 12 * np.pi / 180  # where an episode ends

    def __init__(self, n):
        self.state, self.age = _start(n), np.zeros(n)
        self.lengths = []  # of the last 100 episodes

    def step(self, action):
        """One step of 0.02 s by `action` [N], 0 pushes to the left and 1 to the right: (fallen [N], over [N]), bools.

        Episodes that are over, fallen or after 500 steps, begin anew.
        """
        v, angle, turn = self.state.T[1:]
        sin, cos, mass = np.sin(angle), np.cos(angle), self.CART + self.POLE
        force = (np.where(action, self.FORCE, -self.FORCE) + self.POLE * self.HALF * turn**2 * sin) / mass
        bend = (self.GRAVITY * sin - cos * force) / (self.HALF * (4 / 3 - self.POLE * cos**2 / mass))
        push = force - self.POLE * self.HALF * bend * cos / mass
        change = np.stack([v, push, turn, bend], 1)
        self.state, self.age = self.state + self.DT * change, self.age + 1
        fallen = (abs(self.state[:, 0]) > self.FAR) | (abs(self.state[:, 2]) > self.STEEP)
        over = fallen | (self.age >= LONGEST)
        if over.any():
            self.lengths = [*self.lengths, *self.age[over].tolist()][-100:]
            self.state = np.where(over[:, None], _start(len(over)), self.state)
            self.age = np.where(over, 0, self.age)
        return fallen, over

    def state_dict(self):
        """All there is to go on from."""
        return {"state": tensorlib.from_numpy(self.state), "age": self.age.tolist(), "lengths": self.lengths}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        self.state, self.age = state["state"].numpy().copy(), np.array(state["age"])
        self.lengths = state["lengths"]


def _start(n):
    return tensorlib.rand(n, 4).numpy().astype("f8") * 0.1 - 0.05  # by the generator that checkpoints keep


class ActorCritic(nn.Module):
    """Two tanh networks side by side: states [N, 4] -> logits of the actions [N, 2] and values [N]."""

    def __init__(self, width=64):
        def network(out):
            layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out)
            return nn.Sequential(*layers)

        self.actor, self.critic = network(2), network(1)
        for net, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            for layer in net:
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, gain if layer is net[-1] else 2**0.5)
                    nn.init.zeros_(layer.bias)

    def forward(self, state_N4):
        return self.actor(state_N4), self.critic(state_N4).squeeze(-1)


class Batch(NamedTuple):
    """What a policy did: states [N, 4], actions [N], their log-probabilities, advantages and returns [N]."""

    states: object
    actions: object
    log_probs: object
    advantages: object
    returns: object


@tensorlib.no_grad()
def play(model, carts, steps, discount=0.99, smooth=0.95):
    """A Batch of `steps` steps of all carts by the model, advantages by GAE (arXiv:1506.02438)."""
    seen = []
    for _ in range(steps):
        states = carts.state.astype("f4")
        logits, values = model(tensorlib.from_numpy(states))
        actions = tensorlib.multinomial(logits.softmax(-1), 1)
        log_probs = logits.log_softmax(-1).gather(1, actions).squeeze(1)
        actions = actions.squeeze(1).numpy()
        fallen, over = carts.step(actions)
        seen.append((states, actions, log_probs.numpy(), values.numpy(), fallen, over))
    states, actions, log_probs, values, fallen, over = (np.stack(part) for part in zip(*seen))
    after = model(tensorlib.from_numpy(carts.state.astype("f4")))[1].numpy()
    advantages, ahead = np.zeros_like(values), np.zeros_like(after)
    for t in reversed(range(steps)):
        # one that was cut at 500 steps had not fallen: its own value stands for what would have followed
        after = np.where(fallen[t], 0.0, np.where(over[t], values[t], after))
        ahead = 1.0 + discount * after - values[t] + np.where(over[t], 0.0, discount * smooth * ahead)
        advantages[t], after = ahead, values[t]
    parts = (states.reshape(-1, 4), *(part.reshape(-1) for part in (actions, log_probs, advantages)))
    return Batch(*map(tensorlib.from_numpy, (*parts, (advantages + values).reshape(-1))))


def loss_of(model, batch, clip=0.2, entropy=0.01):
    """PPO's clipped surrogate, half the squared error of the values, less `entropy` times the policy's entropy."""
    logits, values = model(batch.states)
    log_probs = logits.log_softmax(-1)
    ratio = (log_probs.gather(1, batch.actions.unsqueeze(1)).squeeze(1) - batch.log_probs).exp()
    a = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    gain = tensorlib.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean()
    spread = -(log_probs.exp() * log_probs).sum(-1).mean()
    return 0.5 * tensorlib.mse_loss(values, batch.returns) - gain - entropy * spread


def fit(
    model, rounds=150, lr=2.5e-3, seed=0, checkpoints=None, show=None, carts=16, steps=64, epochs=6, size=256,
    record=None,
):  # fmt: skip
    """Rounds of playing, each followed by `epochs` passes over what was seen; returns the losses. Ends early when it is
    solved. Goes on from the last checkpoint, if there is one; `record`, a list, gets every batch.
    """
    tensorlib.manual_seed(seed)
    optimizer, carts = optim.Adam(model.parameters(), lr=lr, eps=1e-5), CartPole(carts)
    schedule = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, rounds)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "carts": carts}
    first = (checkpoints.load(**objects) or 0) if checkpoints else 0
    progress, losses = train.Progress(rounds, first, label=type(model).__name__, show=show), []
    for step in progress:
        seen = play(model, carts, steps)
        for _ in range(epochs):
            order = tensorlib.randperm(len(seen.states))
            for at in order.split(size):
                batch = Batch(*(part.index_select(0, at) for part in seen))
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                losses.append(loss.item())
                if record is not None:
                    record.append(batch)
        schedule.step()
        progress.log(length=mean_length(carts), loss=losses[-1])
        solved = len(carts.lengths) == 100 and mean_length(carts) >= SOLVED
        if checkpoints and ((step + 1) % 10 == 0 or solved or step + 1 == rounds):
            checkpoints.save(step + 1, **objects)
        if solved:
            break
    return losses


def mean_length(carts):
    """The mean length of the last 100 episodes; 0 before one was over."""
    return sum(carts.lengths) / max(1, len(carts.lengths))


@tensorlib.no_grad()
def judge(model, carts=100, seed=1):
    """The mean length of first episodes of `carts` carts, the likelier action always."""
    tensorlib.manual_seed(seed)
    world, length = CartPole(carts), np.zeros(carts)
    for _ in range(LONGEST):
        action = model(tensorlib.from_numpy(world.state.astype("f4")))[0].argmax(-1).numpy()
        age, over = world.age + 1, world.step(action)[1]
        length = np.where(over & (length == 0), age, length)
    return length.mean()


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m zoo.train_cartpole", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=150, help="of 16 x 64 steps, at most")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", metavar="FOLDER", help="save there every 10 rounds, and go on from there")
    parser.add_argument("--detect-anomaly", action="store_true", help="name the op that gives the first NaN; slow")
    args = parser.parse_args(arguments)
    tensorlib.manual_seed(args.seed)
    model = ActorCritic()
    checkpoints = train.Checkpoints(args.checkpoints) if args.checkpoints else None
    with autograd.detect_anomaly() if args.detect_anomaly else contextlib.nullcontext():
        fit(model, args.rounds, args.lr, args.seed, checkpoints)
    print(f"{judge(model):.1f} of {LONGEST} steps, the mean of 100 episodes")


if __name__ == "__main__":
    main()
