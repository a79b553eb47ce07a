"""Finds files that look like secrets (keys, passwords, tokens) by name or content. They are left out of run cards."""

import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

_NAMES = (
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "id_rsa*", "id_ed25519*"),
    *(".netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", "kaggle.json", "*credential*", "*secret*", "*passw*"),
    *("service[-_]account*", "token", "token.*", "*[-_]token.*", "*[-_]tokens.*", "tokens.txt", "tokens.json"),
)
_FOLDERS = ("*secret*", "*credential*", ".ssh", ".aws", ".gnupg", ".kube")
# Detectors of detect-secrets that are not used: those that measure entropy take every hash for a secret.
_NO_DETECTORS = ("HexHighEntropyString", "Base64HighEntropyString", "IPPublicDetector")
# Not found by the others: Hugging Face's tokens; a long value with digits that is called a key or a token.
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|glpat-[\w-]{20,}|wandb_v1_\w{20,})\b")
_NAMED = re.compile(r"""(?i)(?:token|key)["'\]]{0,2}\s*[:=]\s*(["']?)([\w+/=.-]{20,})\1"?\s*(?:[,}\]#]|$)""")
# Without quotes; not the value of a variable, a command or a path. That of a token has a digit.
_BARE_NAME = r"(?:(?:passw(?:or)?d|secret)\w{0,30}|token(?=\W+\S*\d))"
_BARE = re.compile(
    rf"(?i)(?:{_BARE_NAME}\s*=\s*|^\s*(?:set_)?env\s+\w*{_BARE_NAME}\s+)(?!\d+\s)"
    r"""[^\s$"'`(){}<>/~=][^\s"'`(){}<>]{5,}(?:\s|$)"""
)
_COMMAND = re.compile(r'"\s*[%!]([^"]+)')  # a line of a notebook that IPython or a shell runs
_BARE_IN = frozenset({"", ".sh"})  # as in Dockerfile and .dvc/config
_A_TOKEN = "looks like a secret (a token or a password)"
_ALLOWED = "pragma: allowlist secret"


def is_secret(name: str) -> bool:
    """Whether the name of a file, or of a folder above it, suggests that it holds a secret."""
    path = PurePosixPath(name.lower())
    return any(fnmatch(path.name, pattern) for pattern in _NAMES) or any(
        fnmatch(folder, pattern) for folder in path.parts[:-1] for pattern in _FOLDERS
    )


def find_secret(file: Path) -> str | None:
    """Where a text file holds what looks like a secret, as "line 3 looks like a secret (...)"; None where it does not.

    A line with the comment `pragma: allowlist secret` passes. The secret itself is not in the answer.
    """
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    if file.suffix == ".ipynb":
        return _find_in_notebook(file)
    detectors = {str(detector.__name__) for detector in get_mapping_from_secret_type_to_class().values()}
    plugins = [{"name": name} for name in sorted(detectors - set(_NO_DETECTORS))]
    with transient_settings({"plugins_used": plugins}):
        for secret in scan_file(str(file)):
            return f"line {secret.line_number} looks like a secret ({secret.type.lower()})"
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if _ALLOWED not in line and _holds_secret(line, file.suffix):
            return f"line {number} {_A_TOKEN}"
    return None


def _find_in_notebook(file: Path) -> str | None:
    """The same for a notebook, where each line of code is a text in JSON with a line end and quotes as escapes."""
    text = file.read_text(encoding="utf-8", errors="replace").replace('\\n"', ' #"').replace('\\"', '"')
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "notebook.py")
        code.write_text(text, encoding="utf-8")
        if (reason := find_secret(code)) is not None:
            return reason
    for number, line in enumerate(text.splitlines(), 1):
        if _ALLOWED not in line and any(map(_BARE.search, _COMMAND.findall(line))):
            return f"line {number} {_A_TOKEN}"
    return None


def _holds_secret(line: str, suffix: str) -> bool:
    match = _NAMED.search(line)
    # Without quotes, code names another variable there.
    has_value = match is not None and (bool(match[1]) or suffix not in (".py", ".pyi"))
    named = match is not None and has_value and sum(map(str.isdigit, match[2])) >= 3
    return named or _TOKEN.search(line) is not None or (suffix in _BARE_IN and _BARE.search(line) is not None)
