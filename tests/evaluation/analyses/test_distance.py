import math

import torch

from renege_ray.evaluation.analyses.distance import token_distances


def test_known_distances() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [0.0, -2.0], [3.0, 4.0]])
    distance, cosine = token_distances(a, b)
    torch.testing.assert_close(distance, torch.tensor([5.0, math.sqrt(5), 5.0], dtype=torch.float64))
    assert cosine[:2].tolist() == [1.0, 0.0] and cosine[2].isnan()
