"""Secrets that lie about in a project: neither a run's card, nor MLflow, nor a message ever shows one."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tracking_support import evaluate, train
from training_support import TrainableProject, git

from twinrun.base.files import write_text
from twinrun.cli import main as cli
from twinrun.doctor.code import check
from twinrun.record.card import collect_code
from twinrun.tracking.store import find_tracker

VALUE = "c0ffee1234deadbeef5678c0ffee9012"
AWS = "AKIA" + "IOSFODNN7EXAMPLQ"

# Files that no stage uses: never taken along, whatever they hold.
ELSEWHERE = {
    "kaggle.json": f'{{"username": "joe", "key": "{VALUE}"}}',
    "service-account.json": f'{{"private_key": "{VALUE}"}}',
    "token.txt": VALUE,
    "secrets/db.yaml": f"password: {VALUE}",
    "prod.ini": f"[db]\npassword = {VALUE}",
    "passwords.md": f"- the database: {VALUE}",
    "notes/todo.md": f"call Ann, {VALUE}",
    "notebooks/explore.py": f"login('{VALUE}')",
    "data/raw/photos/kaggle.json": f'{{"key": "{VALUE}"}}',
}
# Files where the code of a stage lies: refused by their names or by what is in them.
AMONG_CODE = {
    "src/kaggle.json": f'{{"username": "joe", "key": "{VALUE}"}}',
    "src/service-account.json": "{}" + VALUE,
    "src/token.txt": VALUE,
    "src/secrets/db.py": f"value = '{VALUE}'",
    "src/settings.ini": f"[db]\npassword = {VALUE}\n",
    "src/db.yaml": f"host: db\npassword: {VALUE}\n",
    "src/api.yaml": f"api_token: {VALUE}\n",
    "src/client.py": f'import os\n\nAPI_KEY = "{VALUE}"\n',
    "src/url.py": f'STORE = "https://joe:{VALUE}@example.org/mlflow"\n',
    "pipeline/upload.py": f'KEY = "{AWS}"  # {VALUE}\n',
    "networks/pull.py": f'TOKEN = "hf_{VALUE}AbCd"\n',
    "src/key.txt": f"-----BEGIN RSA PRIVATE KEY-----\n{VALUE}\n",
    "src/upload.sh": f"export DB_PASSWORD={VALUE}\n",
    "src/image.sh": f"FROM x\nENV PASSWORD {VALUE}\n",
    "networks/variable.ipynb": f'{{"source": ["%env MLFLOW_TRACKING_PASSWORD={VALUE}\\n", "x"]}}',
    "networks/command.ipynb": f'{{"source": ["!mlflow --password={VALUE}"]}}',
    "networks/explore.ipynb": f'{{"source": ["os.environ[\\"WANDB_API_KEY\\"] = \\"{VALUE}\\"\\n"]}}',
}


@pytest.fixture
def repository(tracked_project: Path) -> Path:
    """A repository with one tracked file, in the working folder."""
    write_text("lr = 0.1\n", tracked_project / "src/train.py")
    git(tracked_project, "init", "--quiet")
    git(tracked_project, "add", "src", "params.yaml")
    git(tracked_project, "commit", "--quiet", "--message", "Begin")
    return tracked_project


@pytest.mark.parametrize("name", [*ELSEWHERE, *AMONG_CODE])
def test_a_secret_is_never_taken_into_a_card(name: str, repository: Path) -> None:
    write_text({**ELSEWHERE, **AMONG_CODE}[name], repository / name)

    code = collect_code(repository)

    assert VALUE not in code.diff
    assert name in code.left_out
    if name in AMONG_CODE:
        (line,) = code.lines()
        assert line.startswith(f"Not in the run's card: {name}, since ")
        assert VALUE not in line


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_secret_in_a_change_of_a_tracked_file_stays_out_of_the_patch(change: str, repository: Path) -> None:
    secret = f'PASSWORD = "{VALUE}"\n'
    write_text("batch = 1\n", repository / "src/other.py")
    write_text(secret if change == "removed" else "\n", repository / "src/config.py")
    git(repository, "add", "src")
    git(repository, "commit", "--quiet", "--message", "More")
    write_text(secret if change == "added" else "\n", repository / "src/config.py")
    write_text("batch = 2\n", repository / "src/other.py")

    code = collect_code(repository)

    assert VALUE not in code.diff
    assert "src/config.py" in code.secrets
    assert "+batch = 2" in code.diff


@pytest.mark.parametrize("mark", ["--assume-unchanged", "--skip-worktree"])
def test_a_secret_in_a_file_whose_changes_git_does_not_show_stays_out_of_the_patch(mark: str, repository: Path) -> None:
    git(repository, "update-index", mark, "src/train.py")
    write_text(f'PASSWORD = "{VALUE}"\n', repository / "src/train.py")

    code = collect_code(repository)

    assert VALUE not in code.diff
    assert "src/train.py" in code.secrets


@pytest.mark.parametrize("name", [".env", ".pgpass", "src/config.py"])
@pytest.mark.parametrize("change", ["deleted", "git rm", "git rm --cached", "became a link", "became a folder"])
def test_a_tracked_secret_that_is_deleted_stays_out_of_the_patch(change: str, name: str, repository: Path) -> None:
    file = repository / name
    write_text(f'PASSWORD = "{VALUE}"\n', file)
    write_text("batch = 1\n", repository / "src/other.py")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "More")
    write_text("batch = 2\n", repository / "src/other.py")
    if change.startswith("git rm"):
        git(repository, *change.split()[1:], name)
    else:
        file.unlink()
    if change == "became a link":
        file.symlink_to("train.py")
    if change == "became a folder":
        write_text("lr = 0.2\n", file / "part.md")

    code = collect_code(repository)

    assert VALUE not in code.diff
    assert "+batch = 2" in code.diff
    assert name in code.secrets
    assert code.left_out.count(name) == 1
    assert any(line.startswith(f"Not in the run's card: {name}, since ") for line in code.lines())


def test_a_file_whose_deleted_version_held_a_secret_is_not_listed_as_taken(repository: Path) -> None:
    write_text(f'PASSWORD = "{VALUE}"\n', repository / "src/config.py")
    git(repository, "add", "src")
    git(repository, "commit", "--quiet", "--message", "More")
    git(repository, "rm", "--cached", "src/config.py")
    write_text("batch = 1\n", repository / "src/config.py")

    code = collect_code(repository)

    assert "src/config.py" in code.left_out
    assert "src/config.py" not in code.taken
    assert VALUE not in code.diff


def test_a_tracked_file_that_is_named_as_secrets_are_stays_out_of_the_patch(repository: Path) -> None:
    write_text("db:5432:joe:before\n", repository / ".pgpass")
    git(repository, "add", ".pgpass")
    git(repository, "commit", "--quiet", "--message", "More")
    write_text("db:5432:joe:after\n", repository / ".pgpass")

    code = collect_code(repository)

    assert "joe" not in code.diff
    assert ".pgpass" in code.left_out
    assert any(line.startswith("Not in the run's card: .pgpass, since ") for line in code.lines())


def test_tracked_code_is_judged_by_what_it_holds_and_not_by_its_name(repository: Path) -> None:
    write_text("VOCABULARY = 1\n", repository / "src/token.py")
    git(repository, "add", "src/token.py")
    git(repository, "commit", "--quiet", "--message", "More")
    write_text("VOCABULARY = 2\n", repository / "src/token.py")

    code = collect_code(repository)

    assert "+VOCABULARY = 2" in code.diff
    assert "src/token.py" not in code.left_out


def test_a_secret_in_a_file_that_git_calls_binary_stays_out_of_the_patch(repository: Path) -> None:
    write_text("*.py -diff\n", repository / ".gitattributes")
    write_text(f'PASSWORD = "{VALUE}"\n', repository / "src/train.py")

    code = collect_code(repository)

    assert "src/train.py" in code.secrets
    assert "src/train.py" not in code.diff


def test_code_that_speaks_of_secrets_and_holds_none_is_taken_and_listed(repository: Path) -> None:
    write_text(
        "import os\n\n\ndef login(password: str, token=None):\n    key = os.environ['API_KEY']\n"
        "    weights = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'\n"
        '    example = "https://joe:hunter2@example.org"  # pragma: allowlist secret\n',
        repository / "src/login.py",
    )

    code = collect_code(repository)

    assert "src/login.py" in code.diff
    assert code.lines() == ["Untracked code that goes into the run's card: src/login.py."]
    assert code.left_out == ("mlruns/mlflow.db",) or not code.secrets


def test_commands_with_names_of_files_and_variables_are_no_secrets(repository: Path) -> None:
    write_text("token = tokenize.py --all\nENV PASSWORD_FILE /run/password\n", repository / "src/prepare.sh")
    write_text('{"source": ["!train --token=tokens.txt\\n", "%env PASSWORD=$FROM_VAULT"]}', repository / "src/a.ipynb")

    assert collect_code(repository).taken == ("src/a.ipynb", "src/prepare.sh")


def test_what_dvc_yaml_names_is_taken_and_none_takes_nothing(repository: Path) -> None:
    write_text("stages: {train: {cmd: x, deps: [tools/prepare.py, data/raw]}}\n", repository / "dvc.yaml")
    for name in ("tools/prepare.py", "tools/other.py", "data/raw/labels.json", "src/new.py"):
        write_text("x = 1\n", repository / name)

    code, nothing = collect_code(repository), collect_code(repository, "none")

    assert code.taken == ("dvc.yaml", "src/new.py", "tools/prepare.py")
    assert {"tools/other.py", "data/raw/labels.json"} <= set(code.left_out)
    assert (nothing.taken, nothing.diff) == ((), "")
    assert "src/new.py" in nothing.left_out


def test_training_lists_what_it_takes_and_leaves_out_and_the_store_never_sees_a_secret(
    trainable: TrainableProject, capfd: pytest.CaptureFixture[str]
) -> None:
    write_text("x = 1\n", trainable.folder / "src/more.py")
    write_text(AMONG_CODE["src/client.py"], trainable.folder / "src/client.py")

    trainable.train_here()

    printed = "".join(capfd.readouterr())
    assert "src/more.py" in printed
    assert "Not in the run's card: src/client.py, since line 3 looks like a secret" in printed
    stored = [*(trainable.folder / "mlruns").rglob("*"), *(trainable.folder / "data/out").rglob("*")]
    assert not any(VALUE.encode() in file.read_bytes() for file in stored if file.is_file())


COMMANDS = (["sync"], ["models"], ["show", "1"], ["diff", "1", "2"], ["promote", "1"], ["doctor"], ["reproduce", "1"])


@pytest.mark.parametrize(
    "address",
    [
        f"http://joe:{VALUE}@127.0.0.1:9",
        f"http://joe:{VALUE}%40x@127.0.0.1:9/base",
        f"postgresql://joe:{VALUE}@127.0.0.1:9/mlflow",
        f"http://:{VALUE}@127.0.0.1:9",
        f"http://joe:{VALUE}[x@127.0.0.1:9",
        f"http://joe:x/{VALUE}@127.0.0.1:9",
        f"http://joe:2024/{VALUE}@127.0.0.1:9",
        f"http://joe/{VALUE}@127.0.0.1:9",
        f"http://joe:{VALUE}#x@127.0.0.1:9",
        f"postgresql://joe:x/{VALUE}@127.0.0.1:9/mlflow",
        f"postgresql://127.0.0.1:9/mlflow?user=joe&password={VALUE}",
        f"postgresql://joe@127.0.0.1:9/mlflow?sslmode=disable&password={VALUE}",
    ],
)
def test_no_command_shows_or_records_the_password_of_a_tracker(
    address: str, tracked_project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tracked_project)
    evaluate(tracked_project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)

    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["twinrun", *command])
        with suppress(SystemExit):
            cli.main()

    printed = "".join(capfd.readouterr())
    assert "127.0.0.1:9" in printed
    assert VALUE not in printed
    kept = [file for file in tracked_project.rglob("*") if file.is_file()]
    assert not any(VALUE.encode() in file.read_bytes() for file in kept)


def test_another_password_is_the_same_store(tracked_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://joe:one@mlflow.example")
    before = find_tracker(tracked_project).state

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://joe:two@mlflow.example")

    assert find_tracker(tracked_project).state == before


def test_doctor_has_a_change_that_looks_like_a_secret_committed_and_not_ignored(repository: Path) -> None:
    """A tracked file is not made untracked by .gitignore, and a line that was removed can have no comment."""
    write_text("PASSWORD=x\n", repository / ".env")
    write_text(f'token = "{VALUE}"\n', repository / "src/settings.py")
    git(repository, "add", "--force", ".env", "src/settings.py")
    git(repository, "commit", "--quiet", "--message", "Add settings")
    (repository / ".env").unlink()
    write_text("token = None\n", repository / "src/settings.py")

    named, held = (finding for finding in check(repository)[1] if "in a run's card" in finding.problem)

    assert ".env is not in a run's card: it is named as secrets are" in named.problem
    assert "src/settings.py is not in a run's card: line " in held.problem
    assert named.fix == held.fix == "commit the change, if it holds no secret, or move the secret out of it"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (".dvc/config", f"    password = {VALUE}\n"),
        (".dvc/config", f"    gdrive_client_secret = GOCSPX-{VALUE}\n"),
        (".dvc/config", f"    sas_token = sv=2024-08-04&sig={VALUE}%2Fx%3D\n"),
        ("Dockerfile", f"ENV MLFLOW_TRACKING_PASSWORD={VALUE}\n"),
        ("notebooks/explore.ipynb", f'{{"source": ["password = \\"{VALUE}\\"\\n"]}}\n'),
    ],
)
def test_a_secret_without_quotes_or_with_escaped_ones_stays_out_of_the_patch(
    name: str, line: str, repository: Path
) -> None:
    """`dvc remote modify` without --local writes passwords into a file that git tracks."""
    write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = ssh://example.org/store\n", repository / name
    )
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "More")
    with (repository / name).open("a") as file:
        file.write(line)

    code = collect_code(repository)

    assert VALUE not in code.diff
    assert name in code.secrets


def test_shell_code_that_passes_secrets_on_and_holds_none_is_taken(repository: Path) -> None:
    write_text(
        'PASSWORD=$1\nSECRET="$(cat ~/.secret)"\nexport DB_PASSWORD_FILE=/run/secrets/db TOKEN=${TOKEN:?}\n',
        repository / "src/upload.sh",
    )

    code = collect_code(repository)

    assert "src/upload.sh" in code.taken
