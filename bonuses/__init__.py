"""Exploration bonuses, rewards that an agent makes itself; PPO and DQN use them unchanged.

A bonus is a frozen dataclass that jitted functions treat as constant. Its methods are pure:
`init` returns what it knows before the first step, `note` what it keeps of a step, `scenes_reached`
the scenes that must be known before `reward` pays for a rollout and learns from it.
"""
