"""A conversation reuses the KV cache without changing a word, and Ctrl-C never loses it."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeadapt.chat import Conversation
from edgeadapt.chat_template import Message
from edgeadapt.cli import cli
from edgeadapt.errors import InputError
from edgeadapt.jobs import open_here
from edgeadapt.runtimes.base import Float32Array, Session
from edgeadapt.warm.make import make_warm
from edgeadapt.warm.start import start_after
from tests.onnx_folders import exported

pytest.importorskip("llama_cpp")

CONTEXT = 512
QUESTIONS = ["The quick brown fox", "def main(argument: int)", "Grüße, naïve café 日本語 🙂"]


class Watched(Session):
    """A real session that counts the tokens it is given, and can stop early."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.ran: list[int] = []
        self.resets = 0
        self.stop_ids = session.stop_ids
        self.vocab_size = session.vocab_size

    @property
    def position(self) -> int:  # type: ignore[override]
        return self._session.position

    @property
    def capacity(self) -> int:  # type: ignore[override]
        return self._session.capacity

    def forward(self, ids: Sequence[int]) -> None:
        self._session.forward(ids)
        self.ran += ids

    def reset(self) -> None:
        self._session.reset()
        self.ran = []
        self.resets += 1

    def save_state(self) -> bytes:
        return self._session.save_state()

    def restore_state(self, saved: bytes) -> None:
        self._session.restore_state(saved)
        self.ran = [-1] * self.position

    def state_settings(self) -> dict[str, str]:
        return self._session.state_settings()

    def encode(self, text: str) -> list[int]:
        return self._session.encode(text)

    def token_bytes(self, token: int) -> bytes:
        return self._session.token_bytes(token)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return self._session.render(messages, add_generation_prompt=add_generation_prompt)

    def greedy(self) -> int:
        return self._session.greedy()

    def last_logits(self) -> Float32Array:
        return self._session.last_logits()

    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        return self._session.all_logits(ids)

    def build_info(self) -> dict[str, str]:
        return self._session.build_info()

    def threads_in_use(self) -> int:
        return self._session.threads_in_use()

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def session(tiny_gguf: Path) -> Iterator[Watched]:
    watched = Watched(open_here(tiny_gguf, context=CONTEXT, threads=1))
    yield watched
    watched.close()


def talk(session: Session, **options: object) -> Conversation:
    return Conversation(session, context=CONTEXT, **({"max_tokens": 20} | options))


def test_later_turns_run_only_what_is_new(session: Watched) -> None:
    conversation = talk(session)
    resets = session.resets
    for number, question in enumerate(QUESTIONS):
        held = len(session.ran)
        "".join(conversation.say(question))
        assert conversation.reused_tokens == held
        assert (held > 0) == (number > 0)
        resets = resets if number else session.resets
    assert session.resets == resets
    assert session.position == len(session.ran)


def test_the_cache_gives_what_running_everything_again_gives(session: Watched) -> None:
    conversation = talk(session)
    for question in QUESTIONS:
        before = len(session.ran)
        answer = "".join(conversation.say(question))
        ran = list(session.ran)
        start = len(ran) - _answer_length(session, ran, before)
        session.reset()
        again = list(session.generate(ran[:start], max_tokens=20))
        assert again == ran[start:]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert decoder.decode(b"".join(map(session.token_bytes, again))) == answer
        session.reset()  # and back to where the conversation was
        session.forward(ran)


def _answer_length(session: Session, ran: list[int], before: int) -> int:
    """Tokens after the last `<|im_start|>assistant\\n` of the prompt."""
    opening = session.encode("<|im_start|>assistant\n")
    for end in range(len(ran), before, -1):
        if ran[end - len(opening) : end] == opening:
            return len(ran) - end
    raise AssertionError("no answer was begun")


def test_the_messages_grow_by_two_and_reset_keeps_the_system_message(session: Watched) -> None:
    conversation = talk(session, system="Be brief.")
    answer = "".join(conversation.say(QUESTIONS[0]))
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": answer},
    ]
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert "".join(conversation.say(QUESTIONS[0])) == answer


def test_a_stopped_answer_stays_and_the_cache_goes_on(session: Watched) -> None:
    conversation = talk(session)
    pieces: list[str] = []
    for piece in conversation.say(QUESTIONS[0], stop=lambda: len(pieces) >= 3):
        pieces.append(piece)
    assert len(pieces) <= 4
    assert conversation.messages[-1]["content"] == "".join(pieces)
    held = session.position
    resets = session.resets
    "".join(conversation.say(QUESTIONS[1]))
    assert conversation.reused_tokens == held
    assert session.resets == resets


def test_stopped_while_reading_the_question_it_was_never_asked(session: Watched) -> None:
    conversation = talk(session)
    fresh = "".join(conversation.say(QUESTIONS[1]))
    conversation.reset()
    assert "".join(conversation.say(QUESTIONS[0], stop=lambda: True)) == ""
    assert conversation.messages == []
    assert "".join(conversation.say(QUESTIONS[1])) == fresh


def test_the_oldest_turns_go_when_the_context_is_full(session: Watched) -> None:
    conversation = talk(session, system="Be brief.")
    for number in range(30):
        "".join(conversation.say(f"{number} {QUESTIONS[number % 3]}"))
        assert session.position <= CONTEXT
    assert conversation.dropped_turns > 0
    assert conversation.messages[0]["role"] == "system"
    assert [m["role"] for m in conversation.messages[1:3]] == ["user", "assistant"]
    assert len(conversation.messages) == 1 + 2 * (30 - conversation.dropped_turns)


def test_a_question_larger_than_the_context_is_refused_and_forgotten(session: Watched) -> None:
    conversation = talk(session)
    before = "".join(conversation.say(QUESTIONS[0]))
    with pytest.raises(InputError, match="of a context of 512"):
        "".join(conversation.say("word " * 1000))
    assert [m["content"] for m in conversation.messages] in ([QUESTIONS[0], before], [])
    assert isinstance("".join(conversation.say(QUESTIONS[1])), str)


@pytest.fixture(scope="module")
def warm_file(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompt = tmp_path_factory.mktemp("warm") / "shots.json"
    prompt.write_text(json.dumps(SHOTS))
    return make_warm(tiny_gguf, prompt, prompt.with_name("t.warm.json"), threads=1).path


SHOTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The lazy dog?"},
    {"role": "assistant", "content": "jumps"},
]


def test_it_starts_after_a_warm_prompt_and_goes_back_to_it(
    session: Watched, warm_file: Path, tiny_gguf: Path
) -> None:
    start = start_after(session, warm_file, tiny_gguf)
    known = len(start.prompt.ids)
    conversation = talk(session, warm=start)
    assert conversation.messages == SHOTS and session.position == known
    first = "".join(conversation.say(QUESTIONS[0]))
    assert conversation.reused_tokens == known
    held, resets = session.position, session.resets
    "".join(conversation.say(QUESTIONS[1]))
    assert conversation.reused_tokens == held
    conversation.reset()
    assert conversation.messages == SHOTS and session.position == known
    assert "".join(conversation.say(QUESTIONS[0])) == first
    assert conversation.reused_tokens == known
    assert session.resets == resets  # never emptied: its tokens were not run again
    # and it is what the same conversation says that runs all of it, in the same two batches
    ids = session.encode(session.render([*SHOTS, {"role": "user", "content": QUESTIONS[0]}]))
    session.reset()
    session.forward(ids[:known])
    session.forward(ids[known:-1])
    tokens = list(session.generate(ids[-1:], max_tokens=20))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert decoder.decode(b"".join(map(session.token_bytes, tokens))) == first


def test_warm_messages_stay_when_the_oldest_turns_go(
    session: Watched, warm_file: Path, tiny_gguf: Path
) -> None:
    start = start_after(session, warm_file, tiny_gguf)
    conversation = talk(session, warm=start)
    resets = session.resets
    for number in range(20):
        before = conversation.dropped_turns
        "".join(conversation.say(f"{number} {QUESTIONS[number % 3]}"))
        assert session.position <= CONTEXT
        if conversation.dropped_turns > before:
            assert conversation.reused_tokens == len(start.prompt.ids)
    assert conversation.dropped_turns > 0
    assert conversation.messages[:3] == SHOTS
    assert session.resets == resets


def test_an_interrupted_question_leaves_the_warm_prompt(
    session: Watched, warm_file: Path, tiny_gguf: Path
) -> None:
    start = start_after(session, warm_file, tiny_gguf)
    conversation = talk(session, warm=start)
    assert "".join(conversation.say(QUESTIONS[0], stop=lambda: True)) == ""
    assert conversation.messages == SHOTS
    assert session.position == len(start.prompt.ids)
    "".join(conversation.say(QUESTIONS[1]))
    assert conversation.reused_tokens == len(start.prompt.ids)


def test_a_conversation_that_does_not_begin_with_it_runs_everything(
    session: Watched, warm_file: Path, tiny_gguf: Path
) -> None:
    """As it would be if the template wrote these messages otherwise after all."""
    start = start_after(session, warm_file, tiny_gguf)
    other = start.prompt.model_copy(update={"messages": tuple(SHOTS[1:])})
    conversation = talk(session, warm=replace(start, prompt=other))
    answer = "".join(conversation.say(QUESTIONS[0]))
    assert conversation.reused_tokens == 0
    plain = talk(session)
    plain.messages = SHOTS[1:]
    assert "".join(plain.say(QUESTIONS[0])) == answer


class Scripted(Watched):
    """The same session, saying given tokens."""

    def __init__(self, session: Session, script: Sequence[int]) -> None:
        super().__init__(session)
        self.script = iter(script)

    def greedy(self) -> int:
        return next(self.script)


def test_characters_are_streamed_whole(session: Watched) -> None:
    text = "日本 🙂é"
    tokens = session.encode(text)
    assert len(tokens) > len(text)  # several tokens to a character, or nothing is tested
    scripted = Scripted(session, [*tokens, 2])
    pieces = list(talk(scripted, max_tokens=100).say("x"))
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)


def test_a_character_cut_at_the_limit_is_dropped(session: Watched) -> None:
    smile = session.encode("🙂")
    scripted = Scripted(session, [*session.encode("ok"), *smile])
    limit = len(session.encode("ok")) + len(smile) - 1
    conversation = talk(scripted, max_tokens=limit)
    assert "".join(conversation.say("x")) == "ok"
    assert conversation.cut


def run(arguments: list[str], given: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["chat", *arguments], input=given)
    return done.exit_code, done.stdout, done.stderr


def test_one_question_and_out(tiny_gguf: Path) -> None:
    code, out, _ = run([str(tiny_gguf), "--prompt", "Hi", "--max-tokens", "8"])
    assert code == 0
    assert out.endswith("\n")
    assert ">" not in out.splitlines()[0][:2]


@pytest.mark.parametrize("runtime", ["onnxruntime", "ort-genai", "torch"])
def test_a_model_with_fewer_positions_than_the_context(tiny_model: Path, runtime: str) -> None:
    """It has 256, and answers of a random model go on until something ends them."""
    pytest.importorskip("onnxruntime_genai")
    path = tiny_model if runtime == "torch" else exported(tiny_model, "fp32").path
    arguments = [str(path), "--runtime", runtime, "--context", "4096", "--threads", "1"]
    code, out, err = run([*arguments, "--json"], f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n")
    turns = json.loads(out)["turns"]
    assert (code, [turn["user"] for turn in turns]) == (0, QUESTIONS[:2])
    assert len(turns[0]["assistant"]) > 200
    assert "256 tokens, fewer than the context of 4096" in err and "cut here" in err
    code, _, err = run([*arguments, "--prompt", "word " * 300])
    assert code == 2 and "of a context of 256" in err and "--context" not in err.splitlines()[-1]


def test_piped_lines_are_turns(tiny_gguf: Path) -> None:
    code, out, _ = run(
        [str(tiny_gguf), "--json", "--max-tokens", "5"], "one\n\ntwo\n/reset\none\n/exit\nnever\n"
    )
    turns = json.loads(out)["turns"]
    assert code == 0
    assert [t["user"] for t in turns] == ["one", "two", "one"]
    assert turns[0]["assistant"] == turns[2]["assistant"]


def test_a_missing_artifact_is_one_sentence(tmp_path: Path) -> None:
    code, _, err = run([str(tmp_path / "none.gguf")])
    assert code == 2
    assert err.count("\n") == 1


class Terminal:
    """`edgeadapt chat` on a pseudo-terminal."""

    def __init__(self, arguments: list[str]) -> None:
        import pty

        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeadapt", "chat", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=_own_terminal, env=os.environ | {"TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Read until `text` appears; returns what came before, and forgets both."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[-400:]!r}"
            if select.select([self._master], [], [], 0.2)[0] and not self._read():
                break
        before, found, self.seen = self.seen.partition(text)
        assert found, f"ended without {text!r}: {before[-400:]!r}"
        return before

    def _read(self) -> bool:
        try:
            self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
        except OSError:  # Linux reports the end of a terminal so
            return False
        return True

    def wait_for_length(self, length: int) -> None:
        while len(self.seen) < length:
            assert self._read(), f"ended after {self.seen!r}"

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press_ctrl_c(self, seconds: float = 60) -> None:
        """Until the program ends: Python misses a Ctrl-C between the prompt and readline's wait."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.type("\x03")
            while select.select([self._master], [], [], 1.0)[0]:
                if not self._read():
                    return

    def close(self) -> int:
        while self._read():  # let it write its last words
            pass
        code = self.process.wait(timeout=30)
        os.close(self._master)
        return code


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(arguments: list[str]) -> Iterator[Terminal]:
    made = Terminal(arguments)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            os.killpg(made.process.pid, signal.SIGKILL)
            made.process.wait()


@pytest.fixture
def endless(tiny_gguf: Path) -> list[str]:
    """Greedily, a random model goes round in a circle: an answer that must be stopped."""
    return [str(tiny_gguf), "--max-tokens", "60000", "--context", "65536", "--threads", "1"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(endless: list[str]) -> None:
    with terminal(endless) as chat:
        chat.wait_for("> ")
        chat.type("The quick brown fox\n")
        chat.wait_for("fox\r\n")
        chat.wait_for_length(50)  # the answer runs
        chat.type("\x03")
        chat.wait_for("(stopped)")
        chat.wait_for("> ")
        chat.type("/reset\n")
        chat.wait_for("forgotten")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.close() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_at_the_prompt_leaves(endless: list[str]) -> None:
    with terminal(endless) as chat:
        chat.wait_for("> ")
        chat.press_ctrl_c()
        assert chat.close() == 0
