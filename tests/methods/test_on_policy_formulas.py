"""Each method as its recipe builds it, against the formula of its publication: loss and gradient, from full logits.

The step is put together by the code that trains: mixture, window, policy, objective. The formulas below know nothing of
it: they read plain texts one by one. p is the teacher, q the student.

Shape legend: T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from formula_window import Scene, Text, logs, of_answer
from torch import Tensor

from lmdistill.methods import METHODS
from lmdistill.recipe import resolve_recipe

Formula = Callable[[Scene, Sequence[Text]], Tensor]
PROGRESS = 0.25


# -- distances, written out -------------------------------------------------------------------------------------------


def kl(a_TV: Tensor, b_TV: Tensor) -> Tensor:
    """KL(a‖b) of log-probabilities, (T,)."""
    return (a_TV.exp() * (a_TV - b_TV)).sum(-1)


def mix(share: float, a_TV: Tensor, b_TV: Tensor) -> Tensor:
    """log(share a + (1 - share) b)."""
    return (share * a_TV.exp() + (1 - share) * b_TV.exp()).log()


def jsd(p_TV: Tensor, q_TV: Tensor, beta: float = 0.5) -> Tensor:
    """GKD's, (T,)."""
    m_TV = mix(beta, p_TV, q_TV)
    return beta * kl(p_TV, m_TV) + (1 - beta) * kl(q_TV, m_TV)


def tvd(p_TV: Tensor, q_TV: Tensor) -> Tensor:
    """Half the sum of absolute differences, (T,)."""
    return 0.5 * (p_TV.exp() - q_TV.exp()).abs().sum(-1)


def over_tokens(parts: Sequence[Tensor]) -> Tensor:
    """The mean over the tokens of all texts."""
    return torch.cat(list(parts)).mean()


def own(texts: Sequence[Text]) -> list[Text]:
    """Those of the student; never none, or a test would show nothing."""
    found = [text for text in texts if text.own]
    assert found
    return found


def rest(texts: Sequence[Text]) -> list[Text]:
    """The others."""
    found = [text for text in texts if not text.own]
    assert found
    return found


def now(q_T: Tensor) -> Tensor:
    """q / q_old where the student that writes is the one that learns: 1, with the gradient of log q."""
    return (q_T - q_T.detach()).exp()


# -- formulas ---------------------------------------------------------------------------------------------------------


def on(scene: Scene, text: Text, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A distance at each token of a text, (T,)."""
    return distance(logs(scene.main, text).detach(), logs(scene.student, text))


def everywhere(distance: Callable[[Tensor, Tensor], Tensor]) -> Formula:
    """One distance on all texts, whoever wrote them."""
    return lambda scene, texts: over_tokens([on(scene, text, distance) for text in texts])


def on_own(distance: Callable[[Tensor, Tensor], Tensor]) -> Formula:
    """One distance on texts of the student, of which there are no others."""

    def formula(scene: Scene, texts: Sequence[Text]) -> Tensor:
        assert len(own(texts)) == len(texts)
        return over_tokens([on(scene, text, distance) for text in texts])

    return formula


def gkd(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """2306.13649, section 3: JSD(0.5) on a mixture of the data set's and the student's text."""
    assert own(texts)
    assert all(text.answer == text.reference for text in rest(texts))
    return everywhere(jsd)(scene, texts)


def longest_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence, by definition."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


def gkd_with_reward(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """Section 3.1: less the reward; each expectation a mean over its tokens, as the method's page says."""
    distances = 0.5 * everywhere(jsd)(scene, own(texts)) + 0.5 * everywhere(jsd)(scene, rest(texts))
    rewards = []
    for text in own(texts):
        f1 = 2 * longest_common(text.answer, text.reference) / (len(text.answer) + len(text.reference))
        rewards.append(f1 * now(of_answer(logs(scene.student, text), text)))
    return distances - 0.7 * over_tokens(rewards)


def minillm(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """LMOps/minillm as released: ppo_loss with its single step, and pt_loss without the entropy of p."""
    advantages, ratios, singles = [], [], []
    for text in own(texts):
        p_TV, q_TV = logs(scene.main, text).detach(), logs(scene.student, text)
        p_T, q_T = of_answer(p_TV, text), of_answer(q_TV, text)
        rewards = ((p_T - text.written) / 0.5).clamp(-100, 100).tolist()
        count = len(rewards)
        returns = [sum(0.95 ** (k - t) * rewards[k] for k in range(t, count)) / (count - t) for t in range(count)]
        advantages.append(torch.tensor(returns, dtype=torch.float64))
        weight_T = text.written.exp() / (0.2 * p_T.exp() + 0.8 * text.written.exp())
        ratios.append((q_T - text.written).exp() * weight_T)
        singles.append(kl(q_TV, p_TV))
    a_T, r_T = torch.cat(advantages), torch.cat(ratios)
    a_T = (a_T - a_T.mean()) / a_T.var(correction=0).sqrt()
    clipped_T = r_T.clamp(0.8, 1.2)
    assert 0 < int((-a_T * clipped_T > -a_T * r_T).sum()) < len(r_T)
    long = torch.maximum(-a_T * r_T, -a_T * clipped_T).mean()
    fixed = []
    for text in rest(texts):
        q_TV = logs(scene.student, text)
        fixed.append(0.5 * -of_answer(q_TV, text) + 0.5 * kl(logs(scene.main, text).detach(), q_TV))
    return long + over_tokens(singles) + over_tokens(fixed)


def skew(p_TV: Tensor, q_TV: Tensor) -> Tensor:
    """DistiLLM 2402.03898, eq. 4, alpha 0.1."""
    return kl(p_TV, mix(0.1, p_TV, q_TV))


def distillm(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """The skew KL on whatever text it is."""
    assert own(texts)
    assert rest(texts)
    return everywhere(skew)(scene, texts)


def distillm2(published: bool) -> Formula:
    """2503.07067 and its code: see `lmdistill.objectives.contrastive`."""

    def formula(scene: Scene, texts: Sequence[Text]) -> Tensor:
        beta = 1 + 0.5 * min(1.0, 2 * PROGRESS) if published else 1.0
        sides = [(rest(texts), 1.0, 2 - beta), (own(texts), -1.0, beta)]
        loss, alphas = torch.zeros((), dtype=torch.float64), []
        for side, sign, weight in sides:
            read = [(text, logs(scene.main, text).detach(), logs(scene.student, text)) for text in side]
            gaps = [
                sign * (of_answer(p, text).mean().exp() - of_answer(q.detach(), text).mean().exp())
                for text, p, q in read
            ]
            typical = torch.stack(gaps).mean()
            for (_, p_TV, q_TV), gap in zip(read, gaps, strict=True):
                alpha = float((1 - 0.9 * typical / (gap + 1e-5)).clamp(0.01, 0.1)) if published else 0.1
                alphas.append(alpha)
                if sign > 0:
                    loss = loss + weight * kl(p_TV, mix(alpha, p_TV, q_TV)).mean()
                else:
                    loss = loss + weight * kl(q_TV, mix(alpha, q_TV.detach(), p_TV)).mean()
        assert (len({round(alpha, 6) for alpha in alphas}) > 2) == published
        return loss / len(own(texts))

    return formula


def both_samples(taught: Callable[[Tensor, Tensor], Tensor], own_text: Callable[[Tensor, Tensor], Tensor]) -> Formula:
    """f-distill: half on the teacher's samples, half on the student's (chat/kd.py, `_js_step`, `_tvd_symm_step`)."""

    def formula(scene: Scene, texts: Sequence[Text]) -> Tensor:
        assert len(own(texts)) == len(rest(texts))
        return 0.5 * everywhere(taught)(scene, rest(texts)) + 0.5 * everywhere(own_text)(scene, own(texts))

    return formula


def teachers_text(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """f-distill's KL: on text that the teacher wrote before training."""
    assert len(rest(texts)) == len(texts)
    return everywhere(kl)(scene, texts)


def sampled(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """Thinking Machines 2025: -E[A], A = log p - log q of the sampled token, through importance sampling."""
    parts = []
    for text in own(texts):
        p_T = of_answer(logs(scene.main, text).detach(), text)
        parts.append(-(p_T - text.written) * now(of_answer(logs(scene.student, text), text)))
    return over_tokens(parts)


def routed(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """MOPD 2606.30406: the same, by the teacher of each prompt."""
    parts = []
    assert {text.teacher for text in texts} == {"main", "other"}
    for text in own(texts):
        p_T = of_answer(logs({"main": scene.main, "other": scene.other}[text.teacher], text).detach(), text)
        parts.append(-(p_T - text.written) * now(of_answer(logs(scene.student, text), text)))
    return over_tokens(parts)


def several(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """DeepSeek-V4: sum_i w_i KL(q‖p_i); its -log Z is no part of the loss that is shown."""
    parts = []
    for text in own(texts):
        q_TV = logs(scene.student, text)
        one_TV, two_TV = (logs(model, text).detach() for model in (scene.main, scene.other))
        log_z_T = (0.75 * one_TV + 0.25 * two_TV).logsumexp(-1)
        parts.append(0.75 * kl(q_TV, one_TV) + 0.25 * kl(q_TV, two_TV) + log_z_T)
    return over_tokens(parts)


def score(text: Text) -> float:
    """A discriminator that anyone can follow."""
    return float(sum(text.answer) % 7) / 3


def gad(scene: Scene, texts: Sequence[Text]) -> Tensor:
    """2511.10643: GRPO on the discriminator's score of each answer, among the answers to one prompt."""
    parts = []
    for text in own(texts):
        scores = torch.tensor([score(other) for other in own(texts) if other.group == text.group])
        assert len(scores) == 3
        advantage = float((score(text) - scores.mean()) / (scores.std() + 1e-6))
        ratio_T = now(of_answer(logs(scene.student, text), text))
        parts.append(torch.maximum(-advantage * ratio_T, -advantage * ratio_T.clamp(0.8, 1.2)))
    assert torch.cat(parts).abs().max() > 0.5
    return over_tokens(parts)


def preferred(reference: Callable[[Scene], Any]) -> Formula:
    """DPO 2305.18290, eq. 7, with one or the other reference."""

    def formula(scene: Scene, texts: Sequence[Text]) -> Tensor:
        leads, old = [], reference(scene)
        for text in own(texts):
            (chosen,) = [other for other in rest(texts) if other.group == text.group]
            sides = [
                (of_answer(logs(scene.student, each), each) - of_answer(logs(old, each).detach(), each)).sum()
                for each in (chosen, text)
            ]
            leads.append(-torch.nn.functional.logsigmoid(0.1 * (sides[0] - sides[1])))
        return torch.stack(leads).mean()

    return formula


def privileged(
    distance: Callable[[Tensor, Tensor], Tensor], teacher: Callable[[Scene], Any], own_text: bool = True
) -> Formula:
    """A teacher that reads the context in place of the prompt, on the student's text or the data set's."""

    def formula(scene: Scene, texts: Sequence[Text]) -> Tensor:
        chosen = own(texts) if own_text else rest(texts)
        assert len(chosen) == len(texts)
        assert all(text.context for text in texts)
        return over_tokens(
            [
                distance(logs(teacher(scene), text, privileged=True).detach(), logs(scene.student, text))
                for text in texts
            ]
        )

    return formula


def reverse(p_TV: Tensor, q_TV: Tensor) -> Tensor:
    """KL(q‖p)."""
    return kl(q_TV, p_TV)


# -- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method, what its recipe says besides, and its formula."""

    method: str
    formula: Formula
    overrides: tuple[str, ...] = ()
    scene: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def make(self) -> Scene:
        values: dict[str, Any] = {
            "method": self.method,
            "teacher": {"model": "t"},
            "data": {"train": [{"path": "d", "fields": {"context": "c", "teacher": "t"}}]},
        }
        if METHODS[self.method].fragment.get("teaching", {}).get("kind") in ("routed", "mixed"):
            values["teaching"] = {"models": {"other": {"model": "o"}}}
        return Scene(resolve_recipe(values, list(self.overrides)), **self.scene)


REWARD = ("objective.policy={weight: 0.7, kind: reward, reward: {kind: rouge_l}}", "objective.divergence.weight=0.5")
RELEASED = ("objective.contrastive.published=false",)
HALF = 0.5
CASES = [
    Case("gkd", gkd),
    Case("gkd", gkd_with_reward, REWARD, name="gkd with a reward"),
    Case("minillm", minillm, scene={"writer_noise": 0.1}),
    Case("distillm", distillm, ("trajectories.mixture.replay.start=0.5",)),
    Case("distillm2", distillm2(published=True)),
    Case("distillm2", distillm2(published=False), RELEASED, name="distillm2 as released"),
    Case("f_distill_kl", teachers_text),
    Case("f_distill_rkl", on_own(reverse)),
    Case(
        "f_distill_js",
        both_samples(lambda p, q: kl(p, mix(HALF, p, q)), lambda p, q: kl(q, mix(HALF, p, q))),
    ),
    Case("f_distill_tvd", both_samples(tvd, tvd)),
    Case("opd_sampled", sampled),
    Case("opd_full", on_own(reverse)),
    Case("speculative_kd", on_own(kl)),
    Case("shortopd", on_own(jsd)),
    Case("gad", gad, ("objective.policy.samples_per_prompt=3",), {"score": score}),
    Case("dpo_distill", preferred(lambda scene: scene.start)),
    Case("dpkd", preferred(lambda scene: scene.main)),
    Case("sdft", privileged(reverse, lambda scene: scene.average())),
    Case("sdpo", privileged(jsd, lambda scene: scene.average())),
    Case("opsd", privileged(jsd, lambda scene: scene.start)),
    Case("context_distillation", privileged(kl, lambda scene: scene.main, own_text=False)),
    Case("multi_teacher", routed),
    Case("teacher_mixture", several, ("teaching.weights={main: 3, other: 1}",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name or case.method)
def test_a_method_is_its_formula(case: Case) -> None:
    scene = case.make()
    loss, gradient, texts = scene.step(cut=2, progress=PROGRESS)
    expected = case.formula(scene, texts)
    true = torch.autograd.grad(expected, list(scene.student.parameters()))
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=2e-7)
    size = max(float(each.abs().max()) for each in true)
    assert size > 1e-3
    for made, wanted in zip(gradient, true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=0, atol=5e-6 * size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name or case.method)
def test_how_a_step_is_cut_changes_nothing(case: Case) -> None:
    whole, gradient, _ = case.make().step(cut=1)
    for cut in (3, 6):
        loss, parts, _ = case.make().step(cut=cut)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
        size = max(float(each.abs().max()) for each in gradient)
        for made, wanted in zip(parts, gradient, strict=True):
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6 * size)


def test_every_method_on_written_text_has_its_formula_here() -> None:
    written = {
        name
        for name, method in METHODS.items()
        if method.fragment.get("trajectories", {}).get("source") in ("student", "mixture")
    }
    # gold: test_cross_tokenizer_formulas.py; distillm_hints: DistiLLM's, and the hints in test_hint_set.py
    assert written - {"gold", "distillm_hints"} <= {case.method for case in CASES}
