"""`python -m deploy.options`: bring every place up to date, and say which were not."""

from __future__ import annotations

from .surfaces import ROOT, out_of_date


def main() -> None:
    for path, text in out_of_date().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
