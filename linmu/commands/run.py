"""`linmu run`: one prompt, answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linmu.commands.options import BackendOption, BundleArgument, JsonOption, ThreadsOption
from linmu.commands.output import open_results, say
from linmu.errors import InputError
from linmu.files.atomic import check_file_target

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
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")] = None,
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

        sampling = Sampling(temperature, top_p, seed)
        session = load(bundle, backend=backend, threads=threads)
        if load_state is not None:
            session.state.load(load_state)
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "sampling": sampling,
            "stop": stop,
            "system": system,
            "parse_special": parse_special,
        }
        pictures = list(images or [])
        if json_output:
            answer = session.generate(prompt, pictures, video, **options)
            results.json(answer)
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
