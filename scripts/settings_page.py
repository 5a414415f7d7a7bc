"""Print docs/settings.md, made from the fields of ``Settings``. ``make docs`` writes it."""

from __future__ import annotations

from causerie.cli.options import default_of, flag_of, metavar_of
from causerie.config import ENV_PREFIX, SECRETS, Settings

HEADER = """\
# Settings

Every setting can be given in three ways. The nearer to the command wins: flag, then environment variable, then
the file that `--config FILE` (or `CAUSERIE_CONFIG`) names. The file is YAML with one `name: value` line for each
setting; an unknown name is an error. What is secret has neither flag nor line: a flag is seen by everybody on
the machine, and files are passed around.

```yaml
# causerie.yaml, for: causerie serve --config causerie.yaml
port: 9000
max_batch_size: 16
```

`causerie serve` takes all of them; `ask`, `chat` and `pull` take those that matter to them.

| flag | variable | file | value | default | meaning |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = []
    for name, field in Settings.model_fields.items():
        value = metavar_of(field).replace("|", ", ")
        cells = (
            f"`{flag_of(name)}`" if name not in SECRETS else "",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{name}`" if name not in SECRETS else "",
            value,
            f"`{default_of(field)}`",
            (field.description or "").replace("|", "\\|"),
        )
        rows.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(rows) + FOOTER


FOOTER = """
Not settings of the server, but read by the commands: `CAUSERIE_SERVER` is `--server` of `ask` and `chat`, and
`CAUSERIE_API_KEY` the key that they send to it ([docs/keys.md](keys.md));
`CAUSERIE_CACHE` is the folder that models are kept in (default: `causerie` in the user's cache directory).
"""

if __name__ == "__main__":
    print(page(), end="")
