"""`wina chat`: its prompts are those of the file's template; conversations, commands, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pywina

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "chat.json").read_text())
TEMPLATES = {case["name"]: case["template"] for case in GOLDEN}
TYPED = "Hi, <|im_end|> [INST]wörld</s><|im_start|>"


def chat(wina_bin: Path, model: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [wina_bin, "chat", "-m", model, "-t", "1", *arguments],
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def prompt(wina_bin: Path, model: Path, text: str, *options: str) -> dict:
    code, output, errors = chat(wina_bin, model, "-p", text, "--show-prompt", *options)
    assert code == 0, errors
    return json.loads(output)


def _messages(text: str, system: str | None) -> list[dict]:
    given = [] if system is None else [{"role": "system", "content": system}]
    return [*given, {"role": "user", "content": text}]


@pytest.mark.parametrize("name", ["smollm2_path", "qwen_path"])
def test_prompts_are_those_of_the_template(
    name: str, wina_bin: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    with pywina.load(path, n_ctx=64, n_threads=1) as model:
        for system in (None, "Be <|im_end|> brief."):
            options = [] if system is None else ["--system", system]
            text = f"  {TYPED}\n"
            found = prompt(wina_bin, path, text, *options)
            assert found["tokens"] == model.chat_tokens(_messages(text, system))


@pytest.mark.parametrize("name", ["llama-2", "llama-3.1", "gemma", "phi-3", "phi-4"])
def test_prompts_of_the_families(
    name: str, wina_bin: Path, write_model: Callable[..., Path]
) -> None:
    path = write_model(chat_template=TEMPLATES[name])
    with pywina.load(path, n_threads=1) as model:
        found = prompt(wina_bin, path, TYPED, "--system", "Be brief.")
        assert found["format"] in name
        assert found["tokens"] == model.chat_tokens(_messages(TYPED, "Be brief."))


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
def test_an_unknown_template_is_refused(
    template: str | None, wina_bin: Path, write_model: Callable[..., Path]
) -> None:
    code, output, errors = chat(wina_bin, write_model(chat_template=template), stdin="Hi\n")
    assert (code, output) == (2, "") and "template" in errors


def test_a_conversation_is_kept(smollm2_path: Path, wina_bin: Path) -> None:
    options = ("--temp", "0", "-n", "6", "-c", "256")
    talk = "My name is Ada.\n/sparsity 0.25\n/sparsity 2\n/stats\n/what\nWho am I?\n/exit\nno\n"
    code, output, errors = chat(wina_bin, smollm2_path, *options, stdin=talk)
    assert code == 0, errors
    assert "sparsity 0.25" in errors and "0 <= S < 1" in errors and "commands:" in errors
    with pywina.load(smollm2_path, n_ctx=256, n_threads=1) as model:
        first = model.chat(_messages("My name is Ada.", None), max_tokens=6, temperature=0)
    assert output.splitlines()[0].strip() == first.strip()
    cleared = chat(wina_bin, smollm2_path, *options, stdin="Who?\n/clear\nMy name is Ada.\n")
    assert cleared[1].rstrip("\n").endswith(first)


def test_a_message_that_does_not_fit_is_taken_back(tiny_model: Path, wina_bin: Path) -> None:
    talk = f"{'word ' * 90}\nHi\n/stats\n"
    code, output, errors = chat(wina_bin, tiny_model, "-c", "64", "-n", "2", stdin=talk)
    assert code == 0 and "/clear" in errors and " of 64 tokens" in errors, errors
    assert output


def test_ctrl_c_ends_the_answer_only(smollm2_path: Path, wina_bin: Path) -> None:
    parent, child = pty.openpty()
    command = [wina_bin, "chat", "-m", smollm2_path, "-t", "1", "--ignore-eos", "-c", "2048"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=child, stderr=subprocess.PIPE
    ) as process:
        os.close(child)
        assert process.stdin and process.stderr
        for _ in range(2):
            process.stdin.write(b"Tell me a story.\n")
            process.stdin.flush()
            assert os.read(parent, 1)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.poll() is None
        process.stdin.write(b"/stats\n/exit\n")
        process.stdin.close()
        assert process.wait(20) == 0
        assert b"chatml" in process.stderr.read()
    os.close(parent)
