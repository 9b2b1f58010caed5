"""Gradients of losses of whole sequences in an analysis, against their formulas over plain forward passes."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from spo_core.analysis.candidates import Candidate
from spo_core.analysis.measure import read_credited
from spo_core.analysis.sketch import sketch
from spo_core.policy.checkpoint import load_policy, save_policy
from tests.analysis.laboratory import SHAPES, measured
from tests.learn.test_gradient import TEMPERATURE, flat, logprobs


def preferred(ratios, values, tree, loss) -> list[torch.Tensor]:
    """DPO-positive of every pair of siblings one of which is better by the margin. The penalty's slope is half at 0."""
    found = []
    for below in tree.children:
        for a in below:
            for b in below:
                if values[a] - values[b] >= loss.margin - 1e-9:
                    lost = (ratios[a].abs() - ratios[a]) / 2 if float(ratios[a].detach()) else -ratios[a] / 2
                    margin = ratios[a] - ratios[b] - loss.penalty * lost
                    found.append(-torch.nn.functional.logsigmoid(loss.beta * margin))
    return found


def drawn(ratios, advantages, loss) -> list[torch.Tensor]:
    """DVO of every segment; sampled by the present policy, so that all weights are 1."""
    return [(loss.beta * ratios[i] - float(own[0])) ** 2 / 2 for i, own in enumerate(advantages) if i]


@pytest.mark.parametrize("other", [False, True], ids=["at the reference", "beside it"])
@pytest.mark.parametrize(("name", "override"), [("pairs", "learn.loss.pairs"), ("sequences", None)])
def test_a_sketch_is_that_of_the_summed_losses(name, override, other, paths, tmp_path, tokenizer):
    params = SHAPES[name]
    rollout = params.rollout.model_copy(update={"temperature": TEMPERATURE})
    loss = params.learn.loss.model_copy(update={"pairs": None} if override else {})
    params = params.model_copy(update={"rollout": rollout, "learn": params.learn.model_copy(update={"loss": loss})})
    policy = load_policy(paths.checkpoint("warmup"))[0].eval()
    reference, first = policy, None
    if other:
        reference, first = copy.deepcopy(policy), tmp_path / "first"
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.mul_(1.1)
        save_policy(reference, tokenizer, first)
    one = Candidate(name, params)
    (folder,) = measured(paths, tmp_path / "a", one, tokens=1, first=first)
    vectors = torch.from_numpy(load_file(folder / "00001" / "gradients.safetensors")["vectors"].numpy())
    assert vectors.any()
    for (tree, credit), vector in zip(read_credited(one, folder)[:4], vectors, strict=True):
        policy.zero_grad()
        ratios = [torch.zeros(())]
        for i in range(1, len(tree.nodes)):
            own = logprobs(policy, tree, i).double().sum()
            with torch.no_grad():
                ratios.append(own - (logprobs(reference, tree, i).double().sum() if other else own.detach()))
            ratios[-1] = own - (own.detach() - ratios[-1])
        if name == "pairs":
            losses = preferred(ratios, credit.values, tree, loss)
        else:
            losses = drawn(ratios, credit.advantages, loss)
        if losses:
            sum(losses).backward()
        gradient = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.parameters()]
        expected = sketch([flat(gradient)], params.run.seed)
        torch.testing.assert_close(vector, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-7)
