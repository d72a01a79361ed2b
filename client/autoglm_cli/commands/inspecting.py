"""`autoglm inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from autoglm_cli.device_lines import NAMES, device_lines
from autoglm_cli.errors import needs
from autoglm_cli.home import artifact_of
from autoglm_cli.options import shared
from autoglm_cli.output import SafeConsole, print_json
from autoglm_cli.paths import artifact_folder, repository_folder

from .export import manifest_json
from .runtime_choice import choice_line


def inspect(
    artifact: Annotated[
        Path | None,
        typer.Argument(
            envvar="AUTOGLM_ARTIFACT",
            help="Artifact folder, or a name of `autoglm models`. \\[default: what `autoglm serve` would take]",
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its SHA-256.")] = False,
    repository: shared.Repository = None,
    json: shared.Json = False,
) -> None:
    """Show what an exported artifact is: model, runtime, limits, files, parity with its checkpoint.

    \b
    Examples:
      autoglm inspect
      autoglm inspect build/model --verify
      autoglm inspect --json | jq .parity
    """
    folder = artifact_of(artifact) if artifact else artifact_folder(None, repository_folder(repository))
    manifest = needs("autoglm_engine.manifest", "serve").Manifest.load(folder)
    manifest.verify_files(folder, digests=verify)
    described = {**manifest_json(manifest, folder), **_of_template(folder, manifest)}
    if json:
        print_json({**described, "verified": verify})
    else:
        _show(described, verified=verify)


def _of_template(folder: Path, manifest: Any) -> dict[str, Any]:
    """`calls`: an example of how the model calls functions; `thinking`: the marks around what it thinks. None where it
    has no chat template, or that shows none."""
    texts = needs("autoglm_engine.tokenizer.artifact_texts", "serve")
    if not (folder / texts.TEMPLATE_NAME).exists():
        return {"calls": None, "thinking": None}
    kind = needs("autoglm_engine.tokenizer.checkpoint_template", "serve").ChatTemplate
    template = kind.load(folder, texts.load_tokenizer(folder), manifest)
    try:
        marks = template.thinking
        return {"calls": str(template.call_form.example()), "thinking": marks and [marks.begin, marks.end]}
    finally:
        template.close()


def _show(described: dict[str, Any], *, verified: bool) -> None:
    table = Table(show_header=False, box=None)
    rows = {
        **described,
        "bytes": f"{described['bytes']:,}",
        **_of_answers(described),
        "runtime_details": _details(described["runtime_details"]),
        "parity": _parity(described["parity"]),
        "calls": described["calls"] or "no chat template: conversations and tools are refused",
        "thinking": " ... ".join(described["thinking"] or ()) or "no marks of it in the chat template",
        **({"gpu": "\n".join(found)} if (found := device_lines(described["runtime_details"])) else {}),
        "files": "every SHA-256 is right" if verified else "present in full size (--verify checks their content)",
    }
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), str(value))
    SafeConsole().print(table)


def _of_answers(described: dict[str, Any]) -> dict[str, str]:
    banned = len(described["banned_tokens"])
    return {
        "eos_token_ids": ", ".join(map(str, described["eos_token_ids"])) or "none",
        "special_tokens": _plain(described["special_tokens"] or {}) or "none",
        "generation_defaults": _plain(described["generation_defaults"]) or "none",
        "stop_strings": _plain([repr(text) for text in described["stop_strings"]]),
        "banned_tokens": f"{banned} sequence{'' if banned == 1 else 's'}" if banned else "none",
    }


def _details(details: dict[str, Any]) -> str:
    """What a person would want of them; --json has all."""
    left_out = ("tensors", "cache_dtype", "library_sources", *NAMES)
    shown = {name: value for name, value in details.items() if name not in left_out}
    if "tensors" in details:
        shown["tensors"] = len(details["tensors"])
    if "libraries" in details:
        shown["libraries"] = f"{', '.join(details['libraries'])}; {_loaded_here(details['libraries'])}"
    if "auto" in details:
        shown["auto"] = choice_line(details["auto"])
    return "\n".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in shown.items())


def _loaded_here(libraries: dict[str, Any]) -> str:
    engine = needs("autoglm_engine.runners.native.library", "serve")
    try:
        return f"this CPU loads {engine.choose_library(libraries)}"
    except needs("autoglm_engine.errors", "serve").ArtifactError as error:
        return str(error)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name} ({_plain(part)})" if isinstance(part, dict) else f"{name} {_plain(part)}"
            for name, part in value.items()
        )
    if isinstance(value, list):
        is_range = len(value) == 2 and all(isinstance(part, int) for part in value)
        return f"{value[0]} ... {value[1]}" if is_range else ", ".join(str(part) for part in value) or "none"
    return str(value)


def _parity(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not checked (autoglm export --check does)"
    ratio = f", perplexity ratio {report['perplexity_ratio']:.4f}" if "perplexity_ratio" in report else ""
    return ("passed" if report.get("passed") else "failed") + ratio
