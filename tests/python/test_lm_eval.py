"""The adapter for EleutherAI's lm_eval, on a task given from local files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import pywina

# No task here is fetched from anywhere.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from pywina.eval import runner  # noqa: E402
from pywina.eval.lm_eval_adapter import WinaLM  # noqa: E402

ANSWERS = [" She is at the sea.", " She is on the sea and all is well.", " Of the rain."]


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture
def lm(tiny_model: Path) -> WinaLM:
    adapter = WinaLM(tiny_model, sparsity=0.4, n_threads=1)
    yield adapter
    adapter.close()
    assert adapter.model.closed


def test_likelihoods(lm: WinaLM) -> None:
    context = "Where is the woman?"
    requests = [instance("loglikelihood", context, answer) for answer in ANSWERS]
    requests.append(instance("loglikelihood", "", "The sea"))
    together = lm.loglikelihood(requests, disable_tqdm=True)
    alone = [lm.loglikelihood([request], disable_tqdm=True)[0] for request in requests]
    assert together == alone and all(value < 0 for value, _ in together)


def test_long_texts_in_pieces(tiny_model: Path) -> None:
    text = "the woman at sea is seen " * 40
    with pywina.load(tiny_model, n_ctx=64, n_threads=1) as model:
        lm = WinaLM(model)
        (value,) = lm.loglikelihood_rolling([instance("r", text)], disable_tqdm=True)
        tokens = [model.info.bos_token, *model.tokenize(text)]
        wanted = 0.0
        for i in range(0, len(tokens) - 1, 64):
            piece = tokens[i : i + 65]
            logits = model.logits(piece[:-1]).astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            wanted += logs[np.arange(len(piece) - 1), piece[1:]].sum()
        assert value == pytest.approx(wanted, rel=1e-5)
        cut = lm.loglikelihood([instance("l", text, " there")], disable_tqdm=True)
        assert np.isfinite(cut[0][0])
        with pytest.raises(pywina.ArgumentError):
            lm.loglikelihood([instance("l", "a", text)], disable_tqdm=True)


def test_generations(lm: WinaLM) -> None:
    options = {"until": [], "max_gen_toks": 12}
    (text,) = lm.generate_until([instance("g", "the woman", options)], disable_tqdm=True)
    assert text == lm.model.generate("the woman", max_tokens=12, temperature=0.0, sparsity=0.4)
    stop = text[3:6]
    (cut,) = lm.generate_until(
        [instance("g", "the woman", options | {"until": [stop]})], disable_tqdm=True
    )
    assert cut == text[: text.index(stop)]


def test_a_task_from_local_files(lm: WinaLM, tmp_path: Path) -> None:
    """lm_eval's result equals that of pywina eval on the same questions."""
    (tmp_path / "arc").mkdir()
    docs = [
        {"question": f"Where is the woman at {i}?", "choices": [a.strip() for a in ANSWERS]}
        | {"gold": i % 3}
        for i in range(6)
    ]
    data = tmp_path / "arc" / "arc_easy_test.jsonl"
    data.write_text("\n".join(map(json.dumps, docs)))
    task = {
        "task": "local_arc",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)["results"]
    results = runner.Results.open(tmp_path / "r.json", {})
    rule = {"own": pywina.Sparsity(0.4)}
    runner.Evaluation(lm.model, tmp_path, results).run("arc_easy", rule, None, 1)
    ours = np.array(list(results.items["arc_easy"]["own"].values())).mean(axis=0)
    assert found["local_arc"]["acc,none"] == pytest.approx(ours[0])
    assert found["local_arc"]["acc_norm,none"] == pytest.approx(ours[1])
