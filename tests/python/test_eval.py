"""pywina eval: likelihoods against whole evaluations, scoring rules by hand, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pywina
from pywina.cli import main
from pywina.eval import runner, statistics, tasks, windows
from pywina.eval.scoring import common_prefix, likelihoods, split_tokens
from pywina.eval.summary import rows, split_rule

CONTEXT = "The rain in the garden was seen by the woman."
ANSWERS = (" She is at the sea.", " She is on the sea and all is well.", " Of the rain.")


@pytest.fixture
def model(tiny_model: Path) -> pywina.Model:
    with pywina.load(tiny_model, n_threads=1, n_batch=16) as loaded:
        yield loaded


def whole(model: pywina.Model, pair: tuple[list[int], list[int]], rule: pywina.Sparsity) -> float:
    """log p of a continuation, from one evaluation of everything."""
    ids = pair[0] + pair[1]
    logs = windows.log_softmax(model.logits(ids[:-1], sparsity=rule, dense_prefix=5))
    return sum(float(logs[i - 1, ids[i]]) for i in range(len(pair[0]), len(ids)))


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_sharing_a_prefix_changes_nothing(model: pywina.Model, sparsity: float) -> None:
    rule = pywina.Sparsity(sparsity)
    pairs = [split_tokens(model, CONTEXT, answer) for answer in ANSWERS]
    pairs.append(split_tokens(model, "The rain", " in the end."))
    for group in (pairs, pairs[:1], pairs[:3], [pairs[0], pairs[0]]):
        found = likelihoods(model, group, rule)
        wanted = [whole(model, pair, rule) for pair in group]
        np.testing.assert_allclose([one.log_p for one in found], wanted, rtol=1e-6)


def test_greedy_is_seen(model: pywina.Model) -> None:
    context = model.tokenize(CONTEXT)
    best = []
    for _ in range(4):
        best.append(int(model.logits(context + best)[-1].argmax()))
    worse = [*best[:-1], (best[-1] + 1) % 250]
    found = likelihoods(model, [(context, best), (context, worse)], pywina.Sparsity())
    assert [one.greedy for one in found] == [True, False]


def test_the_border_of_tokens(model: pywina.Model) -> None:
    first, second = split_tokens(model, "The rain ", "in the sea")
    assert first == model.tokenize("The rain")
    assert first + second == model.tokenize("The rain in the sea")
    first, second = split_tokens(model, "", "The sea")
    assert len(first) == 1 and second == model.tokenize("The sea")
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    with pytest.raises(pywina.ContextError):
        likelihoods(model, [([1] * 600, [2])], pywina.Sparsity())


# ---- tasks -----------------------------------------------------------------------------------


def test_real_data(data_dir: Path) -> None:
    counts = {"hellaswag": 10042, "piqa": 1838, "winogrande": 1267, "arc_easy": 2376}
    for task, n in counts.items():
        items = tasks.load_items(task, data_dir)
        assert len(items) == n
        assert all(0 <= item.gold < len(item.continuations) for item in items)
        assert all(text.startswith(" ") for item in items for text in item.continuations)
    questions = tasks.load_items("gsm8k", data_dir)
    assert len(questions) == 1319 - tasks.N_SHOT
    assert all(question.answer for question in questions)
    assert questions[0].answer == "18" and questions[0].prompt.count("Question:") == 5


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    goal = {"goal": "To rest", "sol1": "sleep", "sol2": "é"}
    (tmp_path / "piqa" / "valid.jsonl").write_text(json.dumps(goal))
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n")
    (item,) = tasks.load_items("piqa", tmp_path)
    assert item == tasks.Choice(("Question: To rest\nAnswer:",) * 2, (" sleep", " é"), (5, 2), 1)
    (tmp_path / "winogrande").mkdir()
    doc = {"sentence": "Ann asked Eve if _ was well.", "option1": "Ann", "option2": "Eve"}
    (tmp_path / "winogrande" / "dev.jsonl").write_text(json.dumps(doc | {"answer": "2"}))
    (item,) = tasks.load_items("winogrande", tmp_path)
    assert item.contexts == ("Ann asked Eve if Ann", "Ann asked Eve if Eve") and item.gold == 1
    assert item.continuations == (" was well.",) * 2
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(pywina.FormatError):
        tasks.load_items("piqa", tmp_path)
    with pytest.raises(pywina.FileError):
        tasks.load_items("hellaswag", tmp_path)


@pytest.mark.parametrize(
    ("text", "number"),
    [("so #### 18", "18"), ("#### -1,234.", "-1234"), ("#### 2.5 #### 3", "2.5"), ("18", None)],
)
def test_final_number(text: str, number: str | None) -> None:
    assert tasks.final_number(text) == number


# ---- statistics ------------------------------------------------------------------------------


def test_statistics() -> None:
    shares = statistics.mean([1, 1, 0, 1])
    assert shares.value == 0.75 and shares.error == pytest.approx(np.sqrt(0.75 * 0.25 / 3))
    pair = statistics.paired([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])
    assert pair.value == 1 and pair.error == pytest.approx(1 / np.sqrt(3))
    assert statistics.mcnemar([1, 1, 0], [1, 1, 0]) == 1
    ten, none = [1] * 10, [0] * 10
    assert statistics.mcnemar(ten, none) == pytest.approx(2 / 1024)
    assert statistics.mcnemar(ten[:5] + none[:5], none[:5] + ten[:5]) == 1
    assert statistics.mcnemar(ten[:1] + none[:4], none[:1] + ten[:4]) == pytest.approx(0.375)


def test_items_extend(tmp_path: Path) -> None:
    assert runner.choose(100, 7, 1) == runner.choose(100, 30, 1)[:7]
    assert sorted(runner.choose(50, None, 2)) == list(range(50))
    assert runner.choose(100, 7, 1) != runner.choose(100, 7, 2)
    assert split_rule("wina:budget=uniform 0.5") == ("wina:budget=uniform", 0.5)
    assert split_rule("dense") == ("dense", 0.0)


def test_rules() -> None:
    rules = runner.make_rules(["wina", "teal", "wina:mask=projection,exponent=1"], [0, 0.5])
    assert list(rules) == ["dense", "wina 0.5", "teal 0.5", "wina:mask=projection,exponent=1 0.5"]
    assert rules["wina:mask=projection,exponent=1 0.5"] == pywina.Sparsity(
        0.5, mask="projection", exponent=1.0
    )
    for wrong in ("wina:mask", "wina:depth=3", "wina:exponent=x", "wina:budget=all", "magic"):
        with pytest.raises(pywina.ArgumentError):
            runner.parse_rule(wrong, 0.5)


# ---- runs ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data folder with the real layout."""
    data = tmp_path / "data"
    for name in ("wikitext2", "arc", "gsm8k"):
        (data / name).mkdir(parents=True)
    words = "the in and there an of on a woman at sea is seen with all to rest".split()
    text = " ".join(np.random.default_rng(1).choice(words, 4000))
    (data / "wikitext2" / "wiki.test.raw").write_text(text)
    doc = {"question": "Where is the sea?", "choices": list(ANSWERS)}
    docs = [json.dumps(doc | {"gold": i % 3}) for i in range(6)]
    (data / "arc" / "arc_easy_test.jsonl").write_text("\n".join(docs))
    asked = [json.dumps({"question": f"What is {i}?", "answer": f"#### {i}"}) for i in range(7)]
    (data / "gsm8k" / "test.jsonl").write_text("\n".join(asked))
    return data


def test_a_whole_run(
    tiny_model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    arguments = ["eval", str(tiny_model), "--data", str(folder), "--json", str(out), "-t", "1"]
    arguments += ["--tasks", "wikitext2,arc_easy,gsm8k,generation", "--sparsity", "0,0.4,0.6"]
    assert main([*arguments, "--limit", "2"]) == 0
    content = json.loads(out.read_text())
    rules = ["dense", "wina 0.4", "teal 0.4", "wina 0.6", "teal 0.6"]
    assert all(list(by_rule) == rules for by_rule in content["items"].values())
    text = content["items"]["wikitext2"]
    for nll, kld, agreement in text["dense"].values():
        assert abs(kld) < 1e-6 and agreement == 1 and nll > 0
    means = [np.mean([v[1] for v in text[f"wina {s}"].values()]) for s in (0.4, 0.6)]
    assert 0 < means[0] < means[1]
    assert content["kept"]["wikitext2"]["wina 0.6"] == pytest.approx(0.4, abs=0.01)
    assert all(values == [1.0, 1.0] for values in content["items"]["generation"]["dense"].values())
    shown = capsys.readouterr().out
    assert "| arc_easy | wina 0.4 | acc_norm |" in shown and "teal 0.4" in shown

    assert main([*arguments, "--limit", "1", "--method", "cats"]) == 0
    assert "left out: cats 0.6" in capsys.readouterr().err
    assert list(json.loads(out.read_text())["items"]["arc_easy"])[-1] == "cats 0.4"

    # More items: what was there stays, and is not measured again.
    spoiled = json.loads(out.read_text())
    kept = next(iter(spoiled["items"]["arc_easy"]["dense"]))
    spoiled["items"]["arc_easy"]["dense"][kept] = [0.5, 0.25]
    out.write_text(json.dumps(spoiled))
    assert main([*arguments, "--limit", "3"]) == 0
    again = json.loads(out.read_text())["items"]["arc_easy"]["dense"]
    assert again[kept] == [0.5, 0.25] and len(again) == 3
    assert main([*arguments, "--seed", "2"]) == 2
    assert "another evaluation" in capsys.readouterr().err


def test_scores_by_hand(model: pywina.Model, folder: Path, tmp_path: Path) -> None:
    results = runner.Results.open(tmp_path / "r.json", {})
    evaluation = runner.Evaluation(model, folder, results)
    rules = {"dense": pywina.Sparsity(), "teal 0.5": pywina.Sparsity(0.5, "teal")}
    evaluation.run("arc_easy", rules, None, 1)
    for name, rule in rules.items():
        pairs = [
            split_tokens(model, "Question: Where is the sea?\nAnswer:", " " + answer)
            for answer in ANSWERS
        ]
        logs = np.array([whole(model, pair, rule) for pair in pairs])
        best, normed = logs.argmax(), (logs / [len(a) for a in ANSWERS]).argmax()
        for number, values in results.items["arc_easy"][name].items():
            assert values == [float(best == int(number) % 3), float(normed == int(number) % 3)]
    shown = {(row.rule, row.metric): row for row in rows(results)}
    assert shown["dense", "acc"].mean.value == pytest.approx(1 / 3)
    assert shown["dense", "acc"].difference is None
    assert shown["teal 0.5", "acc"].against == "dense"


def test_interrupted_runs_keep_what_they_have(
    model: pywina.Model, folder: Path, tmp_path: Path
) -> None:
    results = runner.Results.open(tmp_path / "r.json", {"a": 1})
    evaluation = runner.Evaluation(model, folder, results)
    calls = []

    def stop(rule: str) -> None:
        calls.append(rule)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.run("arc_easy", runner.make_rules(["wina"], [0.5]), None, 1, stop)
    resumed = runner.Results.open(tmp_path / "r.json", {"a": 1})
    assert sum(len(items) for items in resumed.items["arc_easy"].values()) == 3
    with pytest.raises(pywina.ArgumentError, match="another evaluation"):
        runner.Results.open(tmp_path / "r.json", {"a": 2})
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(pywina.ArgumentError, match="cannot be resumed"):
        runner.Results.open(tmp_path / "r.json", {"a": 1})


def test_perplexity_is_that_of_the_program(
    smollm2_path: Path, data_dir: Path, wina_bin: Path
) -> None:
    """One window of the test text, sparse, against `wina perplexity`."""
    import subprocess

    with pywina.load(smollm2_path, n_threads=1) as real:
        window = windows.cut_windows(real, tasks.test_text(data_dir), 512, 1)[0]
        scorer = windows.Scorer()
        dense = scorer.logs(real, window, pywina.Sparsity(), first=256)
        own = scorer.logs(real, window, pywina.Sparsity(0.4), first=256)
        ours = scorer.score(real, window, own, dense, first=256)
    command = [wina_bin, "perplexity", "-m", smollm2_path, "--chunks", 1, "--json", "-t", 1]
    command += ["-f", data_dir / "wikitext2" / "wiki.test.raw", "--sparsity", 0.4]
    done = subprocess.run([*map(str, command)], capture_output=True, check=True)
    wanted = json.loads(done.stdout)
    assert ours.nll == pytest.approx(wanted["nll_per_window"][0], abs=2e-4)
    assert ours.kld == pytest.approx(wanted["kld"], abs=2e-4)


def test_wrong_arguments(
    tiny_model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("PYWINA_DATA", raising=False)
    base = ["eval", str(tiny_model), "--json", str(tmp_path / "r.json")]
    for extra, message in (
        ([], "--data"),
        (["--data", str(folder), "--tasks", "chess"], "chess"),
        (["--data", str(folder), "--sparsity", "half"], "no list"),
        (["--data", str(folder), "--sparsity", "1.5"], "0 <= sparsity < 1"),
        (["--data", str(folder), "--method", "magic"], "magic"),
        (["--data", str(folder), "--limit", "0"], "--limit"),
    ):
        assert main([*base, *extra]) == 2
        assert message in capsys.readouterr().err


def test_a_text_that_is_too_short(model: pywina.Model) -> None:
    with pytest.raises(pywina.ArgumentError, match="one window needs"):
        windows.cut_windows(model, "the sea", 64)


def test_windows_begin_with_bos(write_model: Callable[..., Path]) -> None:
    with pywina.load(write_model(add_bos=True), n_threads=1) as with_bos:
        cut = windows.cut_windows(with_bos, CONTEXT * 20, 64)
        assert len(cut) > 2 and all(window[0] == with_bos.info.bos_token for window in cut)
        assert all(len(window) == 64 for window in cut)


def test_shards_together_are_the_whole(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    base = ["eval", str(tiny_model), "--tasks", "arc_easy", "--data", str(folder), "-t", "1"]
    base += ["--sparsity", "0.5", "--method", "teal", "--limit", "3"]
    assert main([*base, "--json", str(tmp_path / "whole.json")]) == 0
    parts = [str(tmp_path / f"part{i}.json") for i in (1, 2)]
    for i, part in enumerate(parts):
        assert main([*base, "--shard", f"{i + 1}/2", "--json", part]) == 0
        done = json.loads(Path(part).read_text())["items"]["arc_easy"]["dense"]
        assert len(done) == (2, 1)[i]
    merged = tmp_path / "merged.json"
    assert main([*base, "--merge", *parts, "--json", str(merged)]) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert json.loads(merged.read_text())["items"] == whole["items"]
    for text in ("0/2", "3/2", "1", "a/b"):
        assert main([*base, "--shard", text, "--json", str(merged)]) != 0
    assert main([*base, "--merge", str(tmp_path / "no"), "--json", str(merged)]) != 0


def test_torch_scores_as_numpy_does(tiny_model: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with pywina.load(tiny_model, n_threads=1) as model:
        window = list(range(40, 80))
        results = []
        for device in ("cpu", "cpu:0"):
            scorer = windows.Scorer(device)
            dense = scorer.logs(model, window, pywina.Sparsity(), first=20)
            own = scorer.logs(model, window, pywina.Sparsity(0.5), first=20)
            results.append(scorer.score(model, window, own, dense, first=20))
        assert results[0].nll == pytest.approx(results[1].nll, abs=1e-5)
        assert results[0].kld == pytest.approx(results[1].kld, abs=1e-5)
        assert results[0].agreement == results[1].agreement
