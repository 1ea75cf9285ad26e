"""`linmu run`: one prompt, answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linmu.commands.options import BackendOption, BundleArgument, JsonOption, ThreadsOption
from linmu.commands.output import open_results, say
from linmu.errors import InputError
from linmu.files.atomic import check_file_target

if TYPE_CHECKING:
    from linmu.runtimes.constraints import Constraint
    from linmu.runtimes.sampling import Choice
    from linmu.runtimes.session import Session

EXAMPLES = 'Example: linmu run bundle --prompt "What is in this picture?" --image cat.png'


def command(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Option("--image", help="Image file; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option("--video", help="Video file.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt in front of the conversation.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, help="Tokens to generate (0: only read the prompt).")
    ] = 128,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer; repeatable.")] = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Control tokens in the prompt are control tokens, not text.")
    ] = False,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    save_state: Annotated[Path | None, typer.Option("--save-state", help="Write the state afterwards.")] = None,
    load_state: Annotated[Path | None, typer.Option("--load-state", help="Continue from a saved state.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 = greedy; above, sample.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this sum.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample from so many of the likeliest tokens (0: all).")] = 0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Sample from tokens with this share of the likeliest one's probability.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")] = None,
    presence_penalty: Annotated[
        float, typer.Option("--presence-penalty", help="Taken from the logits of tokens that were generated.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", help="Taken from them for every time.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Divides logits of tokens in prompt and answer (1: none).")
    ] = 1.0,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", help="With --json: log probabilities, and so many alternatives (0-20).")
    ] = None,
    response_format: Annotated[
        str, typer.Option("--response-format", help="text, or json_object: the answer is a JSON object.")
    ] = "text",
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", help="File with a JSON schema that the answer follows.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Answer a prompt, greedily unless told otherwise; tokens appear as they come."""
    if save_state is not None and not save_state.absolute().parent.is_dir():
        raise InputError(f"--save-state {save_state}", got="no such folder", fix="make the folder first")
    if save_state is not None:
        check_file_target(save_state)
    with open_results() as results:
        from linmu.runtimes.sampling import Sampling
        from linmu.runtimes.session import load

        sampling = Sampling(
            temperature,
            top_p,
            seed,
            top_k,
            min_p,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            logprobs=logprobs,
        )
        if logprobs is not None and not json_output:
            raise InputError("--logprobs without --json", fix="add --json")
        schema = wanted_schema(response_format, json_schema)
        session = load(bundle, backend=backend, threads=threads)
        if load_state is not None:
            session.state.load(load_state)
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "sampling": sampling,
            "stop": stop,
            "constraint": None if schema is None else held_to(session, schema),
            "system": system,
            "parse_special": parse_special,
        }
        pictures = list(images or [])
        if json_output:
            answer = session.generate(prompt, pictures, video, **options)
            told = {"logprobs": shown_logprobs(session, answer.logprobs)} if logprobs is not None else {}
            results.json({**asdict(answer), **told})
            notice = answer.notice
        else:
            for piece in session.stream(prompt, pictures, video, **options):
                results.text(piece.text)
                if results.gone:  # nobody reads: what was generated is in the state
                    break
            else:
                results.text("\n")
                say(
                    f"{piece.prompt_tokens} prompt tokens, first token after {piece.timings['ttft_ms']:.0f} ms, "
                    f"{piece.timings['tokens_per_s']:.1f} tokens/s, state {session.state.nbytes / 2**20:.1f} MiB"
                )
            notice = piece.notice
        if notice:
            say(notice)
        if save_state is not None:
            session.state.save(save_state)


def wanted_schema(response_format: str, file: Path | None) -> Any:
    """The JSON schema that is asked for, None for plain text; raises InputError for a file that holds none."""
    formats = ("text", "json_object")
    if response_format not in formats:
        raise InputError("--response-format", got=repr(response_format), expected=" or ".join(formats))
    if file is None:
        return {"type": "object"} if response_format == "json_object" else None
    if response_format != "text":
        raise InputError("--json-schema and --response-format", fix="give one of them")
    from linmu.files.strict_json import read_json

    schema = read_json(file, "the JSON schema")
    if not isinstance(schema, dict | bool):
        raise InputError(f"the JSON schema {file}", got=type(schema).__name__, expected="a JSON object")
    return schema


def held_to(session: Session, schema: Any) -> Constraint:
    """What holds an answer to a schema."""
    from linmu.serving.schema import Grammars

    return Grammars(session.processor).json_schema(schema)


def shown_logprobs(session: Session, choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """Log probabilities with the tokens' texts."""

    def shown(token: int, logprob: float | None) -> dict[str, Any]:
        text = session.processor.token_bytes(token).decode("utf-8", "replace")
        return {"token_id": token, "token": text, "logprob": logprob}

    return [{**shown(choice.token, choice.logprob), "top": [shown(*item) for item in choice.top]} for choice in choices]
