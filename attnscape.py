"""The front door: the command line. The only module that knows all rooms; each command imports its own when it runs."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from benchmarks.campaign import Outcome, Request

BAD_INPUT: Final = 2
INTERRUPTED: Final = 130
NOTHING_FITS: Final = 1
RESULTS: Final = Path("results")

app = typer.Typer(
    name="attnscape",
    help="Measure attention variants, report what was measured, and choose the one that fits a hardware budget.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ResultsOption = Annotated[Path, typer.Option("--results", help="Results folder or file.")]
MachineOption = Annotated[
    str | None, typer.Option("--machine", help="Start of a machine's key, where the results hold several machines.")
]
BatchOption = Annotated[int, typer.Option("--batch", help="Items of the batch.")]
HeadsOption = Annotated[int, typer.Option("--heads", help="Heads of queries.")]
HeadDimOption = Annotated[int, typer.Option("--head-dim", help="Size of a head.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]


class BadInput(Exception):
    """What was asked cannot be done; the message is the one line that is printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: every refusal is one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = app(words or ["--help"], prog_name="attnscape", standalone_mode=False)
    except (BadInput, typer.TyperException) as refusal:
        text = refusal.format_message() if isinstance(refusal, typer.TyperException) else str(refusal)
        return _refused(text)
    except typer.Abort:
        return _refused("stopped")
    except OSError as error:
        return _refused(_os_text(error))
    return status if isinstance(status, int) else 0


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn a room's own refusals, and files that cannot be written, into `BadInput`."""
    try:
        yield
    except errors as refusal:
        raise BadInput(str(refusal)) from refusal
    except OSError as error:
        raise BadInput(_os_text(error)) from error


def _refused(text: str) -> int:
    from reports.quantities import printable

    print("attnscape:", printable(" ".join(text.split())), file=sys.stderr)
    return BAD_INPUT


def _os_text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _version_text() -> str:
    try:
        return metadata.version("attnscape")
    except metadata.PackageNotFoundError:
        return "of a checkout"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"attnscape {_version_text()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the whole program, which act in their callbacks."""


@app.command()
def choose(
    tokens: Annotated[int, typer.Option(help="Length of the sequence; in mode decode, of the cache.")],
    max_ms: Annotated[float | None, typer.Option(help="Most milliseconds per call.")] = None,
    max_mib: Annotated[float | None, typer.Option(help="Most memory in MiB, inputs and outputs included.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest relative error against exact attention.")] = None,
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    kv_heads: Annotated[int | None, typer.Option(help="Heads of keys and values; default: as many as heads.")] = None,
    head_dim: HeadDimOption = 64,
    dtype: DtypeOption = "float32",
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Whether a query sees no later keys.")] = False,
    mode: Annotated[str, typer.Option(help="forward, training or decode.")] = "forward",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    inputs: Annotated[
        str | None,
        typer.Option(help="Inputs whose errors count; default: captured where measured at this length, else normal."),
    ] = None,
    results: ResultsOption = RESULTS,
    machine: MachineOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Choose the variant that fits a budget, from measured results.

    Exit status: 0 where something fits, 1 where nothing does, 2 on bad input.

    \b
    Example:
      attnscape choose --tokens 8192 --max-ms 100 --max-mib 256 --max-error 0.2
    """  # noqa: D301  # \b keeps the example's line breaks
    from reports.answer_text import answer_blocks, answer_json
    from reports.choice import Budget, Question, choose
    from reports.question import InvalidQuestion
    from reports.records import ResultsError, read
    from reports.text_table import write_blocks

    with refusing(ResultsError, InvalidQuestion):
        question = Question(
            tokens=tokens,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
            causal=causal,
            mode=mode,
            inputs=inputs,
        )
        budget = Budget.of_options(max_ms, max_mib, max_error)
        found = read(results).of_machine(machine)
        answer = choose(found.rows, question, budget)
        if as_json:
            print(answer_json(answer), flush=True)
        else:
            write_blocks(answer_blocks(answer, found.description()), sys.stdout)
    raise typer.Exit(0 if answer.fits else NOTHING_FITS)


@app.command()
def report(
    results: ResultsOption = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="The page to write; default: report.html beside the results.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no page of attnscape.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Also write the summary picture, as PNG.")] = None,
    machine: MachineOption = None,
) -> None:
    """Write one self-contained HTML page of everything that was measured, and print its path.

    \b
    Example:
      attnscape report --results results --out report.html --force
    """  # noqa: D301  # \b keeps the example's line breaks
    from reports.records import ResultsError, read

    with refusing(ResultsError):
        found = read(results).of_machine(machine)
        page = out or found.path.parent / "report.html"
        # Only after the cheap refusals: the page loads matplotlib.
        from reports.page import is_page, write_page, write_picture

        if page.exists() and page.samefile(found.path):
            raise BadInput(f"{page} holds the results themselves")
        if page.exists() and not (force or is_page(page)):
            raise BadInput(f"{page} exists and is no page of attnscape; --force replaces it")
        write_page(page, found, version=_version_text())
        if picture is not None:
            write_picture(picture, found)
    print(page)


@app.command("list")
def list_variants(
    names: Annotated[bool, typer.Option("--names", help="Names only, one a line; starts without torch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """List every variant: exact or not, devices, types, modes, and ready or every reason why not.

    \b
    Example:
      attnscape list
    """  # noqa: D301  # \b keeps the example's line breaks
    from variants.catalogue import names as every_name
    from variants.installed import CatalogueError

    with refusing(CatalogueError):
        found = every_name()
    if names:
        print("\n".join(found))
        return
    import msgspec

    from benchmarks.inventory import describe
    from reports.listing import inventory_blocks
    from reports.text_table import write_blocks

    with _refusing_requests():
        items = [describe(name) for name in found]
    if as_json:
        print(
            msgspec.json.encode([{**msgspec.to_builtins(item), "ready_on": item.ready_on} for item in items]).decode()
        )
        return
    write_blocks(inventory_blocks(items), sys.stdout)


@app.command()
def check(
    variants: Annotated[
        list[str] | None, typer.Argument(help="Variants or folders; default: all.", show_default=False)
    ] = None,
    tokens: Annotated[str, typer.Option(help="Lengths: 256:1024 or 300,1000.")] = "300",
    dtype: DtypeOption = "float32",
    mode: Annotated[str, typer.Option(help="forward, training or decode.")] = "forward",
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Kinds of input, comma-separated, or all; or a file of `attnscape capture`, which brings its own "
            "shapes, types and masks. Default: the usual kinds."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: window=128.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Hold each ready variant against its float64 oracle and against exact attention, causal and not.

    Exit status: 0 where every variant is right, 1 where one is not, 2 on bad input.

    \b
    Example:
      attnscape check local_window --tokens 1000
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.campaign import check_variants, usable_threads
    from benchmarks.request_options import request_of
    from benchmarks.sweep import Settings
    from reports.progress import progress_of
    from reports.records import decoded
    from reports.row_tables import check_table
    from reports.text_table import Table, write_blocks

    with _refusing_requests():
        request = request_of(
            variants or [],
            tokens,
            [mode],
            [False, True],
            inputs,
            settings,
            dtype=dtype,
            timed=False,
            device=device,
            heads=4,
        )
        threads = usable_threads()
        with progress_of("checked") as progress:
            found = check_variants(request, Settings(seconds=0, threads=threads), progress, machine_device=device)
    rows = decoded(found)
    checked = [row for row in rows if row.status != "unsupported"]
    wrong = [row for row in checked if row.status != "ok"]
    if as_json:
        _print_rows(found)
    else:
        refused = sorted({row.case.variant for row in rows if row.status == "unsupported"})
        blocks: list[str | Table] = [check_table(checked), f"{len(checked) - len(wrong)} of {len(checked)} are right."]
        if refused:
            blocks.append(f"Not on this machine (`attnscape list` says why): {', '.join(refused)}.")
        write_blocks(blocks, sys.stdout)
    raise typer.Exit(1 if wrong or not checked else 0)


@app.command()
def run(
    variants: Annotated[str | None, typer.Option(help="Variants or folders, comma-separated; default: all.")] = None,
    tokens: Annotated[str, typer.Option(help="Lengths: 256:4096 (times two) or 300,1000.")] = "256:4096",
    dtype: Annotated[str, typer.Option(help="Types, comma-separated.")] = "float32",
    causal: Annotated[
        bool | None, typer.Option("--causal/--no-causal", help="One of both; default: each.", show_default=False)
    ] = None,
    mode: Annotated[str, typer.Option(help="Modes, comma-separated: forward, training, decode.")] = "forward",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values; 0: as many as heads.")] = 0,
    head_dim: HeadDimOption = 64,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Kinds of input, comma-separated, or all; times are taken on normal. Or a file of `attnscape "
            "capture`, which brings its own shapes, types and masks. Default: the usual kinds."
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: window=128.")] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 120.0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a case counts as hanging.")] = 120.0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all that this process may use.")] = 0,
    baseline_causal: Annotated[
        bool | None,
        typer.Option("--baseline-causal/--baseline-no-causal", help="Mask of the baseline; default: the case's own."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; what it holds is not measured again.")] = RESULTS,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print what would run, with its memory, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Measure time, memory and errors; every row is on the disk at once, and a second run goes on where it stopped.

    \b
    Example:
      attnscape run --variants full,local_window --tokens 256:8192 --causal --seconds 300
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.campaign import run_campaign, usable_threads
    from benchmarks.request_options import request_of
    from benchmarks.sweep import Settings
    from reports.progress import progress_of

    with _refusing_requests():
        request = request_of(
            _words(variants),
            tokens,
            _words(mode),
            [False, True] if causal is None else [causal],
            inputs,
            settings,
            dtype=dtype,
            timed=True,
            device=device,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )
        if only_plan:
            _print_plan(request, as_json)
            return
        _require_positive(seconds=seconds, timeout=timeout, threads=threads + 1)
        how = Settings(
            seconds=seconds,
            threads=threads or usable_threads(),
            timeout_seconds=timeout,
            baseline_causal=baseline_causal,
        )
        with progress_of("measured") as progress:
            outcome = run_campaign(request, out, how, progress, machine_device=device)
    _print_outcome(outcome, out, as_json)
    if outcome.interrupted:
        print(f"attnscape: stopped; what is done is in {out}, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


@app.command(context_settings={"allow_interspersed_args": False})
def capture(
    program: Annotated[
        list[str], typer.Argument(help="The program: python script.py ..., or python -m module ...", metavar="PROGRAM")
    ],
    out: Annotated[Path, typer.Option(help="The file to write; a recording that it holds is replaced.")],
    max_mib: Annotated[float, typer.Option(help="Most MiB to record.")] = 256.0,
    calls: Annotated[int, typer.Option(help="Most calls to record.")] = 64,
) -> None:
    """Run a PyTorch program and record q, k, v and masks of its scaled_dot_product_attention calls, for --inputs.

    Of each place, module and set of shapes the first call is kept. The program does what it does without this.
    Exit status: the program's own; 2 where nothing was recorded.

    \b
    Example:
      attnscape capture --out q.safetensors -- python my_model.py --batch 1
      attnscape check local_window --inputs q.safetensors
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.capture_program import InvalidProgram, capture_program
    from benchmarks.recorded import InvalidCapture

    _require_positive(**{"max-mib": max_mib, "calls": calls})
    with refusing(InvalidProgram, InvalidCapture):
        captured = capture_program(program, out, max_mib, calls)
    if captured.recording is None:
        print(f"attnscape: {out} was not written", file=sys.stderr)
        raise typer.Exit(captured.status or BAD_INPUT)
    for call in captured.recording.calls:
        print(f"attnscape: recorded {call.describe()}", file=sys.stderr)
    for reason, count in captured.recording.left_out.items():
        print(f"attnscape: left out calls: {count} {reason}", file=sys.stderr)
    raise typer.Exit(captured.status)


@app.command("validate-model")
def validate_model(
    curves: Annotated[Path, typer.Argument(help="CSV: gpu, software, kernel, shape columns, tokens, latency_ms.")],
    cut: Annotated[int, typer.Option(help="Fit on lengths up to this one, score on those beyond.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Fit the time model to the short lengths of measured curves, and score it on their long ones.

    \b
    Example:
      attnscape validate-model curves.csv --cut 4096
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from reports.curve_file import ValidationInputError
    from reports.model_validation import report_tables, validate_model
    from reports.text_table import write_blocks

    with refusing(ValidationInputError):
        found = validate_model(curves, cut=cut, lengths=None)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        write_blocks(report_tables(found), sys.stdout)


@app.command()
def docs(
    only_check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 where a file is out of date.")
    ] = False,
) -> None:
    """Write the generated parts of the documents of a checkout: the table of variants, the page of commands.

    \b
    Example:
      attnscape docs --check
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.inventory import markdown_table
    from reports.documents import DocumentsError, write_documents
    from variants.catalogue import ROOT, names

    folder = Path(__file__).parent
    parts = {"variants": markdown_table(names(ROOT)), "example": _worked_example(folder)}
    with refusing(DocumentsError):
        stale = write_documents(folder, parts, _command_helps(), only_check=only_check)
    for path in stale:
        print(f"{path.relative_to(folder)} is out of date" if only_check else path.relative_to(folder))
    raise typer.Exit(1 if only_check and stale else 0)


def _worked_example(folder: Path) -> str:
    """The README's question and its answer, from the measured figures that the checkout ships."""
    import contextlib
    import io

    command = "choose --results docs/measured --tokens 3000 --causal --max-ms 40 --max-error 0.5"
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer), contextlib.chdir(folder):
        main(command.split())
    told, rest, _ = answer.getvalue().partition("\nBreaks a limit")
    lines = [line.rstrip() for line in told.splitlines()] + (["…"] if rest else [])
    return "```console\n" + "\n".join([f"$ attnscape {command}", *lines]) + "\n```"


def _command_helps() -> dict[str, str]:
    """The help of each command, as a terminal of 100 columns shows it."""
    group = typer.main.get_command(app)
    commands: dict[str, Any] = getattr(group, "commands")  # noqa: B009  # typer's group has it, its type does not
    helps = {}
    for name, command in sorted(commands.items()):
        context = typer.Context(command, info_name=f"attnscape {name}", terminal_width=100, max_content_width=100)
        helps[name] = command.get_help(context)
    return helps


@contextmanager
def _refusing_requests() -> Iterator[None]:
    """Turn what can be wrong with a request into `BadInput`."""
    from benchmarks.campaign import InvalidRequest
    from benchmarks.lengths import InvalidLengths
    from benchmarks.recorded import InvalidCapture
    from benchmarks.store import StoreError
    from variants import InvalidProblem
    from variants.catalogue import UnknownVariant
    from variants.definition import InvalidParameter
    from variants.installed import CatalogueError
    from variants.variant import RegistryError

    faults = (InvalidRequest, InvalidLengths, StoreError, InvalidProblem, UnknownVariant, InvalidParameter)
    with refusing(*faults, InvalidCapture, RegistryError, CatalogueError):
        yield


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and value < float("inf")):
            raise BadInput(f"--{name} must be positive, not {value:g}")


def _print_plan(request: "Request", as_json: bool) -> None:
    import msgspec

    from benchmarks.campaign import plan
    from reports.listing import plan_blocks
    from reports.text_table import write_blocks

    planned = plan(request)
    if as_json:
        print(msgspec.json.encode([msgspec.to_builtins(entry) for entry in planned]).decode())
        return
    write_blocks(plan_blocks(planned), sys.stdout)


def _print_outcome(outcome: "Outcome", folder: Path, as_json: bool) -> None:
    import msgspec

    from reports.records import decoded
    from reports.row_tables import failures_table, run_table
    from reports.text_table import write_blocks

    share = outcome.measured_seconds / outcome.seconds if outcome.seconds else 0.0
    if as_json:
        document = {
            "folder": str(folder),
            "measured": len(outcome.rows),
            "already_there": outcome.skipped,
            "left": outcome.left,
            "seconds": outcome.seconds,
            "measured_share": share,
            "interrupted": outcome.interrupted,
            "rows": [msgspec.to_builtins(row) for row in outcome.rows],
        }
        print(msgspec.json.encode(document).decode())
        return
    rows = decoded(outcome.rows)
    timed = [row for row in rows if row.seconds is not None]
    failed = failures_table(rows)
    known = f" ({outcome.skipped} were there already)" if outcome.skipped else ""
    summary = (
        f"{len(rows)} cases in {outcome.seconds:.0f} s{known}, {100 * share:.0f} % of the time in measured calls. "
        f"Results: {folder}"
    )
    if outcome.left:
        summary += f"\n{outcome.left} cases of errors had no time left: the same command goes on with them."
    write_blocks([*([run_table(timed)] if timed else []), *([failed] if failed else []), summary], sys.stdout)


def _print_rows(rows: Sequence[Any]) -> None:
    import msgspec

    print(msgspec.json.encode([msgspec.to_builtins(row) for row in rows]).decode())


if __name__ == "__main__":
    sys.exit(main())
