import copy

import torch

from spo_core.learn.muon import Muon, orthogonalize


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((3, 40, 16), (2, 16, 40)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_three_steps_equal_torch_muon_to_bfloat16_precision():
    torch.manual_seed(0)
    ours = torch.nn.ModuleList([torch.nn.Linear(24, 24, bias=False), torch.nn.Linear(24, 40, bias=False)])
    theirs = copy.deepcopy(ours)
    a, b = Muon(ours.parameters(), lr=0.05), torch.optim.Muon(theirs.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in ours.parameters()]
        for model, optimizer in ((ours, a), (theirs, b)):
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (x - y).norm() < 0.02 * x.norm()
