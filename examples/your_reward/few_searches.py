"""A reward of your own: the fewer searches a right answer took, the more it earns.

cd examples/your_reward
bash ../../recipes/train_musique.sh \\
    'research.reward={exact_match: 1.0, "few_searches:score": {weight: 0.2, most: 6}}'
"""

from research.episode.protocol import extract_answer
from research.episode.trajectory import Trajectory
from research.metrics.answers import exact_match
from research.rewards import Reference, Reward


def score(trajectory: Trajectory, reference: Reference, most: int = 8) -> Reward:
    """From 1 for a right answer without a search down to 0 for `most` searches; a wrong answer earns 0."""
    answer = extract_answer(trajectory.model_turns, reference.protocol)
    if not answer or not exact_match(answer, reference.golden_answers):
        return Reward(0.0, "not right", {"searches_saved": 0.0})
    saved = max(0, most - len(trajectory.searches))
    return Reward(saved / most, f"{len(trajectory.searches)} searches", {"searches_saved": float(saved)})
