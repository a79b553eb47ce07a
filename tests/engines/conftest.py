"""Real engines and stores, for these tests alone: Ray, Spark, PostgreSQL, an S3 server. See `make test-engines`.

Spark needs Java 17, and PostgreSQL its server, both from Debian.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_support import free_port, wait_for

from twinrun.sweep.launcher import TRIAL

BUCKETS = ("dvc", "mlflow")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, preloaded: None, programs: Path) -> None:  # noqa: ARG001
    """Stages that DVC starts find the environment; Spark finds Java 17 and no network but this machine's."""
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    java = sorted(Path("/usr/lib/jvm").glob("java-17-openjdk-*"))
    if java:
        monkeypatch.setenv("JAVA_HOME", str(java[0]))


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster of two slots."""
    import ray

    from twinrun.sweep.ray import Ray

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - or they wait for all else that runs here
    cluster = Ray(2, tmp_path_factory.mktemp("ray"), TRIAL)
    yield str(ray.get_runtime_context().gcs_address)
    cluster.close()


@pytest.fixture
def ray_cluster(_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that `--on ray` joins."""
    monkeypatch.setenv("RAY_ADDRESS", _cluster)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database of a cluster of its own, which belongs to an unprivileged user."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not versions:
        pytest.fail("PostgreSQL's server is missing: apt-get install postgresql")
    folder, port = Path(tempfile.mkdtemp(prefix="tr-pg-", dir="/tmp")), free_port()
    as_user = ["runuser", "--user", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(versions[-1] / program), *arguments], cwd=folder, check=True, capture_output=True)

    data = ["--pgdata", str(folder / "data")]
    run("initdb", *data, "--auth", "trust", "--username", "mlflow")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", *data, "--wait", "--log", str(folder / "log.txt"), "--options", options, "start")
    try:
        run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", *data, "--mode", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server with two buckets; its keys are in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    for name in BUCKETS:
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=name)
    yield f"http://127.0.0.1:{port}"
    server.stop()
    for name in keys:
        del os.environ[name]


@pytest.fixture(scope="session")
def mlflow_on_postgres(postgres: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with its runs in PostgreSQL and its artifacts on S3."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    places = ["--backend-store-uri", postgres, "--artifacts-destination", "s3://mlflow/artifacts"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "2", *places],
            env={**os.environ, **quiet, "MLFLOW_S3_ENDPOINT_URL": s3},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(port, "/health", server, folder / "server.log", timeout_s=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)
