"""The front door: the command line. The only module that knows all rooms; each command imports its own when it runs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

try:
    import typer
except ModuleNotFoundError as missing:
    sys.stderr.write(f"attnscape: the package {missing.name} is not installed; `make test` sets everything up\n")
    sys.exit(2)

if TYPE_CHECKING:
    from benchmarks.campaign import Outcome, Request
    from reports.question import Question
    from reports.shape import Shape

BAD_INPUT: Final = 2
INTERRUPTED: Final = 130
NOTHING_FITS: Final = 1
WRONG: Final = 1
TUNING_SECONDS: Final = 300.0
RESULTS: Final = Path("results")
ASV_RESULTS: Final = Path(".asv/results")
ROOMS: Final = ("variants", "benchmarks", "reports")

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
AsvOption = Annotated[Path, typer.Option("--asv", help="Folder of asv's results.")]
SkipCompiledOption = Annotated[
    bool, typer.Option("--skip-compiled", help="Leave out variants that compile for seconds at each new shape.")
]
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
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] in ROOMS:
            raise
        return _refused(f"the package {missing.name} is not installed; `make test` sets everything up")
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
    max_time: Annotated[str | None, typer.Option(help="Most time per call: 5ms, 200us, 0.1s.")] = None,
    max_mem: Annotated[
        str | None, typer.Option(help="Most memory, inputs and outputs included: 8GiB, 512MiB, 500MB.")
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest relative error against exact attention.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="As --max-time, in milliseconds.")] = None,
    max_mib: Annotated[float | None, typer.Option(help="As --max-mem, in MiB.")] = None,
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    kv_heads: Annotated[int | None, typer.Option(help="Heads of keys and values; default: as many as heads.")] = None,
    head_dim: HeadDimOption = 64,
    dtype: DtypeOption = "float32",
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Whether a query sees no later keys.")] = False,
    mode: Annotated[str, typer.Option(help="forward, training or decode.")] = "forward",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: cuda with --card, else cpu.", show_default=False)
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Inputs whose errors count; default: captured where measured at this length, else normal."),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(help="Answer for this card: a name that is known, such as H200, or a .toml or .json file."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            help="Results folder or file; default: results. With --card there need be none.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Answer from the shipped measurements of this machine: a part of its name.")
    ] = None,
    machine: MachineOption = None,
    tune_first: Annotated[
        bool, typer.Option("--tune", help="First tune every variant to --max-error, as `attnscape tune` does.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Choose the variant that fits a budget, from measured results, or prove that none can.

    Between measured lengths times are interpolated, up to four times beyond them extrapolated, with bands.
    Exit status: 0 where something fits, 1 where nothing does or is known to, 2 on bad input.

    \b
    Examples:
      attnscape choose --tokens 8192 --max-time 100ms --max-mem 256MiB --max-error 0.2
      attnscape choose --card L4 --tokens 131072 --batch 4 --heads 32 --kv-heads 8 --head-dim 128 \\
        --dtype bfloat16 --causal --max-time 5ms --max-mem 8GiB
    """  # noqa: D301  # \b keeps the example's line breaks
    from reports.answer_text import answer_blocks, answer_json
    from reports.cards import CardError, card_of
    from reports.choice import Question, choose
    from reports.question import InvalidQuestion
    from reports.records import ResultsError, read
    from reports.shipped import shipped
    from reports.text_table import write_blocks
    from reports.units import budget_of

    with refusing(ResultsError, InvalidQuestion, CardError):
        question = Question(
            tokens=tokens,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device or ("cuda" if card else "cpu"),
            causal=causal,
            mode=mode,
            inputs=inputs,
        )
        budget = budget_of(max_time, max_mem, max_error, max_ms, max_mib)
        target = card_of(card) if card else None
        if on and results:
            raise BadInput("--on answers from shipped measurements and --results from others: give one of them")
        if tune_first:
            if max_error is None or card or on:
                raise BadInput("--tune needs --max-error, and measures on this machine: neither --card nor --on")
            _tune_first(question, max_error, results or RESULTS)
        without = target is not None and results is None and not RESULTS.exists() and not on
        found = None if without else (shipped(on) if on else read(results or RESULTS)).of_machine(machine)
        description = found.description() if found else {}
        rows = found.rows if found else ()
        answer = choose(rows, question, budget, description=description, target=target, declare=_declared_costs)
        if as_json:
            print(answer_json(answer), flush=True)
        else:
            write_blocks(answer_blocks(answer, description), sys.stdout)
    raise typer.Exit(0 if answer.fits else NOTHING_FITS)


def _tune_first(question: "Question", max_error: float, results: Path) -> None:
    """Tune every variant to the question, in the time that `tune` usually takes; the rows go into the results."""
    from benchmarks.inputs import UnavailableInputs
    from benchmarks.parameter_tuning import Wish, tune, wish_of
    from benchmarks.sweep import Settings
    from reports.definition_progress import counting
    from reports.progress import progress_of

    shape = {name: getattr(question.shape, name) for name in ("batch", "heads", "kv_heads", "head_dim", "dtype")}
    place = {"device": question.device, "causal": question.causal}
    with _refusing_requests(), refusing(UnavailableInputs):
        names, problem, kinds, held = wish_of([], question.tokens, question.inputs, [], question.mode, **place, **shape)
        wish = Wish(names, problem, kinds, max_error, held, seconds=TUNING_SECONDS)
        with counting("searched") as show, progress_of("measured") as progress:
            tune(wish, results, Settings(seconds=TUNING_SECONDS, threads=0), show, progress)


def _declared_costs(variant: str, parameters: Mapping[str, int], shape: "Shape", length: int) -> tuple[int, int] | None:
    """What a variant declares at a length: asked for beyond measured lengths only, since it imports torch."""
    return _declared_once(variant, tuple(sorted(parameters.items())), shape, length)


@cache
def _declared_once(
    variant: str, parameters: tuple[tuple[str, int], ...], shape: "Shape", length: int
) -> tuple[int, int] | None:
    """The same, kept: to fit a curve asks for the same lengths again and again."""
    from dataclasses import asdict

    from benchmarks.declarations import declared_costs

    return declared_costs(variant, dict(parameters), length, **asdict(shape))


@app.command()
def report(
    results: ResultsOption = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="The page to write; default: report.html beside the results.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no page of attnscape.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Also write the summary picture, as PNG.")] = None,
    machine: MachineOption = None,
    compare_machine: Annotated[
        str | None, typer.Option(help="Start of another machine's key: its times stand beside this one's.")
    ] = None,
    asv: Annotated[str | None, typer.Option(help="Address of the pages of `asv publish`, to link to them.")] = None,
) -> None:
    """Write one self-contained HTML page of everything that was measured, and print its path.

    The page answers budgets as `attnscape choose` does, draws what is selected, and needs no network.

    \b
    Examples:
      attnscape report --results results --out report.html --force
      attnscape report --machine cpu-1a --compare-machine cuda-2b --asv https://example.org/asv/
    """  # noqa: D301  # \b keeps the example's line breaks
    from reports.records import ResultsError, read

    with refusing(ResultsError):
        from reports.page_target import require_page

        known = read(results)
        page = out or known.path.parent / "report.html"
        require_page(page, known, force=force)
        # Only after the cheap refusals: the page loads matplotlib.
        from reports.page import Extras, write_page, write_picture
        from reports.page_machines import chosen

        found, beside = chosen(known, machine, compare_machine)
        write_page(page, found, version=_version_text(), extras=Extras(beside, asv, _declared_costs))
        if picture is not None:
            write_picture(picture, found)
    print(page)


@app.command("list")
def list_variants(
    names: Annotated[bool, typer.Option("--names", help="Names only, one a line; starts without torch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """List every variant: exact or not, devices, types, modes, and ready or every reason why not.

    Exit status: 0, 2 where a file is at fault; what is wrong with it is said below the others.

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
    from variants.variant import RegistryError

    items, faults = [], []
    for name in found:
        try:
            items.append(describe(name))
        except RegistryError as fault:
            faults.append(str(fault))
    if as_json:
        print(
            msgspec.json.encode([{**msgspec.to_builtins(item), "ready_on": item.ready_on} for item in items]).decode()
        )
    else:
        write_blocks(inventory_blocks(items), sys.stdout)
    for said in faults:
        _refused(said)
    if faults:
        raise typer.Exit(BAD_INPUT)


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
    heads: HeadsOption = 4,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values; 0: as many as heads.")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: window=128.")] = None,
    skip_compiled: SkipCompiledOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Hold each ready variant against its float64 oracle and against exact attention, causal and not.

    Besides, on normal inputs, where a variant runs them: grouped heads, more keys than queries, and another value of
    each parameter that is not set.
    Exit status: 0 where every variant is right, 1 where one is not, 2 on bad input.

    \b
    Example:
      attnscape check local_window --tokens 1000
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.campaign import check_variants, usable_threads
    from benchmarks.check_cases import further_cases
    from benchmarks.inventory import describe
    from benchmarks.request_options import request_of
    from benchmarks.sweep import Settings
    from reports.progress import progress_of
    from reports.records import decoded
    from reports.row_tables import check_table, left_out
    from reports.text_table import write_blocks

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
            skip_compiled=skip_compiled,
            device=device,
            heads=heads,
            kv_heads=kv_heads,
        )
        further = further_cases(request)
        threads = usable_threads()
        with progress_of("checked") as progress:
            how = Settings(seconds=0, threads=threads)
            found = check_variants(request, how, progress, machine_device=device, further=further)
    rows = decoded(found)
    checked = [row for row in rows if row.status != "unsupported"]
    wrong = [row for row in checked if row.status != "ok"]
    if as_json:
        _print_rows(found)
    else:
        elsewhere = {name for name in {row.case.variant for row in rows} if not describe(name).ready_on}
        summary = f"{len(checked) - len(wrong)} of {len(checked)} are right."
        write_blocks([check_table(checked), summary, *left_out(rows, elsewhere)], sys.stdout)
    raise typer.Exit(1 if wrong or not checked else 0)


@app.command()
def errors(
    variants: Annotated[
        str | None,
        typer.Option(help="Definitions or variants, comma-separated; default: eight methods.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter with its values: rank=1,4,16.", show_default=False)
    ] = None,
    tokens: Annotated[str, typer.Option(help="Lengths: 256:1024 or 300,1000.")] = "1024",
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Kinds of input, comma-separated, or all; default: normal, smooth, mixed, peaky_smooth.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Draws of the inputs: mean and spread.")] = 3,
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Whether a query sees no later keys.")] = False,
    batch: BatchOption = 1,
    heads: HeadsOption = 2,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values; 0: as many as heads.")] = 0,
    head_dim: HeadDimOption = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Compare definitions with exact attention by their float64 oracles, beside the mean of V; nothing is timed.

    \b
    Example:
      attnscape errors
      attnscape errors --variants blockwise_low_rank,local_window --set rank=1,4,16 --inputs all --tokens 512
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.error_table import measure_approximations, table_inputs, table_methods, table_problems
    from reports.definition_progress import counting
    from reports.error_table import error_blocks, error_document
    from reports.text_table import write_blocks

    _require_positive(seeds=seeds)
    with _refusing_requests():
        methods = table_methods(_words(variants), settings or [])
        shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "causal": causal}
        problems, kinds = table_problems(tokens, **shape), table_inputs(inputs)
        with counting("compared") as show:
            found = measure_approximations(methods, problems, kinds, seeds, show)
    if as_json:
        import msgspec

        print(msgspec.json.encode(error_document(found)).decode())
    else:
        write_blocks(error_blocks(found), sys.stdout)


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
    stop_after: Annotated[
        float | None, typer.Option(help="Begin no case after so many seconds; the same command goes on with them.")
    ] = None,
    longest_call: Annotated[
        float | None,
        typer.Option(
            help="Do not try what, by its shorter lengths, would take more seconds a call; its row says so.",
            show_default=False,
        ),
    ] = None,
    skip_compiled: SkipCompiledOption = False,
    processes: Annotated[
        int, typer.Option(help="Processes in which each case is timed, in turn; 8 let `compare` tell small changes.")
    ] = 1,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also the energy of a call, some 20 s for each timed case.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Only part I of N, as I/N, into a folder of its own; `attnscape merge` gathers.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where to measure: local; ray or slurm, on the machines of a cluster.")
    ] = "local",
    executor_settings: Annotated[
        list[str] | None, typer.Option("--executor-set", help="An option of the executor: slurm_partition=gpu.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; what it holds is not measured again.")] = RESULTS,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print what would run, with its memory, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Measure time, memory and errors; every row is on the disk at once, and a second run goes on where it stopped.

    Exit status: 0, 1 where a row of this run is wrong, 2 on bad input, 130 where it was stopped.

    \b
    Example:
      attnscape run --variants full,local_window --tokens 256:8192 --causal --seconds 300
    """  # noqa: D301  # \b keeps the example's line breaks
    _require_positive(seconds=seconds, timeout=timeout, processes=processes)
    _require_positive(stop_after=stop_after, longest_call=longest_call)
    _require_threads(threads)
    with _going_on(out):
        from dataclasses import replace

        from benchmarks.campaign import run_campaign, usable_threads
        from benchmarks.request_options import request_of
        from benchmarks.shard import Shard
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
                skip_compiled=skip_compiled,
                device=device,
                batch=batch,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
            )
            request = replace(request, shard=None if shard is None else Shard.parse(shard))
            if only_plan:
                _print_plan(request, as_json)
                return
            if executor == "local":
                _require_threads(threads, usable_threads())
            stop, longest = (float("inf") if given is None else given for given in (stop_after, longest_call))
            how = Settings(
                seconds=seconds,
                threads=threads,
                timeout_seconds=timeout,
                baseline_causal=baseline_causal,
                energy=energy,
                stop_after_seconds=stop,
                processes=processes,
                longest_call_seconds=longest,
            )
            with progress_of("measured") as progress:
                outcome = run_campaign(
                    request, out, how, progress, machine_device=device, executor=(executor, executor_settings or [])
                )
        _print_outcome(outcome, request.folder(out), as_json)
        if outcome.interrupted:
            raise KeyboardInterrupt
        raise typer.Exit(WRONG if any(row.status == "wrong" for row in outcome.rows) else 0)


@app.command()
def tune(
    max_error: Annotated[float, typer.Option(help="Largest relative error against exact attention.")],
    tokens: Annotated[
        int | None, typer.Option(help="Length; in mode decode, of the cache. A file of --inputs brings its own.")
    ] = None,
    variants: Annotated[str | None, typer.Option(help="Variants or folders, comma-separated; default: all.")] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Inputs whose errors count: kinds, or a file of `attnscape capture` with its own shape; of several "
            "the largest error counts. Default: captured where they reach this length, else normal."
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Hold a parameter: rank=4.")] = None,
    sampler: Annotated[
        str,
        typer.Option(help="auto (exhaustive below 200 points, else gp), exhaustive, gp, tpe, pso or random."),
    ] = "auto",
    evaluations: Annotated[int, typer.Option(help="Points that a sampler may try for each variant.")] = 60,
    seconds: Annotated[
        float, typer.Option(help="About how long in all: half to search, the rest to measure.")
    ] = TUNING_SECONDS,
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values; 0: as many as heads.")] = 0,
    head_dim: HeadDimOption = 64,
    dtype: DtypeOption = "float32",
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Whether a query sees no later keys.")] = False,
    mode: Annotated[str, typer.Option(help="forward, training or decode.")] = "forward",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all that this process may use.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a case counts as hanging.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Seed of the inputs, the sampled rows and the sampler.")] = 0,
    results: Annotated[Path, typer.Option("--results", help="Results folder; what it holds stays.")] = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Find for each variant the cheapest parameters whose error is small enough, and measure the best for `choose`.

    Errors are of float64 oracles on sampled rows while searching, and of the output itself when measured.
    Exit status: 0 where a variant keeps the error, 1 where none does, 2 on bad input.

    \b
    Examples:
      attnscape tune --tokens 512 --max-error 0.2 --variants blockwise_low_rank,local_window
      attnscape tune --inputs q.safetensors --max-error 0.1
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.campaign import usable_threads
    from benchmarks.inputs import UnavailableInputs
    from benchmarks.parameter_tuning import Wish, tune, wish_of
    from benchmarks.sweep import Settings
    from reports.definition_progress import counting
    from reports.progress import progress_of
    from reports.tuning_text import tuning_blocks

    _require_positive(evaluations=evaluations, seconds=seconds, timeout=timeout)
    _require_threads(threads, usable_threads())
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype}
    with _refusing_requests(), refusing(UnavailableInputs):
        names, problem, kinds, held = wish_of(
            _words(variants), tokens, inputs, settings or [], mode, device=device, causal=causal, **shape
        )
        wish = Wish(names, problem, kinds, max_error, held, sampler, evaluations, seconds, seed)
        how = Settings(seconds=seconds, threads=threads, timeout_seconds=timeout)
        with counting("searched") as show, progress_of("measured") as progress:
            found = tune(wish, results, how, show, progress)
    if as_json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        from reports.text_table import write_blocks

        write_blocks(tuning_blocks(found, str(results)), sys.stdout)
    if found.interrupted:
        print(f"attnscape: stopped; what is measured is in {results}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(0 if any(one.best for one in found.tuned) else NOTHING_FITS)


@app.command()
def compact(
    results: Annotated[Path, typer.Option("--results", help="Results folder.")] = RESULTS,
) -> None:
    """Fold the lines of a results folder into a Parquet file, which is smaller and faster to read.

    `attnscape run` does so by itself where the lines take 16 MiB. A crash at any point loses nothing.

    \b
    Example:
      attnscape compact --results results
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.append_log import StoreError
    from benchmarks.store import Store, read_folder

    with refusing(StoreError):
        read_folder(results)  # refuses a folder without results before a lock is made in it
        with Store(results) as store:
            count = store.compact()
            print(f"{count} measurements in {store.compacted}")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Results folders, such as those of shards; only read.")],
    out: Annotated[Path, typer.Option(help="Folder that gathers them; what it holds stays.")],
) -> None:
    """Gather several results folders in one: those of shards, or of several machines.

    \b
    Example:
      attnscape merge results/shard-* --out results
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.append_log import StoreError
    from benchmarks.store import merge_folders

    with refusing(StoreError):
        came, known = merge_folders(folders, out)
    print(f"{came} measurements came to {out}" + (f", {known} were there already" if known else ""))


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


@app.command()
def profile(
    variant: Annotated[str, typer.Argument(help="The variant, such as local_window/tiled.")],
    tokens: Annotated[int, typer.Option(help="Length of the sequence; in mode decode, of the cache.")],
    compare: Annotated[str | None, typer.Option(help="Another variant, to be put beside it.")] = None,
    mode: Annotated[str, typer.Option(help="forward, training or decode.")] = "forward",
    dtype: DtypeOption = "float32",
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Whether a query sees no later keys.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values; 0: as many as heads.")] = 0,
    head_dim: HeadDimOption = 64,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: window=128.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all that this process may use.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which it counts as hanging.")] = 300.0,
    out: Annotated[Path, typer.Option(help="Folder for the trace, the figures and the pictures.")] = Path("profiles"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Show where the time of one call goes: operators, memory over time, the roofline, and what bounds it.

    \b
    Example:
      attnscape profile local_window/tiled --tokens 4096 --causal --compare memory_efficient/sdpa_flash
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from benchmarks.campaign import problems_of, usable_threads
    from benchmarks.profile_session import cases_of, profile_cases
    from benchmarks.request_options import parameters_of
    from reports.profile_record import read_profile
    from reports.profile_text import comparison_table, files_text, profile_blocks
    from reports.progress import progress_of
    from reports.records import ResultsError
    from reports.text_table import write_blocks

    _require_positive(timeout=timeout)
    _require_threads(threads, usable_threads())
    shape: dict[str, Any] = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "device": device,
    }
    with _refusing_requests(), refusing(ResultsError):
        (problem,) = problems_of([tokens], [mode], dtype=dtype, causal=causal, **shape)
        names = (variant, compare) if compare else (variant,)
        cases = cases_of(names, problem, parameters_of(settings or ()))
        with progress_of("profiling, step") as progress:
            files = profile_cases(cases, out, threads or usable_threads(), timeout, progress)
        profiles = [read_profile(file) for file in files]
    from reports.profile_pictures import write_pictures  # only now: it loads matplotlib

    with refusing():
        pictures = write_pictures(profiles, files[0].with_suffix(""))
    if as_json:
        print(msgspec.json.encode(profiles).decode())
        return
    blocks = [block for each in profiles for block in profile_blocks(each)]
    if len(profiles) > 1:
        blocks.append(comparison_table(profiles))
    write_blocks([*blocks, files_text(profiles, files, pictures)], sys.stdout)


@app.command()
def gpu(
    out: Annotated[Path, typer.Option(help="Folder for the results; what it holds is not measured again.")] = Path(
        "results-gpu"
    ),
    seconds: Annotated[float, typer.Option(help="About how long to take.")] = 500.0,
    device: Annotated[str, typer.Option(help="cuda or cuda:N.")] = "cuda",
    only_plan: Annotated[bool, typer.Option("--plan", help="Print the stages and stop; needs no card.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Check and measure everything on a CUDA card, unattended: oracles, the named speeds, the landscape.

    Exit status: 0; 1 where a kernel is wrong, or a goal is missed on an H200; 2 on bad input, such as no card.

    \b
    Example:
      attnscape gpu --seconds 500
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from benchmarks.gpu_suite import run_suite, stages
    from benchmarks.store import holds_results
    from reports.gpu_goals import goals, goals_table
    from reports.listing import stages_table
    from reports.progress import progress_of
    from reports.records import ResultsError, decoded, read
    from reports.row_tables import failures_table
    from reports.text_table import write_blocks

    _require_positive(seconds=seconds)
    if only_plan:
        write_blocks([stages_table(stages(device))], sys.stdout)
        return
    with _refusing_requests(), refusing(ResultsError), ExitStack() as bars:
        notes: list[str] = []
        done = run_suite(out, device, seconds, lambda name: bars.enter_context(progress_of(name)), tell=notes.append)
        interrupted = any(outcome.interrupted for _, outcome in done)
        machine = done[0][1].machine
        if interrupted and not (machine and holds_results(out)):
            raise typer.Exit(INTERRUPTED)
        found = read(out).of_machine(machine["key"])
    reached = goals(found.rows, machine["gpu"]["name"])
    rows = decoded([row for _, outcome in done for row in outcome.rows])
    failed = [row for row in found.rows if row.status in ("wrong", "error")]  # what did not fit or end is no fault
    if as_json:
        counts = {"measured": len(rows), "failed": len(failed)}
        print(msgspec.json.encode({"goals": reached, **counts, "notes": notes}).decode())
    else:
        left = sum(outcome.left for _, outcome in done)
        said = f"{len(rows)} cases measured now, {len(found.rows)} in {out}; {left} left: the same command goes on."
        table = failures_table(found.rows)
        write_blocks([*([table] if table else []), goals_table(reached), *notes, said], sys.stdout)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(int(bool(failed) or any(goal.reached is False for goal in reached)))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Results folder or file; or a commit that asv measured.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same, to be held against A.")],
    fail_on: Annotated[
        str | None, typer.Option(help="Exit 1 where B has any of: slow, larger, worse, broken; comma-separated.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Share by which a time must change to matter.")] = 0.05,
    every: Annotated[bool, typer.Option("--all", help="Show what is the same, too.")] = False,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare although A and B are of different machines.")
    ] = False,
    machine: MachineOption = None,
    asv: AsvOption = ASV_RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Hold one set of measurements against another: each case SLOW, FAST, SAME or AMBIGUOUS, by paired intervals.

    Small changes are told where both sets were measured with `attnscape run --processes 8`.

    Exit status: 0; 1 where --fail-on says so; 2 on bad input.

    \b
    Examples:
      attnscape compare results-before results-after --fail-on slow,broken
      attnscape compare 1a2b3c4 5d6e7f8
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from reports.asv_results import read_commits, readings_of_commit
    from reports.comparison import Readings, compare, failing, readings_of_rows
    from reports.comparison_text import comparison_blocks
    from reports.records import ResultsError, read
    from reports.text_table import write_blocks

    def side(name: str) -> Readings:
        if Path(name).exists():
            found = read(Path(name)).of_machine(machine)
            return readings_of_rows(name, found.rows)
        try:
            return readings_of_commit(read_commits(asv, machine), name)
        except ResultsError as error:
            raise ResultsError(f"{name} is no file or folder, nor known as a commit: {error}") from error

    _require_positive(margin=margin)
    with refusing(ResultsError):
        failures = failing(_words(fail_on))
        a, b = side(first), side(second)
        if a.machine != b.machine and not across_machines:
            raise BadInput(
                f"A is of machine {a.machine}, B of {b.machine}; --across-machines compares them all the same"
            )
        found = compare(a, b, margin)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        write_blocks(comparison_blocks(found, every=every), sys.stdout)
    raise typer.Exit(int(any(found.count(verdict) for verdict in failures)))


@app.command()
def history(
    match: Annotated[str, typer.Option(help="Only series whose name contains this, such as track_ratio.")] = "",
    least_change: Annotated[float, typer.Option(help="Steps by less than this share are left out.")] = 0.03,
    fail_on_worse: Annotated[bool, typer.Option("--fail-on-worse", help="Exit 1 where any series stepped up.")] = False,
    machine: Annotated[str | None, typer.Option("--machine", help="Only this machine, as asv calls it.")] = None,
    asv: AsvOption = ASV_RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Find the commits on which asv's figures stepped, by change-point detection over the whole history.

    Exit status: 0; 1 where --fail-on-worse says so; 2 on bad input.

    \b
    Example:
      attnscape history --match track_ratio
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from reports.asv_results import read_commits
    from reports.history import find_steps, history_blocks
    from reports.records import ResultsError
    from reports.text_table import write_blocks

    _require_positive(**{"least-change": least_change})
    with refusing(ResultsError):
        found = find_steps(read_commits(asv, machine), match, least_change)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        write_blocks(history_blocks(found), sys.stdout)
    raise typer.Exit(int(fail_on_worse and any(step.worse for step in found.steps)))


@app.command("validate-choice")
def validate_choice(
    results: ResultsOption = RESULTS,
    budgets: Annotated[int, typer.Option(help="Random budgets for each shape and held-out length.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the budgets.")] = 0,
    machine: MachineOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Choose under random budgets without the rows of a length, and hold the choices against those rows.

    \b
    Example:
      attnscape validate-choice --results reports/measured/cpu-cbcc8252b1
    """  # noqa: D301  # \b keeps the example's line breaks
    import msgspec

    from reports.choice_validation import regret_tables, validate_choice
    from reports.records import ResultsError, read
    from reports.text_table import write_blocks

    _require_positive(budgets=budgets)
    with refusing(ResultsError):
        found = read(results).of_machine(machine)
        report = validate_choice(found.rows, found.description(), budgets, seed, _declared_costs)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        write_blocks(regret_tables(report), sys.stdout)


@app.command()
def peers(
    names: Annotated[
        str | None, typer.Option("--peers", help="Packages or package/form, comma-separated; default: all.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Lengths: 1024,4096 or 1024:16384 (doubling).")] = "4096,16384",
    batch: BatchOption = 1,
    heads: HeadsOption = 8,
    head_dim: HeadDimOption = 64,
    dtype: DtypeOption = "float32",
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 1800.0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a peer counts as hanging.")] = 300.0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all that this process may use.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for peers.jsonl; what it holds is not measured again.")] = RESULTS,
    folder: Annotated[
        Path | None, typer.Option("--declarations", help="Folder of your own declarations of peers, in place of ours.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Measure nothing; show what --out holds.")] = False,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print what would run, with its memory, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Measure variants beside other packages' attention on the CPU, in turns, and find those packages' defects.

    Nothing is installed: a package that is missing becomes a row. pip install 'attnscape[peers]' brings them.

    \b
    Examples:
      attnscape peers --plan
      attnscape peers --peers local-attention,entmax --tokens 1024 --seconds 60
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.campaign import usable_threads
    from benchmarks.peer_comparison import compare_peers, kept_rows, plan_pairs, requested
    from benchmarks.peer_declaration import InvalidPeers
    from benchmarks.sweep import Settings
    from reports.peer_table import PeerTableError, check_markdown, peer_blocks, plan_blocks, write_markdown
    from reports.progress import progress_of

    _require_positive(seconds=seconds, timeout=timeout)
    _require_threads(threads, usable_threads())
    with _refusing_requests(), refusing(InvalidPeers, PeerTableError):
        request = requested(tokens, _words(names), folder, batch=batch, heads=heads, head_dim=head_dim, dtype=dtype)
        if only_plan:
            planned = plan_pairs(request)
            _print_blocks(planned, plan_blocks(planned), as_json)
            return
        check_markdown(markdown)
        interrupted = False
        if show:
            rows = list(kept_rows(request, out))
        else:
            how = Settings(seconds=seconds, threads=threads or usable_threads(), timeout_seconds=timeout)
            with progress_of("compared") as progress:
                outcome = compare_peers(request, out, how, progress)
            rows, interrupted = outcome.rows, outcome.interrupted
        if markdown is not None:
            write_markdown(markdown, rows)
        _print_blocks(rows, peer_blocks(rows), as_json)
    if interrupted:
        print(f"attnscape: stopped; what is done is in {out}, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


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
    """Write the generated documents of a checkout: pages and pictures of the definitions, tables, the page of commands.

    What was computed of a definition is kept, and computed anew where its sources changed. The check computes nothing.

    \b
    Example:
      attnscape docs --check
    """  # noqa: D301  # \b keeps the example's line breaks
    from benchmarks.definition_facts import described_definitions
    from reports.definition_store import definition_pages, facts_path, orphans, stale_facts
    from reports.documents import DocumentsError, write_documents
    from reports.error_table import error_markdown, stored_table

    folder = Path(__file__).parent
    items = described_definitions()
    stale = set() if only_check else set(_computed_documents(folder, items))
    stale |= {facts_path(folder, item.name) for item in stale_facts(folder, items)}
    pages, table = definition_pages(folder, items)
    parts = {("README.md", "variants"): table, ("README.md", "example"): _worked_example(folder)}
    errors_file, fingerprint = _errors_file(folder)
    if (rows := stored_table(errors_file, fingerprint)) is None:
        stale.add(errors_file)
    else:
        parts["docs/errors.md", "errors"] = error_markdown(rows)
    left = orphans(folder, items)
    with refusing(DocumentsError):
        stale |= {*write_documents(folder, parts, _command_helps(), pages, only_check=only_check), *left}
    if not only_check:
        for path in left:
            path.unlink()
    for path in sorted(stale):
        print(f"{path.relative_to(folder)} is out of date" if only_check else path.relative_to(folder))
    raise typer.Exit(1 if only_check and stale else 0)


def _computed_documents(folder: Path, items: Sequence[Any]) -> list[Path]:
    """Compute what documents show and no longer holds; returns the files that were written."""
    from benchmarks.definition_facts import page_facts
    from benchmarks.error_table import usual_table
    from reports.definition_progress import counting
    from reports.definition_store import update_facts
    from reports.error_table import store_table, stored_table

    with counting("computed definitions:") as show:
        written = update_facts(folder, items, page_facts, show)
    path, fingerprint = _errors_file(folder)
    if stored_table(path, fingerprint) is None:
        with counting("computed errors:") as show:
            store_table(path, fingerprint, usual_table(show))
        written.append(path)
    return written


def _errors_file(folder: Path) -> tuple[Path, str]:
    """Where the table of errors of the documents is kept, and the hash of the sources that it must come from."""
    from benchmarks.error_table import usual_fingerprint

    return folder / "docs" / "errors.json", usual_fingerprint()


def _worked_example(folder: Path) -> str:
    """The README's question and its answer, from the measured figures that the checkout ships."""
    import contextlib
    import io
    import shlex

    command = 'choose --on "EPYC with avx512_bf16" --tokens 3000 --causal --max-ms 40 --max-error 0.5'
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer), contextlib.chdir(folder):
        main(shlex.split(command))
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
    from benchmarks.append_log import StoreError
    from benchmarks.campaign import InvalidRequest
    from benchmarks.executor import ExecutorError
    from benchmarks.lengths import InvalidLengths
    from benchmarks.recorded import InvalidCapture
    from benchmarks.shard import InvalidShard
    from variants import InvalidProblem
    from variants.catalogue import UnknownVariant
    from variants.definition import InvalidParameter
    from variants.installed import CatalogueError
    from variants.variant import RegistryError

    faults = (InvalidRequest, InvalidLengths, StoreError, InvalidProblem, UnknownVariant, InvalidParameter)
    with refusing(*faults, InvalidCapture, RegistryError, CatalogueError, InvalidShard, ExecutorError):
        yield


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _require_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"--{name.replace('_', '-')} must be positive, not {value:g}")


def _require_threads(threads: int, usable: float = float("inf")) -> None:
    if threads < 0:
        raise BadInput(f"--threads must be 0, for all that this process may use, or how many, not {threads}")
    if threads > usable:
        raise BadInput(f"--threads must be at most {usable:g}, which is what this process may use, not {threads}")


@contextmanager
def _going_on(out: Path) -> Iterator[None]:
    """Say after Ctrl-C, whenever it comes, that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"attnscape: stopped; what is done is in {out}, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


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

    share = outcome.measured_share
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
        summary += f"\n{outcome.left} cases had no time left: the same command goes on with them."
    write_blocks([*([run_table(timed)] if timed else []), *([failed] if failed else []), summary], sys.stdout)


def _print_blocks(items: Sequence[Any], blocks: Sequence[Any], as_json: bool) -> None:
    """The items as one JSON document, or the blocks that show them."""
    import msgspec

    from reports.text_table import write_blocks

    if as_json:
        print(msgspec.json.encode([msgspec.to_builtins(item) for item in items]).decode())
    else:
        write_blocks(blocks, sys.stdout)


def _print_rows(rows: Sequence[Any]) -> None:
    import msgspec

    print(msgspec.json.encode([msgspec.to_builtins(row) for row in rows]).decode())


if __name__ == "__main__":
    sys.exit(main())
